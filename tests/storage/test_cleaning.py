"""What crashes left is removed by name and age, and nothing else is touched, whoever is at work."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asymvae.storage import cleaning, clock, filesystem
from asymvae.storage.audit import audit, audit_and_survey
from asymvae.storage.cleaning import Cleaned
from asymvae.storage.ledger import Ledger
from asymvae.storage.uploads import list_uploads
from tests.storage.rows import a_set, a_shard, commit, error, files, open_job, result

HIDDEN = f".{'0' * 32}.tmp"
PARTS = ["results/gone.parquet", "metrics/a~r01234567.parquet", "latents/bucket=64x96/x~2Fy.parquet"]
TEMPORARIES = [f"results/.gone.parquet{HIDDEN}", f"._job.json{HIDDEN}", f"_commits/.a.{'0' * 16}.json{HIDDEN}"]
UPLOADS = ["results/gone.parquet", "results/a.parquet"]
FOREIGN = [
    "notes.txt",
    "results/my copy.parquet",
    "results/deeper/a.parquet",
    "mine/a.parquet",
    f".notes{HIDDEN}",
    "latents/bucket=best/a.parquet",
]


def clean(url: str, **options: Any) -> Cleaned:
    return cleaning.clean(url, audit_and_survey(url, deep=False)[1], **options)


def paths(found: list[cleaning.Leftover]) -> list[str]:
    return [each.where for each in found]


def begin_upload(url: str, name: str, content: bytes = b"x" * 1000) -> None:
    fs, path = filesystem.resolve(filesystem.join(url, name))
    bucket, key, _ = fs.split_path(path)
    upload = fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    fs.call_s3("upload_part", Bucket=bucket, Key=key, UploadId=upload["UploadId"], PartNumber=1, Body=content)


@pytest.fixture
def littered(store_url: str, tmp_path: Path) -> str:
    """An OUT with a committed shard a, a shard given up on, and what crashes and people may leave beside them."""
    url = filesystem.join(store_url, "out")
    ledger = open_job(url)
    commit(ledger, a_shard("a"), tmp_path / "spool", [result(0), result(1)], [error(2)])
    for name in ("a", "hopeless"):
        ledger.fail(a_shard(name), {"reason": "its worker died"})
    for name in [*PARTS, *TEMPORARIES, *FOREIGN]:
        filesystem.put_if_absent(filesystem.join(url, name), name.encode())
    filesystem.put_if_absent(filesystem.join(url, "report", "index.html"), b"")
    filesystem.put_if_absent(filesystem.join(store_url, "out-2", "results", "gone.parquet"), b"another's")
    if url.startswith("s3://"):
        for name in [*UPLOADS, "notes/upload", "../results/gone.parquet"]:
            begin_upload(url if not name.startswith("..") else store_url, name.removeprefix("../"))
    return url


def test_what_crashes_left_goes_and_all_else_stays(littered: str) -> None:
    before = files(littered)
    ours = [*PARTS, *TEMPORARIES, "_failed/a.json"]
    uploads = sorted(UPLOADS) if littered.startswith("s3://") else []
    foreign = FOREIGN + (["notes/upload (an unfinished upload)"] if uploads else [])

    dry = clean(littered, older_than=0, dry_run=True)
    assert files(littered) == before
    cleaned = clean(littered, older_than=0)
    assert paths(dry.removed) == paths(cleaned.removed) == sorted(ours + uploads)
    assert sorted(cleaned.foreign) == sorted(dry.foreign) == sorted(foreign)
    assert (cleaned.young, cleaned.doubtful, cleaned.withdrawn) == ([], [], [])
    sizes = {(each.kind, each.where): each.bytes for each in cleaned.removed}
    assert all(sizes[("part", name)] == len(name) for name in PARTS)
    assert all(sizes[("upload", name)] == 1000 for name in uploads)
    assert {each.kind for each in cleaned.removed} == {"part", "temporary", "failure"} | (
        {"upload"} if uploads else set()
    )

    assert files(littered) == [name for name in before if name not in ours]
    assert [each.where for each in list_uploads(littered)] == (["notes/upload"] if uploads else [])
    outside = littered.removesuffix("/out")
    assert files(f"{outside}/out-2") == ["results/gone.parquet"]
    assert "results/gone.parquet" in [each.where for each in list_uploads(outside)] or not uploads
    report = audit(littered, deep=True)
    assert (report.missing, report.broken) == ([], [])
    assert report.failed == ["hopeless: its worker died (attempts: 1)"]
    assert clean(littered, older_than=0).removed == []


def test_what_is_younger_than_asked_is_left_and_said(littered: str) -> None:
    before = files(littered), list_uploads(littered)
    cleaned = clean(littered, older_than=3600.0)
    # moto says of every upload that it began in 2010.
    if not any(upload.started < time.time() - 10**7 for upload in before[1]):
        assert cleaned.removed == []
        assert list_uploads(littered) == before[1]
        assert len(cleaned.young) == len(PARTS) + len(TEMPORARIES) + 1 + (2 if littered.startswith("s3") else 0)
    assert files(littered) == before[0]
    assert all(each.age is not None and 0 <= each.age < 60 for each in cleaned.young)


def test_ages_are_by_the_stores_clock_whatever_ours_says(littered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = time.time()
    for wrong_by in (-(10**6), 10**6):
        monkeypatch.setattr(clock.time, "time", lambda wrong_by=wrong_by: truth + wrong_by)
        assert abs(clock.store_time(littered) - truth) < 60
    assert list(Path(littered).glob(".clock*")) == []


def test_a_local_folder_where_nothing_can_be_made_goes_by_our_clock(tmp_path: Path) -> None:
    assert abs(clock.store_time(str(tmp_path / "none")) - time.time()) < 60


def test_of_files_of_several_ages_the_old_ones_go(tmp_path: Path) -> None:
    ledger = open_job(str(tmp_path / "out"))
    commit(ledger, a_shard("a"), tmp_path, [result(0)])
    for hours, name in enumerate(["a~r00000000", "b", "c", "d"]):
        path = tmp_path / "out" / "results" / f"{name}.parquet"
        path.write_bytes(b"x")
        os.utime(path, (time.time() - 3600 * hours - 60,) * 2)
    os.utime(tmp_path / "out" / "results" / "a.parquet", (0, 0))  # committed: its age is no reason
    cleaned = clean(ledger.url, older_than=2 * 3600.0)
    assert paths(cleaned.removed) == ["results/c.parquet", "results/d.parquet"]
    assert paths(cleaned.young) == ["results/a~r00000000.parquet", "results/b.parquet"]
    assert audit(ledger.url, deep=True).orphaned == ["results/a~r00000000.parquet", "results/b.parquet"]


def test_nothing_goes_of_a_shard_whose_commit_cannot_be_read(tmp_path: Path) -> None:
    ledger = open_job(str(tmp_path / "out"))
    record = commit(ledger, a_shard("a"), tmp_path, [result(0)])
    (tmp_path / "out" / "_commits" / f"a.{record['id']}.json").write_bytes(b"{half")
    cleaned = clean(ledger.url, older_than=0)
    assert cleaned.doubtful == ["metrics/a.parquet", "results/a.parquet"]
    assert cleaned.removed == []
    assert len(files(ledger.url)) == 4


def test_a_failure_of_another_input_than_the_commits_stays(tmp_path: Path) -> None:
    ledger = open_job(str(tmp_path / "out"))
    commit(ledger, a_shard("a"), tmp_path, [result(0)])
    ledger.fail(a_shard("a", version="v2"), {"reason": "its worker died"})
    assert clean(ledger.url, older_than=0).removed == []
    assert list(ledger.failed()) == ["a"]


@pytest.fixture
def crashed(out_url: str, tmp_path: Path) -> Ledger:
    """An OUT where a crash left the parts of a shard, and the driver that does it again would adopt them."""
    ledger = open_job(out_url)
    parts, _, _ = a_set(tmp_path / "crashed", [result(0)])
    for part in parts:
        filesystem.put_if_absent(filesystem.join(out_url, part.kind, "00000.parquet"), part.path)
    return ledger


def assert_whole(ledger: Ledger) -> None:
    report = audit(ledger.url, deep=True, shards=[a_shard()])
    assert report.ok, report
    assert report.results == 1


def test_a_part_that_was_committed_since_the_survey_stays(crashed: Ledger, tmp_path: Path) -> None:
    survey = audit_and_survey(crashed.url, deep=False)[1]
    commit(crashed, a_shard(), tmp_path / "again", [result(0)])
    assert cleaning.clean(crashed.url, survey, older_than=0).removed == []
    assert_whole(crashed)


def before_once(monkeypatch: pytest.MonkeyPatch, name: str, where: str, do: Callable[[], object]) -> None:
    """``do()`` once, before ``filesystem.<name>`` is called for a URL with ``where`` in it."""
    work, done = getattr(filesystem, name), threading.Event()

    def step(url: str, *args: Any) -> Any:
        if where in url and not done.is_set():
            done.set()
            do()
        return work(url, *args)

    monkeypatch.setattr(filesystem, name, step)


def test_parts_removed_before_the_record_that_adopts_them_are_put_back(
    crashed: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[str] = []
    before_once(
        monkeypatch,
        "put_if_absent",
        "/_commits/",
        lambda: removed.extend(paths(clean(crashed.url, older_than=0).removed)),
    )
    commit(crashed, a_shard(), tmp_path / "again", [result(0)])
    assert removed == ["metrics/00000.parquet", "results/00000.parquet"]
    assert_whole(crashed)


def test_a_commit_made_while_its_parts_are_removed_is_withdrawn(
    crashed: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver that dies between its record and the last look at its parts."""
    put_back = Ledger._put_back
    monkeypatch.setattr(Ledger, "_put_back", lambda *_: None)
    before_once(
        monkeypatch,
        "remove",
        "results/00000.parquet",
        lambda: commit(crashed, a_shard(), tmp_path / "again", [result(0)]),
    )
    assert len(clean(crashed.url, older_than=0).withdrawn) == 1
    assert crashed.committed() == {}
    monkeypatch.setattr(Ledger, "_put_back", put_back)
    commit(crashed, a_shard(), tmp_path / "third", [result(0)])
    assert_whole(crashed)
