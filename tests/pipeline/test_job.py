"""Whole jobs, from files to rows: what comes in, in every form, comes out as it must."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from asymvae.batch import Batch
from asymvae.fingerprint import sample_seed
from asymvae.inpaint.base import Inpainter
from asymvae.model.autoencoder import AsymmetricAutoencoderKL
from asymvae.pipeline.executor import LocalExecutor
from asymvae.pipeline.job import JobResult, run_job
from asymvae.pipeline.plan import ConfigurationError, make_plan, open_output
from asymvae.storage.audit import audit
from tests.tiny import box_mask, file_bytes, job, parts_of, picture, pixels_of, rows_of, sample, write_tar

NOTHING = {"dilate": 0, "feather": 0}


class Job:
    """Runs one shard's samples through a whole job; reads what came out."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        self.folder, self.checkpoint, self.out = folder, checkpoint, folder / "out"

    def run_tar(self, *fields: dict[str, bytes], **settings: Any) -> list[dict[str, Any]]:
        tar = write_tar(self.folder / "in" / "a.tar", [(f"k{number}", each) for number, each in enumerate(fields)])
        return self.run(tar, **settings)

    def run(self, url: Path | str, **settings: Any) -> list[dict[str, Any]]:
        settings.setdefault("max_error_fraction", 1.0)
        result = run_job(job(str(url), self.out, self.checkpoint, **settings), LocalExecutor())
        assert result.exit_code == 0, result
        self.audited(result)
        return rows_of(self.out, "results")

    def audited(self, result: JobResult) -> None:
        report = audit(str(self.out), deep=True, shards=result.plan.shards)
        assert report.ok, report

    @property
    def codes(self) -> list[str]:
        return [row["code"] for row in rows_of(self.out, "errors")]


@pytest.fixture
def whole(tmp_path: Path, checkpoint: Path) -> Job:
    return Job(tmp_path, checkpoint)


def mask_of(hole: NDArray[np.bool_]) -> bytes:
    return file_bytes(np.where(hole, 255, 0).astype(np.uint8), "PNG")


def box(height: int, width: int, top: int, left: int, size: int) -> NDArray[np.bool_]:
    hole = np.zeros((height, width), bool)
    hole[top : top + size, left : left + size] = True
    return hole


# --- what comes in ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["bytes", "struct", "path"])
def test_parquet_shards(form: str, whole: Job) -> None:
    samples = [sample(number, (64, 64)) for number in range(3)]
    folder = whole.folder / "in"
    folder.mkdir()

    def cell(name: str, number: int, content: bytes) -> Any:
        if form == "bytes":
            return content
        if form == "struct":
            return {"bytes": content, "path": f"{name}{number}.png"}
        (folder / f"{name}{number}.png").write_bytes(content)
        return {"bytes": None, "path": str(folder / f"{name}{number}.png")}

    table = pa.table(
        {
            "photo": [cell("i", n, each["png"]) for n, each in enumerate(samples)],
            "hole": [cell("m", n, each["mask.png"]) for n, each in enumerate(samples)],
        }
    )
    pq.write_table(table, folder / "p.parquet")
    rows = whole.run(folder / "*.parquet", input={"image": "photo", "mask": "hole"})
    assert [row["key"] for row in rows] == ["p/0", "p/1", "p/2"]
    assert [row["image"]["path"] for row in rows] == ["p/0.png", "p/1.png", "p/2.png"]
    tar = Job(whole.folder / "tar", whole.checkpoint).run_tar(*samples)
    for row, other in zip(rows, tar, strict=True):  # harmonic asks for no seed: the same pixels
        np.testing.assert_array_equal(pixels_of(row), pixels_of(other))


def test_parquet_keys_from_a_column(whole: Job) -> None:
    samples = [sample(number, (64, 64)) for number in range(3)]
    table = pa.table(
        {
            "id": [7, None, 7],
            "image": [each["png"] for each in samples],
            "mask": [each["mask.png"] for each in samples],
        }
    )
    (whole.folder / "in").mkdir()
    pq.write_table(table, whole.folder / "in" / "p.parquet")
    rows = whole.run(whole.folder / "in" / "p.parquet", input={"key": "id", "image": "image"})
    assert [row["key"] for row in rows] == ["7"]
    assert whole.codes == ["missing_key", "duplicate_key"]


def test_a_mask_of_another_size_is_resized_where_its_aspect_agrees(whole: Job) -> None:
    image = file_bytes(picture(64, 96), "PNG")
    rows = whole.run_tar(
        {"png": image, "mask.png": mask_of(box(32, 48, 8, 8, 8))},
        {"png": image, "mask.png": mask_of(box(64, 64, 8, 8, 8))},
        mask=NOTHING,
    )
    assert [row["key"] for row in rows] == ["k0"]
    assert whole.codes == ["mask_aspect"]
    changed = (pixels_of(rows[0]) != picture(64, 96)).any(axis=2)
    assert changed.any()
    assert not changed[~box(64, 96, 16, 16, 16)].any()


def test_alpha_is_carried_to_the_result(whole: Job) -> None:
    pixels = np.dstack([picture(48, 64), np.arange(48 * 64, dtype=np.uint32).reshape(48, 64).astype(np.uint8)])
    hole = box(48, 64, 8, 8, 16)
    (row,) = whole.run_tar({"png": file_bytes(pixels, "PNG"), "mask.png": mask_of(hole)}, mask=NOTHING)
    out = pixels_of(row)
    assert out.shape == (48, 64, 4)
    np.testing.assert_array_equal(out[..., 3], pixels[..., 3])
    np.testing.assert_array_equal(out[~hole], pixels[~hole])
    assert (out[hole] != pixels[hole]).any()


def test_sixteen_bits_are_reduced_and_flagged(whole: Job) -> None:
    grey = (picture(48, 64)[..., 0].astype(np.uint16) * 257).astype(np.uint16)
    out = io.BytesIO()
    Image.fromarray(grey).save(out, "PNG")
    deep, plain = whole.run_tar({"png": out.getvalue(), "mask.png": mask_of(box(48, 64, 8, 8, 16))}, sample(0))
    assert (deep["bit_depth_reduced"], plain["bit_depth_reduced"]) == (True, False)
    np.testing.assert_array_equal(pixels_of(deep)[40, :, 0], (grey[40] // 257).astype(np.uint8))


def test_a_turned_photograph_comes_out_upright(whole: Job) -> None:
    stored = picture(40, 64)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    upright = np.rot90(stored, -1)
    hole = box(64, 40, 4, 4, 16)
    (row,) = whole.run_tar(
        {"jpg": file_bytes(stored, "JPEG", exif=exif, quality=100, subsampling=0), "mask.png": mask_of(hole)},
        mask=NOTHING,
    )
    assert (row["height"], row["width"]) == (64, 40)
    out = pixels_of(row)
    assert out.shape == (64, 40, 3)
    assert np.abs(out.astype(int) - upright)[~hole].max() <= 8  # JPEG's own loss


def test_a_sample_without_a_hole_passes_through(whole: Job) -> None:
    image = picture(40, 64)
    (row,) = whole.run_tar({"png": file_bytes(image, "PNG"), "mask.png": mask_of(np.zeros((40, 64), bool))})
    assert row["passed_through"]
    np.testing.assert_array_equal(pixels_of(row), image)


@pytest.mark.parametrize("image_format", ["png", "webp", "jpeg"])
def test_results_are_of_the_format_asked_for(image_format: str, whole: Job) -> None:
    (row,) = whole.run_tar(sample(0), output={"image_format": image_format})
    assert Image.open(io.BytesIO(row["image"]["bytes"])).format == image_format.upper()
    assert row["image"]["path"] == f"k0.{'jpg' if image_format == 'jpeg' else image_format}"


def test_another_job_begun_there_meanwhile_is_refused(whole: Job) -> None:
    tar = write_tar(whole.folder / "in" / "a.tar", [("x", sample(0))])
    plan = make_plan(job(str(tar), whole.out, whole.checkpoint))
    assert not whole.out.exists()
    open_output(make_plan(job(str(tar), whole.out, whole.checkpoint, seed=1)))
    with pytest.raises(ConfigurationError, match="seed: was 1, is 0"):
        open_output(plan)


# --- what is done with it ---------------------------------------------------------------------------------------


def test_paste_keeps_every_known_pixel(whole: Job) -> None:
    fields = [sample(number) for number in range(4)]
    for row, each in zip(whole.run_tar(*fields, mask=NOTHING), fields, strict=True):
        before = np.asarray(Image.open(io.BytesIO(each["png"])))
        known = np.asarray(Image.open(io.BytesIO(each["mask.png"]))) == 0
        np.testing.assert_array_equal(pixels_of(row)[known], before[known])
    assert {row["max_abs_known"] for row in rows_of(whole.out, "metrics")} == {0}


def test_composite_none_gives_what_the_decoder_made(whole: Job) -> None:
    image, hole = picture(160, 200), box(160, 200, 10, 10, 16)
    fields = {"png": file_bytes(image, "PNG"), "mask.png": mask_of(hole)}
    geometry = {"margin": 8}
    (row,) = whole.run_tar(fields, composite="none", geometry=geometry)
    top, left, bottom, right = row["crop"]
    inside = np.zeros((160, 200), bool)
    inside[top:bottom, left:right] = True
    assert not inside.all()
    changed = (pixels_of(row) != image).any(axis=2)
    assert changed[inside & ~hole].mean() > 0.5
    assert not changed[~inside].any()
    (metrics,) = rows_of(whole.out, "metrics")
    assert metrics["max_abs_known"] > 0


def test_given_fills_end_to_end(whole: Job) -> None:
    image, hole = file_bytes(picture(64, 64), "PNG"), mask_of(box(64, 64, 16, 16, 24))
    fields = {"png": image, "mask.png": hole}
    given = [file_bytes(picture(64, 64, seed), "PNG") for seed in (1, 2)]
    rows = whole.run_tar(
        fields | {"given.png": given[0]},
        fields | {"given.png": given[1]},
        fields,
        fields | {"given.png": given[0][:99]},
        fields | {"given.png": file_bytes(picture(64, 32), "PNG")},
        inpaint={"method": "given"},
    )
    assert [row["key"] for row in rows] == ["k0", "k1"]
    assert whole.codes == ["missing_given", "given_undecodable", "given_size"]
    first, second = (pixels_of(row)[20:36, 20:36] for row in rows)
    assert (first != second).any()


def test_variants_have_seeds_of_their_own(whole: Job) -> None:
    rows = whole.run_tar(sample(0), {"png": b""}, inpaint={"variants": 3}, seed=5)
    assert [(row["key"], row["variant"]) for row in rows] == [("k0", 0), ("k0", 1), ("k0", 2)]
    assert [row["seed"] for row in rows] == [sample_seed(5, "k0", variant) for variant in range(3)]
    assert len({row["seed"] for row in rows}) == 3
    assert [(row["key"], row["variant"], row["code"]) for row in rows_of(whole.out, "errors")] == [
        ("k1", variant, "missing_mask") for variant in range(3)
    ]


def test_keys_of_any_kind(whole: Job) -> None:
    keys = ["a b", "dir/é", "dir/.hidden/x", "n" * 300, "dir/a'b\"c"]
    tar = write_tar(whole.folder / "in" / "a.tar", [(key, sample(0)) for key in keys])
    assert [row["key"] for row in whole.run(tar)] == keys


class Leaky(Inpainter):
    """Looks at what the hole held."""

    needs = frozenset({"image"})

    def fill(self, batch: Batch, vae: AsymmetricAutoencoderKL) -> Tensor:
        return batch.latents["image"]


@pytest.fixture
def holes_apart(tmp_path: Path, checkpoint: Path) -> Callable[..., list[dict[str, bytes]]]:
    """The parts of two jobs whose shards differ inside the holes alone."""
    rng = np.random.default_rng(3)

    def run(**settings: Any) -> list[dict[str, bytes]]:
        parts = []
        for content in ("black", "noise"):
            samples = []
            for number, (height, width) in enumerate([(160, 200), (96, 96), (57, 41)]):
                pixels, mask = picture(height, width, number).copy(), box_mask(height, width, number)
                noise = rng.integers(0, 256, pixels.shape, dtype=np.uint8)
                pixels[mask > 0] = 0 if content == "black" else noise[mask > 0]
                samples.append((f"k{number}", {"png": file_bytes(pixels, "PNG"), "mask.png": file_bytes(mask, "PNG")}))
            tar = write_tar(tmp_path / content / "a.tar", samples)
            out = tmp_path / f"out-{content}"
            assert run_job(job(str(tar), out, checkpoint, **settings), LocalExecutor()).exit_code == 0
            parts.append(parts_of(out))
        assert list(parts[0]) == ["metrics/a.parquet", "results/a.parquet"]
        return parts

    return run


@pytest.mark.parametrize("method", ["harmonic", "none"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mask": NOTHING},
        {"mask": NOTHING | {"grid": 1}, "geometry": {"max": 64}},
        {"composite": "none"},
        {"geometry": {"mode": "whole"}, "composite": "none"},
        {"geometry": {"max": 64}},
        {"geometry": {"mode": "buckets"}},
        {"geometry": {"mode": "fit", "max": 64}},
    ],
    ids=str,
)
def test_nothing_of_the_holes_old_content_reaches_the_result(
    method: str, settings: dict[str, Any], holes_apart: Callable[..., list[dict[str, bytes]]]
) -> None:
    black, noise = holes_apart(inpaint={"method": method}, **settings)
    assert black == noise


def test_a_method_that_looks_into_the_hole_would_be_found_out(
    holes_apart: Callable[..., list[dict[str, bytes]]],
) -> None:
    black, noise = holes_apart(inpaint={"method": "tests.pipeline.test_job:Leaky"})
    assert black["results/a.parquet"] != noise["results/a.parquet"]


def test_a_job_whose_shards_hold_nothing_that_can_be_read_says_so(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar at all" * 100)
    for allowed, code in ((0.05, 1), (1.0, 0)):
        settings = job(str(tmp_path / "a.tar"), tmp_path / "out", checkpoint, max_error_fraction=allowed)
        result = run_job(settings, LocalExecutor())
        assert result.exit_code == code
        assert ("no shard holds a sample that can be read (tar_corrupt: 1)" in result.stopped) == bool(code)
