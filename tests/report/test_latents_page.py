"""The page and the sheet of a job that precomputes latents."""

from __future__ import annotations

import io
import re
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from asymvae.report.digest import read_digest
from asymvae.report.latents import pictures_of, read_latents
from asymvae.report.page import make_report
from asymvae.report.pictures import Pictures
from asymvae.storage.ledger import Ledger
from tests.tiny import file_bytes, picture, write_tar
from tests.tiny_latents import latents_of, precompute, run


@pytest.fixture(scope="module")
def out(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards: three images of two buckets, mirrored too, and one that is cut."""
    folder = tmp_path_factory.mktemp("latents")
    for shard in range(2):
        images = {
            f"{shard}{n}": file_bytes(picture(100, width, n), "PNG") for n, width in enumerate((100, 100, 190, 90))
        }
        images[f"{shard}3"] = images[f"{shard}3"][:200]
        write_tar(folder / "in" / f"{shard}.tar", [(key, {"png": content}) for key, content in images.items()])
    run(precompute(str(folder / "in/*.tar"), folder / "out", checkpoint, crop={"hflip": "both"}))
    return folder / "out"


def test_it_says_buckets_errors_and_each_channel_s_numbers(out: Path) -> None:
    report = make_report(str(out), rows=4)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>|data:[^\"]*", " ", report.page))
    rows = latents_of(out)
    assert "96x96 8 66.7%" in text
    assert "64x128 4 33.3%" in text
    assert re.search(r"image_truncated 4 ", text)
    assert "first 12 rows of 4 parts" in text
    assert "Worst samples" not in text
    scaling = 0.18215
    for channel in range(4):
        each = [np.array(row["mean"], np.float64).reshape(row["shape"])[channel].ravel() * scaling for row in rows]
        values = np.concatenate(each)
        found = re.search(rf" {channel} (-?[\d.e-]+) ([\d.e-]+) ([\d.e-]+) ", text[text.index("posterior's own std") :])
        assert found is not None
        assert float(found[1]) == pytest.approx(values.mean(), rel=0.01, abs=1e-4)
        assert float(found[2]) == pytest.approx(values.std(), rel=0.01)
    drawn = [np.exp(0.5 * np.array(row["logvar"], np.float64)).sum() for row in rows]
    whole = read_latents(str(out), read_digest(Ledger(str(out))).shards, picks=0).channels[-1]
    assert whole.posterior_std == pytest.approx(scaling * sum(drawn) / sum(len(row["mean"]) for row in rows), rel=1e-3)
    assert "is the scaling factor this checkpoint" in report.page  # random weights: nowhere near 1


def test_the_sheet_shows_what_was_encoded_and_its_latent(out: Path) -> None:
    report = make_report(str(out), rows=4)
    assert report.page.count('alt="encoded"') == report.page.count('alt="latent"') == 4
    sheet = PIL.Image.open(io.BytesIO(report.sheet))
    assert sheet.size[1] > 4 * 100
    latents = read_latents(str(out), read_digest(Ledger(str(out))).shards, picks=12)
    for of in latents.picked:
        number = int(of.row.key[1])
        whole = picture(100, 190 if number == 2 else 100, number)
        encoded, channels = pictures_of(of, Pictures(input=whole), 300)
        assert encoded is not None
        height, width = map(int, of.bucket.split("x"))
        assert encoded.shape[1] / encoded.shape[0] == pytest.approx(width / height, rel=0.03)
        assert max(channels.shape) == 300
        if number < 2:  # 96 of 100, by a resize that covers the bucket: all of it
            np.testing.assert_array_equal(encoded[:, ::-1] if of.row.variant else encoded, whole)


def test_a_part_that_is_damaged_is_named_and_one_without_rows_is_no_fault(out: Path, tmp_path: Path) -> None:
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    (copy / "latents/bucket=64x128/0.parquet").write_bytes(b"PAR1 nothing")
    page = make_report(str(copy), rows=2).page
    assert "bucket=64x128/0.parquet: ArrowInvalid" in page
    for record in (copy / "_commits").iterdir():
        record.unlink()
    page = make_report(str(copy), rows=2).page
    assert "No results yet." in page
