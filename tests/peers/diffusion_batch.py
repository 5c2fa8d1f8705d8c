"""One batch, through our stages and through diffusers' StableDiffusionInpaintPipeline."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from asymvae.batch import Item, collate
from asymvae.inpaint.diffusion import DiffusionFill
from asymvae.model import AsymmetricAutoencoderKL
from asymvae.stages.decode import Decode
from asymvae.stages.encode import Encode
from asymvae.stages.inpaint import Inpaint
from tests.tiny import box_mask, picture

PROMPTS = ("a cat", "dog, on a mat", "", "blue", "a cat", "7 birds!", "wood " * 40, "dog")


def items(count: int, height: int = 64, width: int = 64, first: int = 0) -> list[Item]:
    """Samples with their own picture, mask, prompt and seed, at work size, their masks on no grid."""
    made = []
    for number in range(first, first + count):
        mask = box_mask(height, width, number) > 0
        mask[3, 5] = mask[height // 2 + 1, 1:] = True  # specks and lines that the corner of a cell misses
        made.append(
            Item(
                index=number,
                key=str(number),
                variant=0,
                seed=2**62 + 17 * number,
                image=picture(height, width, number),
                mask=mask,
                valid=(height, width),
                prompt=PROMPTS[number % len(PROMPTS)],
            )
        )
    return made


def peer_of(vae: AsymmetricAutoencoderKL) -> diffusers.AsymmetricAutoencoderKL:
    """diffusers' own class with the same weights, in float32 on the CPU."""
    arguments = inspect.signature(AsymmetricAutoencoderKL).parameters
    peer = diffusers.AsymmetricAutoencoderKL(**{name: vae.config[name] for name in arguments}).eval()
    peer.load_state_dict(vae.state_dict())
    return peer


def pipeline_of(path: Path, vae: Any, scheduler: tuple[str, dict[str, Any]] | None = None) -> Any:
    """diffusers' pipeline with ``vae`` in place of the checkpoint's own; ``scheduler``: a class's name, and options."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = diffusers.StableDiffusionInpaintPipeline.from_pretrained(
            path, vae=vae, safety_checker=None, requires_safety_checker=False, low_cpu_mem_usage=False
        )
    if scheduler is not None:
        pipe.scheduler = getattr(diffusers, scheduler[0]).from_config(pipe.scheduler.config, **scheduler[1])
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.inference_mode()
def by_pipeline(pipe: Any, samples: Sequence[Item], **options: Any) -> Tensor:
    """(N, 3, H, W) in [0, 1]."""
    batch = collate(list(samples), len(samples), pipe.device, torch.float32)
    height, width = samples[0].image.shape[:2]
    out: Tensor = pipe(
        prompt=[sample.prompt for sample in samples],
        image=batch.image / 2 + 0.5,
        mask_image=batch.mask,
        height=height,
        width=width,
        generator=[torch.Generator().manual_seed(sample.seed) for sample in samples],
        output_type="pt",
        **options,
    ).images
    return out


@torch.inference_mode()
def by_ours(fill: DiffusionFill, vae: AsymmetricAutoencoderKL, samples: Sequence[Item]) -> Tensor:
    """(N, 3, H, W) in [0, 1]: the job's stages from items to decoded images. ``fill`` has been loaded."""
    batch = collate(list(samples), len(samples), vae.device, vae.dtype)
    for stage in (Encode(vae, fill), Inpaint(vae, fill), Decode(vae)):
        batch = stage(batch)
    assert batch.decoded is not None
    return (batch.decoded / 2 + 0.5).clamp(0, 1)


def loaded(path: Path, vae: AsymmetricAutoencoderKL, **settings: Any) -> DiffusionFill:
    fill = DiffusionFill(str(path), **settings)
    fill.load(vae, vae.device, vae.dtype)
    return fill


def largest(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
