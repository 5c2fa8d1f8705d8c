"""Every setting of the two jobs of latents tells the truth of what it does to the bytes."""

from __future__ import annotations

import functools
import hashlib
import json
import operator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from asymvae.config import ShardJob
from asymvae.config_latents import DecodeJob, PrecomputeJob
from asymvae.fingerprint import settings_by_name, settings_that
from asymvae.pipeline.device import Device
from asymvae.pipeline.kinds.choice import kind_of
from asymvae.pipeline.plan import resolve
from asymvae.pipeline.shard_run import run_shard
from tests.tiny import box_mask, file_bytes, picture, tiny_model, write_tar
from tests.tiny_latents import decode, precompute

# For every setting of its own another value. None: it can't be flipped here, for the reason beside it.
PRECOMPUTE: dict[str, Any] = {
    "input.urls": None,  # the shard itself
    "input.root": "/",
    "input.format": None,  # the tar read as Parquet is one error row
    "input.key": None,  # Parquet only
    "input.image": ["other.png"],
    "input.prompt": ["other.txt"],
    "input.metadata": ["other.json"],
    "input.carry": ["score", "more"],
    "input.max_pixels": 100,
    "output.url": "elsewhere",
    "output.dtype": "bfloat16",
    "crop.mode": "fixed",
    "crop.base": 96,
    "crop.step": 32,
    "crop.max_ratio": 1.0,
    "crop.least": 48,
    "crop.table": ["64x64"],
    "crop.size": None,  # of mode fixed: see test_size
    "crop.where": "random",
    "crop.hflip": "both",
    "crop.enlarge": True,
    "crop.reduced_jpeg": False,
    "seed": None,  # with crop.where random: see test_seed
}
DECODE: dict[str, Any] = {
    "input.urls": None,  # the shard itself
    "input.root": None,  # names, by which the originals are found
    "input.format": None,  # how shards are listed
    "output.url": "elsewhere",
    "output.image_format": "webp",
    "output.quality": None,  # of JPEG
    "latents.column": "logvar",
    "latents.key": "other",
    "latents.shape": (4, 4, 8),
    "latents.scaling": 0.5,
    "originals.urls": None,  # whether there are any: see test_decode_latents.py
    "originals.root": None,  # so is this
    "originals.format": None,  # the tar read as Parquet
    "originals.key": None,  # Parquet only
    "originals.image": ["other.png"],
    "originals.mask": ["other.mask.png"],
    "originals.mask_polarity": "black_is_hole",
    "originals.max_pixels": 100,
    "mask.dilate": 9,
    "mask.feather": 9,
    "mask.grid": 1,
    "composite": "none",
    "seed": None,  # nothing is drawn
}
COMMON = ("model.", "workers.", "ray.", "executor", "max_error_fraction")  # of the pipeline: see test_config.py


def flip(settings: Any, name: str, value: Any) -> Any:
    values = settings.model_dump()
    *sections, field = name.split(".")
    functools.reduce(operator.getitem, sections, values)[field] = value
    return type(settings)(**values)


def digest(settings: ShardJob, folder: Path) -> str:
    """Of all parts of the one shard of these settings."""
    folder.mkdir(exist_ok=True)
    kind = kind_of(resolve(settings), "model")
    (shard,) = kind.shards(None)[1]
    device = Device(tiny_model, kind)
    outcome = run_shard(shard, folder, kind, device, lambda *_: None)
    return hashlib.sha256(b"".join(part.path.read_bytes() for part in outcome.parts)).hexdigest()


def check(before: Any, name: str, value: Any, folder: Path) -> None:
    after = flip(before, name, value)
    affects = {known: affect for known, _, affect in settings_by_name(before)}[name]
    old, new = digest(before, folder / "old"), digest(after, folder / "new")
    assert (old != new) == (affects == "yes")
    assert (settings_that(before, "yes") != settings_that(after, "yes")) == (affects == "yes")


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = []
    for number, size in enumerate([(100, 160), (96, 96), (50, 60), (30, 40), (500, 410)]):
        image = picture(*size, number)
        fields = {"jpg": file_bytes(image, "JPEG"), "other.png": file_bytes(image[::-1], "PNG")}
        fields |= {"mask.png": file_bytes(box_mask(*size, number), "PNG")}
        fields |= {"other.mask.png": file_bytes(box_mask(*size, number + 7), "PNG")}
        fields |= {"txt": b"a cat", "other.txt": b"a dog"}
        fields |= {"json": json.dumps({"score": number, "more": 1}).encode(), "other.json": b'{"score": 99}'}
        samples.append((f"k{number}", fields))
    return write_tar(tmp_path_factory.mktemp("shard") / "a.tar", samples)


def precomputing(tar: Path) -> PrecomputeJob:
    chosen = {"image": "jpg", "carry": "score"}
    return precompute(str(tar), "out", "model", input=chosen, crop={"least": 80, "base": 80, "step": 16})


@pytest.fixture(scope="module")
def latents(tar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of latents of the shard ``a``: of its first bucket, with a second key and a shape of its own."""
    folder = tmp_path_factory.mktemp("latents")
    settings = precompute(str(tar), "out", "model", input={"image": "jpg"}, crop={"mode": "fixed", "size": "64,32"})
    kind = kind_of(resolve(settings), "model")
    (shard,) = kind.shards(None)[1]
    outcome = run_shard(shard, folder, kind, Device(tiny_model, kind), lambda *_: None)
    (part,) = [part for part in outcome.parts if part.kind != "errors"]
    table = pq.ParquetFile(part.path).read()
    table = table.append_column("other", [[f"x{key}" for key in table["key"].to_pylist()]])
    path = folder / "files" / "a.parquet"
    path.parent.mkdir()
    pq.write_table(table, path)
    return path


def decoding(latents: Path, tar: Path) -> DecodeJob:
    originals = {"urls": str(tar), "image": "jpg", "mask": "mask.png"}
    return decode(str(latents), "out", "model", originals=originals, mask={"dilate": 2, "feather": 2, "grid": 8})


def test_every_setting_is_listed_here(tar: Path, latents: Path) -> None:
    for job, listed in ((precomputing(tar), PRECOMPUTE), (decoding(latents, tar), DECODE)):
        own = {name for name, _, _ in settings_by_name(job) if not name.startswith(COMMON)}
        assert own == set(listed)


@pytest.mark.parametrize("name", [name for name, value in PRECOMPUTE.items() if value is not None])
def test_flipping_a_setting_of_precompute(name: str, tar: Path, tmp_path: Path) -> None:
    check(precomputing(tar), name, PRECOMPUTE[name], tmp_path)


@pytest.mark.parametrize("name", [name for name, value in DECODE.items() if value is not None])
def test_flipping_a_setting_of_decode(name: str, latents: Path, tar: Path, tmp_path: Path) -> None:
    check(decoding(latents, tar), name, DECODE[name], tmp_path)


def test_size_matters_for_fixed_and_seed_for_random(tar: Path, tmp_path: Path) -> None:
    check(flip(precomputing(tar), "crop.mode", "fixed"), "crop.size", (32, 32), tmp_path)
    check(flip(precomputing(tar), "crop.where", "random"), "seed", 7, tmp_path)
