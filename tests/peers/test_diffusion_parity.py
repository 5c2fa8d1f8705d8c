"""``inpaint.method: diffusion`` beside diffusers' pipeline with its own class of autoencoder: same batch, same images.

Work images and masks go into both; ``mask.grid`` is 1, as the masks' lines and specks lie on no grid.
"""

from __future__ import annotations

import io
import itertools
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from asymvae.config import GeometrySettings, InpaintSettings, MaskSettings
from asymvae.inpaint.schedulers import SCHEDULERS
from asymvae.model import AsymmetricAutoencoderKL
from asymvae.stages.composite import composite
from asymvae.stages.prepare import Planned, Prepare
from tests.model.small import randomise
from tests.peers.diffusion_batch import by_ours, by_pipeline, items, largest, loaded, peer_of, pipeline_of
from tests.tiny import file_bytes, job, picture, tiny_model
from tests.tiny_diffusion import write_tiny_diffusion

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 4
ISSUE = ("ddim", "pndm", "euler", "dpm-solver++")
CASES = list(itertools.product((9, 4), ISSUE, (1.0, 0.6), (7.5, 1.0)))
SHAPES = ((64, 64), (48, 80))
BATCHES = (1, 3, 8)


@lru_cache(maxsize=1)
def _vae() -> AsymmetricAutoencoderKL:
    made = tiny_model().requires_grad_(False)
    randomise(made, 3)
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """By the UNet's input channels."""
    return {
        channels: write_tiny_diffusion(tmp_path_factory.mktemp("diffusion"), in_channels=channels)
        for channels in (9, 4)
    }


def _pipe(folder: Path, scheduler: str | None) -> Any:
    return pipeline_of(folder, peer_of(_vae()), None if scheduler is None else SCHEDULERS[scheduler])


@pytest.mark.parametrize(("channels", "scheduler", "strength", "guidance"), CASES)
def test_a_batch_equals_the_pipelines(
    folders: dict[int, Path], channels: int, scheduler: str, strength: float, guidance: float
) -> None:
    # Shape and batch size go round, so that every one meets every other setting.
    number = CASES.index((channels, scheduler, strength, guidance))
    height, width = SHAPES[(number + number // 2 + number // 4 + number // 16) % 2]
    samples = items(BATCHES[number % 3], height, width, first=number % 8)
    theirs = by_pipeline(
        _pipe(folders[channels], scheduler),
        samples,
        num_inference_steps=STEPS,
        strength=strength,
        guidance_scale=guidance,
    )
    fill = loaded(
        folders[channels],
        _vae(),
        steps=STEPS,
        scheduler=scheduler,
        strength=strength,
        guidance_scale=guidance,
    )
    assert theirs.std() > 0.1
    assert largest(by_ours(fill, _vae(), samples), theirs) <= 1e-4


@pytest.mark.parametrize("scheduler", [None, *sorted(SCHEDULERS.keys() - set(ISSUE))])
@pytest.mark.parametrize("channels", [9, 4])
def test_every_other_scheduler_draws_as_the_pipelines(
    folders: dict[int, Path], channels: int, scheduler: str | None
) -> None:
    """Those that draw noise of their own do so after the masked image's posterior, which a 4-channel UNet has too."""
    samples = items(2)
    options = {"strength": 0.8 if channels == 4 else 1.0, "guidance_scale": 3.0}
    theirs = by_pipeline(_pipe(folders[channels], scheduler), samples, num_inference_steps=STEPS, **options)
    fill = loaded(folders[channels], _vae(), steps=STEPS, scheduler=scheduler, **options)
    assert largest(by_ours(fill, _vae(), samples), theirs) <= 1e-4


@pytest.mark.parametrize(("channels", "strength"), [(9, 1.0), (4, 0.6)])
def test_one_at_a_time_gives_what_the_batch_gives(folders: dict[int, Path], channels: int, strength: float) -> None:
    samples = items(8)
    fill = loaded(folders[channels], _vae(), steps=STEPS, strength=strength)
    batch = by_ours(fill, _vae(), samples)
    alone = torch.cat([by_ours(fill, _vae(), [sample]) for sample in samples])
    pipe = _pipe(folders[channels], None)
    options = {"num_inference_steps": STEPS, "strength": strength}
    theirs = by_pipeline(pipe, samples, **options)
    theirs_alone = torch.cat([by_pipeline(pipe, [sample], **options) for sample in samples])
    assert largest(batch, alone) <= max(5e-4, 2 * largest(theirs, theirs_alone))


def test_negative_prompts_are_the_pipelines(folders: dict[int, Path]) -> None:
    samples = items(3)
    plain = by_ours(loaded(folders[9], _vae(), steps=STEPS), _vae(), samples)
    samples[1].negative_prompt = "dog"
    negatives = ["a cat", "dog", "a cat"]
    theirs = by_pipeline(_pipe(folders[9], None), samples, num_inference_steps=STEPS, negative_prompt=negatives)
    ours = by_ours(loaded(folders[9], _vae(), steps=STEPS, negative_prompt="a cat"), _vae(), samples)
    assert largest(ours, theirs) <= 1e-4
    assert largest(ours, plain) > 1e-2


@pytest.mark.parametrize("steps_offset", [0, 1])
def test_old_scheduler_configurations_are_mended_as_by_the_pipeline(tmp_path: Path, steps_offset: int) -> None:
    folder = write_tiny_diffusion(tmp_path)
    file = folder / "scheduler" / "scheduler_config.json"
    text = file.read_text().replace('"steps_offset": 1', f'"steps_offset": {steps_offset}')
    file.write_text(text.replace('"skip_prk_steps": true', '"skip_prk_steps": false'))
    for scheduler in (None, "ddim"):
        theirs = by_pipeline(_pipe(folder, scheduler), items(1), num_inference_steps=STEPS)
        fill = loaded(folder, _vae(), steps=STEPS, scheduler=scheduler)
        assert largest(by_ours(fill, _vae(), items(1)), theirs) <= 1e-4


# Holes that the margin makes 64x64, by (height, width) of the image and (top, left, bottom, right): in the middle of
# an image, and where the crop touches its borders.
_CROPS = (((100, 140), (30, 50, 62, 82)), ((64, 130), (20, 70, 48, 102)), ((120, 64), (50, 10, 82, 40)))


def _sample(number: int) -> dict[str, bytes]:
    (height, width), (top, left, bottom, right) = _CROPS[number]
    mask = np.zeros((height, width), np.uint8)
    mask[top:bottom, left:right] = 255
    mask[top + 5 : bottom - 5, left + 7 : left + 11] = 0  # something known inside
    return {
        "image": file_bytes(picture(height, width, number), "PNG"),
        "mask": file_bytes(mask, "PNG"),
        "prompt": ("a cat", "dog", "")[number].encode(),
    }


@torch.inference_mode()
def test_crops_in_a_batch_equal_padding_mask_crop_one_by_one(folders: dict[int, Path]) -> None:
    """Whole images, pasted, to one 8-bit level. The crops need no resizing, which we never do upwards; and the mask is
    hard, since the pipeline's paste is."""
    settings = job(
        "unused",
        "unused",
        "unused",
        inpaint=InpaintSettings(method="diffusion"),
        mask=MaskSettings(dilate=0, feather=0, grid=1),
        geometry=GeometrySettings(margin=16),
    )
    fill = loaded(folders[9], _vae(), steps=STEPS)
    planned = []
    for number in range(len(_CROPS)):
        one = Prepare(settings, fill, 8)(number, f"key {number}", _sample(number))
        assert isinstance(one, Planned)
        planned.append(one)
    samples = [one.items[0] for one in planned]
    assert [sample.image.shape for sample in samples] == [(64, 64, 3)] * 3
    decoded = (by_ours(fill, _vae(), samples) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    pipe = _pipe(folders[9], None)
    for one, sample, pixels in zip(planned, samples, decoded, strict=True):
        fields = _sample(sample.index)
        original = Image.open(io.BytesIO(fields["image"]))
        theirs = pipe(
            prompt=sample.prompt,
            image=original,
            mask_image=Image.open(io.BytesIO(fields["mask"])),
            height=64,
            width=64,
            padding_mask_crop=16,
            num_inference_steps=STEPS,
            generator=torch.Generator().manual_seed(sample.seed),
        ).images[0]
        ours = composite(one.prepared, pixels, "paste").astype(int)
        assert np.abs(ours - np.asarray(theirs)).max() <= 1
        assert np.abs(ours - np.asarray(original)).max() > 10
