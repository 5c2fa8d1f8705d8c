"""The page and the sheet: what they show, and that nothing a job holds can break them."""

from __future__ import annotations

import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import PIL.Image
import pytest

from asymvae.faults import Fault
from asymvae.report.contact_sheet import draw_sheet
from asymvae.report.digest import ShardRecord
from asymvae.report.metrics import Row
from asymvae.report.page import make_report
from asymvae.report.pictures import Pictures
from tests.report.small_job import SmallJob

KNOWN = ("mae_known", "mse_known", "psnr_known", "ssim_known", "max_abs_known", "seam")


class _Resources(HTMLParser):
    """Everything that a browser would run or fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action"):
                self.addresses.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)


def _resources(page: str) -> _Resources:
    found = _Resources()
    found.feed(page)
    return found


@pytest.fixture
def job(tmp_path: Path) -> SmallJob:
    keys = [[f"a{number}" for number in range(5)], [f"b{number}" for number in range(5)]]
    return SmallJob(tmp_path, str(tmp_path / "out"), keys)


def test_the_page_says_what_the_job_came_to(job: SmallJob) -> None:
    job.commit(0, errors={1: Fault("image_truncated")})
    job.commit(1)
    page = make_report(job.out, rows=4).page
    text = re.sub(r"<[^>]+>|data:[^\"]*", " ", page)
    for expected in (
        "some/model", "abc123", "asymvae 0.1.0", "mask.feather",
        "image_truncated", "the image file ends before its last pixel", "a1",
        *KNOWN, "lowest psnr_known", "highest seam",
    ):  # fmt: skip
        assert expected in text, expected
    assert re.search(r"<b>10</b><span[^>]*>samples", page)
    assert re.search(r"<b>9</b><span[^>]*>results", page)
    assert re.search(r">1</b><span[^>]*>errors", page)


def test_the_page_needs_nothing_but_itself(job: SmallJob) -> None:
    job.commit(0, errors={1: Fault("image_truncated")})
    resources = _resources(make_report(job.out, rows=4).page)
    assert len(resources.addresses) > 15
    assert all(address.startswith("data:image/") for address in resources.addresses)
    assert not resources.tags & {"script", "link", "iframe", "object", "base"}
    assert not resources.handlers


def test_the_worst_rows_lead_their_metric(job: SmallJob) -> None:
    job.commit(0)
    job.commit(1)
    page = make_report(job.out, rows=1).page
    lowest = page[page.index("lowest psnr_known") : page.index("highest mse_known")]
    # Index 4 is the worst; of equals the first shard's comes first.
    assert re.findall(r'class="key">(\w+)<', lowest) == ["a4", "b4", "a3", "b3"]
    assert "0 levels everywhere" in page  # of max_abs_known, where there is no worst
    seam = page[page.index("highest seam") :]
    assert re.findall(r'class="key">(\w+)<', seam)[:2] == ["a0", "b0"]


def test_the_sheet_tells_variants_apart(job: SmallJob) -> None:
    shard = ShardRecord("00000", "", "", 1, 3, {}, None, 1.0, None, None, None)
    values = {"hole_fraction": 0.5, "mse_known": 1.0, "psnr_known": 6.0}
    sheets = {draw_sheet("a", [(Row(shard, 0, variant, "key", values), Pictures())]) for variant in range(3)}
    assert len(sheets) == 3


def test_hostile_keys_and_urls_stay_text(tmp_path: Path) -> None:
    hostile = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\u202e\n"
    job = SmallJob(tmp_path, str(tmp_path / "<b onclick=x>out"), [[hostile, "fine", hostile + "3"]])
    job.commit(0, errors={2: Fault("image_truncated")})
    job.ledger.fail(job.shards[0], {"reason": "<script>alert(3)</script>"})
    report = make_report(job.out, rows=2)
    resources = _resources(report.page)
    assert not resources.tags & {"script", "b onclick=x"}
    assert not resources.handlers
    assert all(address.startswith("data:image/") for address in resources.addresses)
    assert "&lt;script&gt;alert(1)" in report.page
    assert _size(report.sheet)[0] > 900


def test_a_job_without_errors(job: SmallJob) -> None:
    job.commit(0)
    job.commit(1)
    page = make_report(job.out, rows=2).page
    assert '<p class="good">None.</p>' in page
    assert "Failed shards" not in page
    assert "Notes" not in page


@pytest.mark.parametrize("committed", [True, False])
def test_a_job_without_results(job: SmallJob, committed: bool) -> None:
    if committed:
        job.commit(0, errors={number: Fault("missing_mask") for number in range(5)})
    report = make_report(job.out, rows=3)
    assert "No results yet." in report.page
    assert "Nothing was measured." in report.page
    assert report.page.count("no values") == 9
    assert ("missing_mask" in report.page) == committed
    assert _size(report.sheet)[1] < 200


def test_metrics_that_are_null_everywhere(job: SmallJob) -> None:
    job.commit(0, metrics=dict.fromkeys(KNOWN))
    job.commit(1, metrics={"psnr_known": None})
    page = make_report(job.out, rows=10).page
    assert "no values, 10 null" in page
    assert "lowest psnr_known" not in page
    assert "psnr_known null" in page
    assert "all hole: nothing known" in page


def test_an_input_that_is_gone_leaves_the_results(job: SmallJob) -> None:
    job.commit(0)
    shutil.rmtree(Path(job.urls).parent)
    report = make_report(job.out, rows=2)
    assert "the input can&#39;t be read" in report.page
    assert 'alt="result"' in report.page
    assert 'alt="input"' not in report.page


def test_an_input_that_changed_is_not_shown_as_the_old_one(job: SmallJob) -> None:
    job.commit(0)
    with open(job.shards[0].url, "ab") as file:
        file.write(bytes(512))
    assert "the input has changed since" in make_report(job.out, rows=2).page


def test_a_damaged_part_is_named_and_the_rest_is_shown(job: SmallJob) -> None:
    job.commit(0)
    job.commit(1)
    for kind in ("metrics", "results"):
        (Path(job.out) / kind / "00000.parquet").write_bytes(b"PAR1 nothing")
    page = make_report(job.out, rows=4).page
    assert "metrics/00000.parquet: ArrowInvalid" in page
    assert "b0" in page


def test_failed_shards_are_listed(job: SmallJob) -> None:
    job.commit(0)
    job.ledger.fail(job.shards[1], {"reason": "the disk is full"})
    page = make_report(job.out, rows=4).page
    assert "Failed shards" in page
    assert "the disk is full" in page


def test_the_same_rows_are_picked_every_time(job: SmallJob) -> None:
    job.commit(1)
    job.commit(0)
    first, second = (make_report(job.out, rows=4) for _ in range(2))
    assert first.sheet == second.sheet
    assert re.sub("this page of [^<]*", "", first.page) == re.sub("this page of [^<]*", "", second.page)


def test_small_pictures_are_not_enlarged(job: SmallJob) -> None:
    job.commit(0)
    one, two = (make_report(job.out, rows=rows).sheet for rows in (1, 2))
    # 40 px of a picture, and its caption: 92 px a row
    assert _size(two)[1] - _size(one)[1] == 92


def _size(png: bytes) -> tuple[int, int]:
    return PIL.Image.open(io.BytesIO(png)).size
