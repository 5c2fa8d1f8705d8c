"""Whole jobs that precompute latents: what is stored, of what, where; and the same bytes whatever happens."""

from __future__ import annotations

import hashlib
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from ray.cluster_utils import Cluster

from asymvae.faults import Fault
from asymvae.pipeline.executor import RayExecutor
from asymvae.pipeline.job import run_job
from asymvae.pipeline.plan import ConfigurationError, make_plan
from asymvae.stages.encode_posterior import EncodePosterior
from asymvae.storage.audit import audit
from tests.tiny import file_bytes, parts_of, picture, rows_of, tiny_model, write_tar
from tests.tiny_latents import latents_of, precompute, run


def photo(number: int, height: int, width: int) -> dict[str, bytes]:
    return {
        "jpg": file_bytes(picture(height, width, number), "JPEG", quality=90),
        "txt": f"picture {number}".encode(),
        "json": json.dumps({"score": number / 8, "tags": ["a", "é"], "secret": 1}).encode(),
    }


SIZES = [(128, 128), (100, 180), (180, 100), (70, 60), (128, 130), (400, 300)]


def samples(shard: int) -> list[tuple[str, dict[str, bytes]]]:
    made = [(f"s{shard}-{n:02d}", photo(n + 10 * shard, *size)) for n, size in enumerate(SIZES)]
    made[2][1]["jpg"] = made[2][1]["jpg"][:300]
    made.append((f"s{shard}-tiny", photo(90, 20, 20)))
    return made


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three shards: five aspect ratios, a cut image and one that is too small in each."""
    folder = tmp_path_factory.mktemp("photos")
    for shard in range(3):
        write_tar(folder / f"{shard:05d}.tar", samples(shard))
    return str(folder / "*.tar")


SETTINGS: dict[str, Any] = {"crop": {"hflip": "both", "where": "random"}, "input": {"carry": ["score", "tags", "none"]}}


@pytest.fixture(scope="module")
def out(photos: str, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run in this process."""
    folder = tmp_path_factory.mktemp("latents")
    run(precompute(photos, folder, checkpoint, **SETTINGS))
    return folder


def test_every_image_has_a_row_a_variant_in_the_folder_of_its_bucket(out: Path) -> None:
    rows = latents_of(out)
    assert len(rows) == 3 * 5 * 2
    by_key = {(row["key"], row["variant"]): row for row in rows}
    buckets = {key: row["bucket"] for (key, _), row in by_key.items() if key.startswith("s0")}
    assert buckets == {
        "s0-00": "bucket=96x96",
        "s0-01": "bucket=64x128",
        "s0-03": "bucket=32x32",
        "s0-04": "bucket=96x96",
        "s0-05": "bucket=96x96",
    }
    for row in rows:
        height, width = map(int, row["bucket"].removeprefix("bucket=").split("x"))
        top, left, bottom, right = row["crop"]
        assert (bottom - top, right - left) == (height, width)
        assert row["shape"] == [4, height // 8, width // 8]
        assert len(row["mean"]) == len(row["logvar"]) == 4 * (height // 8) * (width // 8)
        assert 0 <= top <= bottom <= row["resized_height"] <= row["original_height"]
        assert row["hflip"] == (row["variant"] == 1)
    errors = rows_of(out, "errors")
    assert [(row["key"], row["variant"], row["code"]) for row in errors[:4]] == [
        ("s0-02", 0, "image_truncated"),
        ("s0-02", 1, "image_truncated"),
        ("s0-tiny", 0, "image_too_small"),
        ("s0-tiny", 1, "image_too_small"),
    ]
    assert len(errors) == 12


def test_caption_chosen_fields_and_source_go_along(out: Path) -> None:
    row = next(row for row in latents_of(out) if row["key"] == "s1-04")
    assert row["caption"] == "picture 14"
    assert json.loads(row["json"]) == {"score": 14 / 8, "tags": ["a", "é"]}
    source = dict(samples(1))["s1-04"]["jpg"]
    assert row["source_sha256"] == hashlib.sha256(source).hexdigest()
    assert (row["original_height"], row["original_width"]) == (128, 130)


def test_the_latents_are_the_encoder_s_of_the_stated_window(out: Path) -> None:
    model = tiny_model()
    sources = {key: fields["jpg"] for shard in range(3) for key, fields in samples(shard)}
    for row in latents_of(out)[:12]:
        if row["key"].endswith("05"):
            continue  # decoded at reduced scale: near, not equal; see tests/media/test_reduced_jpeg.py
        image = Image.open(io.BytesIO(sources[row["key"]])).convert("RGB")
        size = (row["resized_width"], row["resized_height"])
        top, left, bottom, right = row["crop"]
        shown = np.asarray(image.resize(size, Image.Resampling.BICUBIC))[top:bottom, left:right]
        shown = shown[:, ::-1] if row["hflip"] else shown
        x = torch.from_numpy(shown.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.inference_mode():
            posterior = model.encode(x).latent_dist
        for name in ("mean", "logvar"):
            wanted = getattr(posterior, name)[0].numpy()
            stored = np.array(row[name], np.float32).reshape(row["shape"])
            # float16 keeps 11 bits; a level of the window may round the other way (see test_buckets).
            assert np.abs(stored - wanted).max() <= 2e-3 * max(1.0, np.abs(wanted).max())


def test_the_parts_say_what_they_hold(out: Path, checkpoint: Path) -> None:
    job = json.loads((out / "_job.json").read_text())
    assert job["job"] == "precompute_latents"
    part = next(out.glob("latents/*/*.parquet"))
    metadata = pq.read_schema(part).metadata
    assert metadata[b"asymvae.scaling_factor"] == repr(tiny_model().config.scaling_factor).encode()
    assert metadata[b"asymvae.weights_sha256"].decode() == job["model"]["weights_sha256"]
    assert metadata[b"asymvae.model"].decode() == job["model"]["name"] == str(checkpoint)
    records = [json.loads(path.read_text()) for path in sorted(out.glob("_commits/*.json"))]
    assert [record["counts"] for record in records] == [
        {"samples": 7, "planned": 14, "results": 10, "errors": 4, "shard_errors": 0}
    ] * 3
    named = {part["object"] for record in records for part in record["parts"]}
    assert named == set(parts_of(out))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_dtype_holds_the_same_numbers_to_its_rounding(
    dtype: str, photos: str, checkpoint: Path, tmp_path: Path, out: Path
) -> None:
    run(precompute(photos, tmp_path, checkpoint, **SETTINGS, output={"dtype": dtype}))
    for row, half in zip(latents_of(tmp_path), latents_of(out), strict=True):
        values = np.array(row["mean"], np.uint16 if dtype == "bfloat16" else np.float32)
        if dtype == "bfloat16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_allclose(values, np.array(half["mean"], np.float32), rtol=2**-7, atol=1e-4)


def test_one_size_for_all_and_a_model_of_another_path_in_one_output(
    photos: str, checkpoint: Path, tmp_path: Path
) -> None:
    fixed = precompute(photos, tmp_path / "out", checkpoint, crop={"mode": "fixed", "size": "64,48"})
    run(fixed)
    assert {row["bucket"] for row in latents_of(tmp_path / "out")} == {"bucket=64x48"}
    before = parts_of(tmp_path / "out")
    copy = tmp_path / "copy"
    copy.symlink_to(checkpoint)
    for record in (tmp_path / "out" / "_commits").glob("00001.*"):
        record.unlink()
    run(fixed.model_copy(update={"model": fixed.model.model_copy(update={"path": str(copy)})}))
    assert parts_of(tmp_path / "out") == before


class Odd:
    """An encoder whose output is what a test wants."""

    def __init__(self, mean: torch.Tensor) -> None:
        self.latent_dist = self
        self.mean, self.logvar = mean, torch.zeros_like(mean)

    def encode(self, _: torch.Tensor) -> Odd:
        return self


def test_what_float16_cannot_hold_is_caught_before_it_is_cast() -> None:
    values = torch.zeros(4, 4, 2, 2)
    values[1, 0, 0, 0] = 70_000.0
    values[2, 0, 0, 0] = float("nan")
    values[3, 0, 0, 0] = float("inf")
    model: Any = Odd(values)
    for dtype, overflows in (("float16", [False, True, False, False]), ("bfloat16", [False] * 4)):
        _, _, failed = EncodePosterior(model, dtype)(torch.zeros(4, 3, 16, 16))  # type: ignore[arg-type]
        assert [(fault.code, bad.tolist()) for fault, bad in failed] == [
            ("latents_non_finite", [False, False, True, True]),
            ("latents_overflow", overflows),
        ]
    assert Fault("latents_overflow", {"dtype": "float16"}).message.endswith("float16 can hold")


def test_an_overflow_is_an_error_row_and_its_neighbours_are_results(photos: str, tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.quant_conv.weight.mul_(1e6)
    model.save_pretrained(str(tmp_path / "loud"))
    run(precompute(photos, tmp_path / "out", tmp_path / "loud"))
    codes = {row["code"] for row in rows_of(tmp_path / "out", "errors")}
    assert codes == {"image_truncated", "image_too_small", "latents_overflow"}
    run(precompute(photos, tmp_path / "wide", tmp_path / "loud", output={"dtype": "float32"}))
    assert len(latents_of(tmp_path / "wide")) == 15


def test_a_json_that_is_none_is_an_error_only_where_its_fields_are_wanted(checkpoint: Path, tmp_path: Path) -> None:
    fields = photo(0, 128, 128)
    broken = [("a", fields | {"json": b"{"}), ("b", fields | {"json": b'{"x": NaN}'}), ("c", {"txt": b"no image"})]
    tar = write_tar(tmp_path / "a.tar", [*broken, ("d", fields), ("d", fields)])
    run(precompute(str(tar), tmp_path / "carried", checkpoint, input={"carry": "x"}))
    assert [row["code"] for row in rows_of(tmp_path / "carried", "errors")] == [
        *("json_invalid", "json_invalid", "missing_image", "duplicate_key")
    ]
    run(precompute(str(tar), tmp_path / "plain", checkpoint))
    assert [row["code"] for row in rows_of(tmp_path / "plain", "errors")] == ["missing_image", "duplicate_key"]
    assert latents_of(tmp_path / "plain")[0]["json"] is None


def test_buckets_that_the_model_cannot_take_are_refused_with_the_setting(
    photos: str, checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=r"crop\.size gives 60x64, and the model takes multiples of 8"):
        make_plan(precompute(photos, tmp_path, checkpoint, crop={"mode": "fixed", "size": [60, 64]}))
    with pytest.raises(ConfigurationError, match=r"crop\.table gives 65x64"):
        make_plan(precompute(photos, tmp_path, checkpoint, crop={"table": "65x64"}))
    with pytest.raises(ValueError, match="neither HEIGHTxWIDTH"):
        precompute(photos, tmp_path, checkpoint, crop={"table": "64"})


def test_the_output_of_another_kind_of_job_is_refused(photos: str, checkpoint: Path, out: Path) -> None:
    from tests.tiny import job

    with pytest.raises(ConfigurationError, match='job: was "precompute_latents", is "inpaint"'):
        make_plan(job(photos, out, checkpoint))


def test_two_actors_give_the_same_bytes(
    cluster: Cluster, photos: str, checkpoint: Path, tmp_path: Path, out: Path
) -> None:
    result = run_job(precompute(photos, tmp_path, checkpoint, **SETTINGS, workers={"min": 2, "max": 2}), RayExecutor())
    assert result.exit_code == 0, result
    assert parts_of(tmp_path) == parts_of(out)


@pytest.mark.timeout(240)
def test_a_driver_killed_and_restarted_gives_the_same_bytes(
    photos: str, checkpoint: Path, tmp_path: Path, out: Path
) -> None:
    folder = tmp_path / "out"
    command = [sys.executable, "-m", "jobs.precompute_latents", f"--input.urls={photos}", f"--output.url={folder}"]
    command += [f"--model.path={checkpoint}", "--workers.gpus=0", "--workers.batch_size=4", "--max_error_fraction=1"]
    command += ["--workers.shards_in_flight=1", "--crop.base=96", "--crop.step=32", "--crop.least=32"]
    command += ["--crop.hflip=both", "--crop.where=random", "--input.carry=score,tags,none", "--executor=local"]
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        while not list((folder / "_commits").glob("*.json")):
            assert driver.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.005)
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    committed = len(list((folder / "_commits").glob("*.json")))
    result = run(precompute(photos, folder, checkpoint, **SETTINGS))
    assert len(result.plan.left) == 3 - committed
    assert parts_of(folder) == parts_of(out)


def test_to_and_from_an_object_store(photos: str, checkpoint: Path, s3_url: str, out: Path) -> None:
    from asymvae.storage.filesystem import list_files, put_if_absent, read_bytes

    for path in sorted(Path(photos).parent.glob("*.tar")):
        put_if_absent(f"{s3_url}/in/{path.name}", path)
    result = run(precompute(f"{s3_url}/in/*.tar", f"{s3_url}/out", checkpoint, **SETTINGS))
    assert audit(f"{s3_url}/out", deep=False, shards=result.plan.shards).ok
    found = {name: read_bytes(f"{s3_url}/out/{name}") for name in list_files(f"{s3_url}/out", recursive=True)}
    assert {name: content for name, content in found.items() if name.endswith(".parquet")} == parts_of(out)
