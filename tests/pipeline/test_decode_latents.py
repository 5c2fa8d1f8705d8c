"""Whole jobs that decode latents: the way back is the direct path, with and without the originals."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from asymvae.latents.dataset import LatentDataset
from asymvae.model import AsymmetricAutoencoderKL
from asymvae.pipeline.plan import ConfigurationError, make_plan
from asymvae.stages.levels import levels
from tests.tiny import box_mask, file_bytes, parts_of, picture, pixels_of, rows_of, tiny_model, write_tar
from tests.tiny_latents import decode, latents_of, precompute, run

SIZES = [(96, 96), (64, 128), (160, 150), (128, 64), (60, 70)]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two shards of images with masks."""
    folder = tmp_path_factory.mktemp("pairs")
    for shard in range(2):
        made = []
        for number, (height, width) in enumerate(SIZES):
            seed = number + 10 * shard
            fields = {"png": picture(height, width, seed), "mask.png": box_mask(height, width, seed)}
            made.append((f"s{shard}-{number}", {name: file_bytes(array, "PNG") for name, array in fields.items()}))
        write_tar(folder / "sub" / f"{shard}.tar", made)
    return str(folder / "*" / "*.tar")


@pytest.fixture(scope="module")
def latents(pairs: str, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("latents")
    run(precompute(pairs, out, checkpoint, crop={"hflip": "both"}, output={"dtype": "float32"}))
    return out


def decoded(row: dict[str, Any], **condition: Any) -> NDArray[np.uint8]:
    z = torch.tensor(row["mean"]).reshape(1, *row["shape"])
    with torch.inference_mode():
        return levels(tiny_model().decode(z, **condition).sample)[0].numpy()


def test_what_was_stored_decodes_as_what_was_encoded_would(
    pairs: str, latents: Path, checkpoint: Path, tmp_path: Path
) -> None:
    run(decode(str(latents), tmp_path, checkpoint))
    results = {(row["key"], row["variant"]): row for row in rows_of(tmp_path, "results")}
    stored = latents_of(latents)
    assert len(results) == len(stored) == 20
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["sub~2F0.parquet", "sub~2F1.parquet"]
    sources = {f"s{shard}-{n}": picture(*size, n + 10 * shard) for shard in range(2) for n, size in enumerate(SIZES)}
    model = tiny_model()
    for row in stored:
        result = results[row["key"], row["variant"]]
        assert np.abs(pixels_of(result).astype(int) - decoded(row)).max() <= 1
        assert result["crop"] == row["crop"]
        if (row["resized_height"], row["resized_width"]) != (row["original_height"], row["original_width"]):
            continue
        top, left, bottom, right = row["crop"]
        shown = sources[row["key"]][top:bottom, left:right]
        shown = shown[:, ::-1] if row["hflip"] else shown
        x = torch.from_numpy(shown.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.inference_mode():
            direct = levels(model.decode(model.encode(x).latent_dist.mode()).sample)[0].numpy()
        assert np.abs(pixels_of(result).astype(int) - direct).max() <= 1


def test_with_originals_the_known_pixels_are_theirs_and_the_hole_is_the_conditional_decoder_s(
    pairs: str, latents: Path, checkpoint: Path, tmp_path: Path
) -> None:
    nothing = {"dilate": 0, "feather": 0}
    run(decode(str(latents), tmp_path, checkpoint, originals={"urls": pairs}, mask=nothing))
    results = rows_of(tmp_path, "results")
    metrics = {(row["key"], row["variant"]): row for row in rows_of(tmp_path, "metrics")}
    stored = {(row["key"], row["variant"]): row for row in latents_of(latents)}
    seen = 0
    for result in results:
        row = stored[result["key"], result["variant"]]
        measured = metrics[result["key"], result["variant"]]
        assert measured["psnr_known"] is not None
        assert measured["max_abs_known"] == 0
        if (row["resized_height"], row["resized_width"]) != (row["original_height"], row["original_width"]):
            continue
        seen += 1
        shard, number = int(result["key"][1]), int(result["key"][3])
        size, (top, left, bottom, right) = SIZES[number], row["crop"]
        image = picture(*size, number + 10 * shard)[top:bottom, left:right]
        hole = box_mask(*size, number + 10 * shard)[top:bottom, left:right] > 0
        if row["hflip"]:
            image, hole = image[:, ::-1], hole[:, ::-1]
        made = pixels_of(result)
        np.testing.assert_array_equal(made[~hole], image[~hole])
        assert measured["hole_fraction"] == pytest.approx(hole.mean())
        grown = hole.reshape(hole.shape[0] // 8, 8, -1, 8).any(axis=(1, 3)).repeat(8, 0).repeat(8, 1)
        mask = torch.from_numpy(grown.copy())[None, None]
        x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        direct = decoded(row, image=x * mask.logical_not(), mask=mask)
        assert np.abs(made[hole].astype(int) - direct[hole]).max() <= 1
    assert seen >= 8


def edited(latents: Path, folder: Path, change: Any) -> Path:
    """The parts of the first shard, changed, as files of somebody's own."""
    for part in latents.glob("latents/*/sub~2F0.parquet"):
        target = folder / part.parent.name / part.name
        target.parent.mkdir(parents=True)
        pq.write_table(change(pq.ParquetFile(part).read()), target)
    return folder


def test_edited_files_find_their_shard_by_name_whatever_their_order(
    pairs: str, latents: Path, checkpoint: Path, tmp_path: Path
) -> None:
    folder = edited(latents, tmp_path / "edited", lambda table: table.take(list(range(table.num_rows))[::-1]))
    made = decode(f"{folder}/*/*.parquet", tmp_path / "out", checkpoint, originals={"urls": pairs})
    run(made)
    run(decode(str(latents), tmp_path / "all", checkpoint, originals={"urls": pairs}))
    wanted = {(row["key"], row["variant"]): row["image"]["bytes"] for row in rows_of(tmp_path / "all", "results")}
    rows = rows_of(tmp_path / "out", "results")
    assert len(rows) == 10
    for row in rows:
        a, b = (
            np.asarray(Image.open(io.BytesIO(each)))
            for each in (row["image"]["bytes"], wanted[row["key"], row["variant"]])
        )
        assert np.abs(a.astype(int) - b).max() <= 1
    with pytest.raises(ConfigurationError, match=r"originals\.urls has no shard called sub~2F0"):
        make_plan(
            decode(
                f"{folder}/*/*.parquet",
                tmp_path / "out2",
                checkpoint,
                originals={"urls": pairs.replace("*.tar", "1.tar")},
            )
        )


def test_a_column_from_elsewhere_with_a_stated_scaling(checkpoint: Path, tmp_path: Path) -> None:
    values = torch.randn(3, 4, 8, 6, generator=torch.Generator().manual_seed(0)).numpy()
    table = pa.table({"id": ["a", "b", "c"], "z": [(0.5 * one).ravel().tolist() for one in values]})
    pq.write_table(table, tmp_path / "z.parquet")
    shape = {"column": "z", "key": "id", "shape": "4,8,6"}
    run(decode(str(tmp_path / "z.parquet"), tmp_path / "out", checkpoint, latents=shape | {"scaling": 0.5}))
    rows = rows_of(tmp_path / "out", "results")
    for row, one in zip(rows, values, strict=True):
        assert (row["height"], row["width"]) == (64, 48)
        wanted = decoded({"mean": one.ravel().tolist(), "shape": [4, 8, 6]})
        assert np.abs(pixels_of(row).astype(int) - wanted).max() <= 1
    run(decode(str(tmp_path / "z.parquet"), tmp_path / "none", checkpoint, latents=shape))
    assert [row["code"] for row in rows_of(tmp_path / "none", "errors")] == ["latents_unscaled"]


# x-2 is wider and deeper than x-1-5, and as large; a block less in the encoder makes the picture twice as large.
LARGER: dict[int, dict[str, Any]] = {
    1: {"up_block_out_channels": (8, 16, 32, 32), "layers_per_up_block": 5},
    2: {"down_block_types": ("DownEncoderBlock2D",) * 3, "down_block_out_channels": (8, 8, 8)},
}


def save_changed(folder: Path, **changes: Any) -> Path:
    """Folder of the tiny checkpoint with another shape."""
    torch.manual_seed(0)
    derived = ("block_out_channels", "force_upcast")
    config = {name: value for name, value in tiny_model().config.items() if name not in derived}
    AsymmetricAutoencoderKL(**config | changes).save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("times", LARGER)
def test_a_larger_decoder_s_picture_has_the_original_s_known_pixels_at_its_own_size(
    times: int, pairs: str, tmp_path: Path
) -> None:
    larger = save_changed(tmp_path / "model", **LARGER[times])
    run(precompute(pairs, tmp_path / "latents", larger))
    nothing = {"dilate": 0, "feather": 0}
    originals = {"urls": pairs}
    run(decode(str(tmp_path / "latents"), tmp_path / "out", larger, originals=originals, mask=nothing))
    stored = {row["key"]: row for row in latents_of(tmp_path / "latents")}
    results = rows_of(tmp_path / "out", "results")
    assert len(results) == 10
    for result in results:
        row, made = stored[result["key"]], pixels_of(result)
        top, left, bottom, right = result["crop"]
        assert (
            made.shape == (times * (bottom - top), times * (right - left), 3) == (result["height"], result["width"], 3)
        )
        size = SIZES[int(result["key"][3])]
        seed = int(result["key"][3]) + 10 * int(result["key"][1])
        resized = (row["resized_width"] * times, row["resized_height"] * times)
        box = tuple(times * side for side in (left, top, right, bottom))
        whole = Image.fromarray(picture(*size, seed)).resize(resized, Image.Resampling.BICUBIC)
        hole = Image.fromarray(box_mask(*size, seed)).resize(resized, Image.Resampling.BOX)
        known = np.asarray(hole.filter(ImageFilter.MaxFilter(5)).crop(box)) == 0
        assert 0.2 < known.mean() < 1
        wanted = np.asarray(whole.crop(box)).astype(int)
        assert np.abs(made[known] - wanted[known]).max() <= 1  # a level may round the other way


def test_originals_are_refused_where_the_decoder_takes_none(pairs: str, latents: Path, tmp_path: Path) -> None:
    deep = {"up_block_types": ("UpDecoderBlock2D",) * 5, "up_block_out_channels": (8, 8, 16, 32, 32)}
    model = save_changed(tmp_path / "model", **deep)
    make_plan(decode(str(latents), tmp_path / "out", model))
    with pytest.raises(ConfigurationError, match=r"can't decode with image and mask.*leave image and mask out"):
        make_plan(decode(str(latents), tmp_path / "joined", model, originals={"urls": pairs}))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_encoded_stored_read_and_decoded_is_the_direct_path_to_the_stored_dtype_s_rounding(
    dtype: str, pairs: str, checkpoint: Path, tmp_path: Path
) -> None:
    run(precompute(pairs, tmp_path / "latents", checkpoint, output={"dtype": dtype}))
    run(decode(str(tmp_path / "latents"), tmp_path / "images", checkpoint))
    images = {row["key"]: pixels_of(row) for row in rows_of(tmp_path / "images", "results")}
    stored = {row["key"]: row for row in latents_of(tmp_path / "latents")}
    model, seen, whole = tiny_model(), set(), 0
    for batch in LatentDataset(str(tmp_path / "latents"), batch_size=3, sample=False):
        with torch.inference_mode():
            read = batch["latents"] / model.config.scaling_factor
            made = levels(model.decode(read).sample).numpy()
        for key, latent, shown in zip(batch["key"], read, made, strict=True):
            seen.add(key)
            assert np.abs(shown.astype(int) - images[key]).max() <= 1
            row, size = stored[key], SIZES[int(key[3])]
            if (row["resized_height"], row["resized_width"]) != size:
                continue
            whole += 1
            top, left, bottom, right = row["crop"]
            window = picture(*size, int(key[3]) + 10 * int(key[1]))[top:bottom, left:right]
            x = torch.from_numpy(window.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
            with torch.inference_mode():
                mean = model.encode(x).latent_dist.mean
                direct = levels(model.decode(mean.to(getattr(torch, dtype)).float()).sample)[0].numpy()
            unit = 2**-11 if dtype == "float16" else 2**-8
            torch.testing.assert_close(latent[None], mean, rtol=1.01 * unit, atol=1e-5)
            assert np.abs(shown.astype(int) - direct).max() <= 2
    assert seen == images.keys()
    assert whole >= 6


def test_bad_rows_are_error_rows_and_the_rest_are_results(checkpoint: Path, tmp_path: Path) -> None:
    good = [0.0] * (4 * 8 * 8)
    table = pa.table(
        {
            "key": ["good", "good", None, "null", "short", "nan", "thick"],
            "mean": [good, good, good, None, good[:-1], [float("nan"), *good[1:]], good],
            "shape": [[4, 8, 8]] * 6 + [[1, 16, 16]],
        }
    )
    pq.write_table(table, tmp_path / "z.parquet")
    run(decode(str(tmp_path / "z.parquet"), tmp_path / "out", checkpoint, latents={"scaling": 1.0}))
    assert [row["key"] for row in rows_of(tmp_path / "out", "results")] == ["good"]
    assert [row["code"] for row in rows_of(tmp_path / "out", "errors")] == [
        *("duplicate_key", "missing_key", "missing_latents", "latents_shape", "non_finite", "latents_channels")
    ]
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "z.parquet").read_bytes()[:-20])
    run(decode(str(tmp_path / "cut.parquet"), tmp_path / "cut", checkpoint, latents={"scaling": 1.0}))
    assert [row["code"] for row in rows_of(tmp_path / "cut", "errors")] == ["parquet_unreadable"]


def test_originals_that_are_missing_bad_or_of_another_size_are_error_rows(
    latents: Path, checkpoint: Path, tmp_path: Path
) -> None:
    made = {
        name: file_bytes(array, "PNG") for name, array in {"png": picture(96, 96), "mask.png": box_mask(96, 96)}.items()
    }
    samples = [
        ("s0-0", made),
        ("s0-1", made),
        ("s0-2", made | {"png": made["png"][:200]}),
        ("s0-3", {"png": made["png"]}),
    ]
    write_tar(tmp_path / "in" / "sub" / "0.tar", samples)
    write_tar(tmp_path / "in" / "sub" / "1.tar", [])
    run(decode(str(latents), tmp_path / "out", checkpoint, originals={"urls": f"{tmp_path}/in/*/*.tar"}))
    assert [(row["key"], row["variant"]) for row in rows_of(tmp_path / "out", "results")] == [("s0-0", 0), ("s0-0", 1)]
    codes = {row["key"]: row["code"] for row in rows_of(tmp_path / "out", "errors")}
    assert codes == {
        "s0-1": "original_size",
        "s0-2": "image_truncated",
        "s0-3": "missing_mask",
        "s0-4": "missing_original",
        **{f"s1-{number}": "missing_original" for number in range(5)},
    }


def test_other_originals_are_another_input(pairs: str, latents: Path, checkpoint: Path, tmp_path: Path) -> None:
    plain = make_plan(decode(str(latents), tmp_path, checkpoint)).shards
    joined = make_plan(decode(str(latents), tmp_path, checkpoint, originals={"urls": pairs})).shards
    assert [shard.name for shard in plain] == [shard.name for shard in joined]
    assert all(a.version != b.version for a, b in zip(plain, joined, strict=True))


def test_a_second_run_does_nothing_and_the_bytes_are_the_same_in_another(
    pairs: str, latents: Path, checkpoint: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        job = decode(str(latents), tmp_path / name, checkpoint, originals={"urls": pairs})
        run(job)
        assert run(job).plan.left == ()
    assert parts_of(tmp_path / "a") == parts_of(tmp_path / "b")


def test_an_output_that_is_no_latents_is_refused(pairs: str, latents: Path, checkpoint: Path, tmp_path: Path) -> None:
    run(decode(str(latents), tmp_path / "images", checkpoint))
    with pytest.raises(ConfigurationError, match="is the output of another job"):
        make_plan(decode(str(tmp_path / "images"), tmp_path / "out", checkpoint))
