"""Every setting says whether it affects the output, and tells the truth."""

from __future__ import annotations

import functools
import hashlib
import operator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asymvae.config import InpaintJob
from asymvae.fingerprint import sample_seed, settings_by_name, settings_that
from asymvae.pipeline.device import Device
from asymvae.pipeline.kinds.inpaint import InpaintKind
from asymvae.pipeline.plan import resolve
from asymvae.pipeline.shard_run import run_shard
from asymvae.storage.shards import list_shards
from tests.tiny import file_bytes, job, picture, sample, tiny_model, write_tar

# For every setting another value. None: it can't be flipped in one process on a CPU; the reason beside it.
FLIPPED: dict[str, Any] = {
    "input.urls": None,  # the shard itself
    "input.root": "/",
    "input.format": None,  # the tar read as Parquet is one error row; tested with the sources
    "input.key": None,  # Parquet only; tested with the sources
    "input.image": ["other.png"],
    "input.mask": ["other.mask.png"],
    "input.prompt": ["other.txt"],
    "input.overrides": ["settings"],
    "input.given": None,  # read by method given alone: see test_given_field
    "input.mask_polarity": "black_is_hole",
    "input.max_pixels": 100,
    "output.url": "elsewhere",
    "output.image_format": "webp",
    "output.quality": None,  # of JPEG alone: see test_quality
    "model.path": "elsewhere",
    "model.revision": "v2",
    "model.subfolder": "vae",
    "model.variant": "fp16",
    "model.dtype": "bfloat16",
    "model.tiling": True,
    "model.optimize": False,
    "model.compile": None,  # a minute of a compiler's time: see test_sizes_are_compiled_before_the_first_shard
    "inpaint.method": "none",
    "inpaint.variants": 2,
    "inpaint.options": {"tolerance": 0.5},
    "inpaint.diffusion.path": None,  # its files' digest decides: see test_diffusion.py
    "inpaint.diffusion.revision": None,  # so for these: they say which files
    "inpaint.diffusion.variant": None,
    "inpaint.diffusion.prompt": "{prompt} on a mat",
    "inpaint.diffusion.negative_prompt": "fog",
    "inpaint.diffusion.guidance_scale": 2.0,
    "inpaint.diffusion.steps": 3,
    "inpaint.diffusion.scheduler": "ddim",
    "inpaint.diffusion.strength": 0.6,
    "inpaint.diffusion.compile": None,  # minutes of a compiler's time
    "inpaint.diffusion.channels_last": True,
    "mask.dilate": 9,
    "mask.feather": 9,
    "mask.grid": 1,
    "geometry.mode": "whole",
    "geometry.margin": 8,
    "geometry.max": 64,
    "composite": "none",
    "workers.min": 2,
    "workers.max": 2,
    "workers.gpus": None,  # no GPU here
    "workers.accelerator_type": None,
    "workers.labels": {"ray.io/market-type": "spot"},
    "workers.cpu_threads": 2,
    "workers.batch_size": 3,
    "workers.shards_in_flight": 1,
    "workers.buffer_mb": 16,
    "workers.spool": "elsewhere",
    "workers.stall_timeout_s": 5.0,
    "ray.address": "auto",
    "ray.attempts": 0,
    "executor": "local",
    "seed": 7,
    "max_error_fraction": 0.9,
}


def flip(settings: InpaintJob, name: str, value: Any) -> InpaintJob:
    values = settings.model_dump()
    *sections, field = name.split(".")
    functools.reduce(operator.getitem, sections, values)[field] = value
    if name == "workers.min":
        values["workers"]["max"] = value
    return InpaintJob(**values)


@functools.cache
def parts(tar: Path, folder: Path, settings_json: str) -> str:
    """A digest of all parts of the shard under these settings."""
    settings = InpaintJob.model_validate_json(settings_json)
    kind = InpaintKind(settings)
    (shard,) = list_shards((str(tar),), root=None, format="auto")
    folder.mkdir(exist_ok=True)
    import torch

    model = tiny_model().to(getattr(torch, resolve(settings).model.dtype))
    outcome = run_shard(shard, folder, kind, Device(lambda: model, kind), lambda *_: None)
    return hashlib.sha256(b"".join(part.path.read_bytes() for part in outcome.parts)).hexdigest()


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    samples = []
    for number, size in enumerate([(160, 200), (96, 96), (160, 200), (200, 168)]):
        fields = sample(number, size)
        fields["other.png"] = file_bytes(picture(*size, seed=50 + number), "PNG")
        fields["other.mask.png"] = sample(number + 9, size)["mask.png"]
        fields["given.png"] = file_bytes(picture(*size, seed=70 + number), "PNG")
        fields["txt"], fields["other.txt"] = f"cat {number}".encode(), b"dog"
        fields["settings"] = b'{"asymvae": {"seed": 7}}'
        samples.append((f"k{number}", fields))
    return write_tar(tmp_path_factory.mktemp("shard") / "a.tar", samples)


def base(tar: Path) -> InpaintJob:
    return job(str(tar), "out", "checkpoint", input={"image": ["png"], "mask": ["mask.png"]})


def test_every_setting_is_listed_here(tar: Path) -> None:
    assert {name for name, _, _ in settings_by_name(base(tar))} == set(FLIPPED)


@pytest.mark.parametrize("name", [name for name, value in FLIPPED.items() if value is not None])
def test_flipping_a_setting_changes_the_bytes_just_where_it_says_so(
    name: str, tar: Path, diffusion_checkpoint: Path, tmp_path: Path
) -> None:
    before = base(tar)
    if name == "input.prompt" or name.startswith("inpaint.diffusion."):
        before = flip(before, "inpaint.method", "diffusion")
        before = flip(before, "inpaint.diffusion", {"path": str(diffusion_checkpoint), "steps": 2})
    after = flip(before, name, FLIPPED[name])
    affects = {known: affect for known, _, affect in settings_by_name(before)}[name]
    old = parts(tar, tmp_path / "old", before.model_dump_json())
    new = parts(tar, tmp_path / "new", after.model_dump_json())
    if affects == "yes":
        assert new != old
        assert settings_that(before, "yes") != settings_that(after, "yes")
    elif affects == "no":
        assert new == old
        assert settings_that(before, "yes") == settings_that(after, "yes")
    else:
        assert settings_that(before, "yes") == settings_that(after, "yes")  # bytes may differ, by rounding


def test_quality_matters_for_jpeg(tar: Path, tmp_path: Path) -> None:
    low, high = (
        parts(
            tar,
            tmp_path / str(quality),
            flip(flip(base(tar), "output.image_format", "jpeg"), "output.quality", quality).model_dump_json(),
        )
        for quality in (40, 95)
    )
    assert low != high


def test_given_field_matters_for_method_given(tar: Path, tmp_path: Path) -> None:
    given = flip(base(tar), "inpaint.method", "given")
    other = flip(given, "input.given", ["other.png"])
    assert parts(tar, tmp_path / "a", given.model_dump_json()) != parts(tar, tmp_path / "b", other.model_dump_json())


def test_a_samples_seed_hangs_on_what_it_is_alone() -> None:
    seeds = {sample_seed(seed, key, variant) for seed in (0, 1) for key in ("a", "b") for variant in (0, 1)}
    assert len(seeds) == 8
    assert sample_seed(0, "a", 0) == sample_seed(0, "a", 0)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert np.uint64(max(seeds))


def test_gpus_above_one_are_whole_as_ray_wants_them() -> None:
    assert job("unused", "unused", "unused", workers={"gpus": 0.5}).workers.gpus == 0.5
    with pytest.raises(ValueError, match=r"workers\.gpus is 1\.5; above 1 it must be a whole number"):
        job("unused", "unused", "unused", workers={"gpus": 1.5})
