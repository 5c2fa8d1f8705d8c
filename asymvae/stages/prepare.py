"""Prepare: one sample's bytes to what the network sees of it, on the CPU, in a thread of the decode pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asymvae.batch import Item
from asymvae.config import InpaintJob
from asymvae.faults import Fault
from asymvae.fingerprint import sample_seed
from asymvae.inpaint.base import Inpainter
from asymvae.media.geometry import Placement, image_to_work, mask_to_work, place
from asymvae.media.image import Image, decode_image
from asymvae.media.mask import blend_mask, decode_mask, grow_to_grid, hole_box, model_mask, resize_mask
from asymvae.stages.overrides import Overrides, read_overrides

# What one sample holds at its peak, in bytes a pixel of its image: the original, masks while they are dilated, the work
# image, the result and its encoded form. Measured, generously; it bounds the samples in flight, see ByteBudget.
BYTES_A_PIXEL = 24
# And for every further variant: its decoded pixels and their encoded form, which noise doesn't shrink.
BYTES_A_PIXEL_A_VARIANT = 7


@dataclass(slots=True)
class Prepared:
    """A sample as the finishing step needs it. ``placement`` is None where it passes through."""

    index: int
    key: str
    original: Image
    blend: NDArray[np.float32]  # (H, W) in [0, 1], 1 = hole
    hole_fraction: float
    placement: Placement | None
    prompt: str | None = None  # what the hole is filled with
    negative_prompt: str | None = None


@dataclass(slots=True)
class Planned:
    """What became of a sample: a row for every variant, to be filled on the device or passed through."""

    prepared: Prepared
    seeds: Sequence[int]
    items: Sequence[Item]  # empty where it passes through


class Prepare:
    """Sample -> Planned, or the fault that makes it an error row.

    Args:
        factor: the model's reduction from pixels to latents; work images are multiples of it.
    """

    def __init__(self, job: InpaintJob, inpainter: Inpainter, factor: int) -> None:
        self.job = job
        self.inpainter = inpainter
        self.factor = factor

    def __call__(self, index: int, key: str, fields: Mapping[Any, bytes]) -> Planned | Fault:
        """``fields``: bytes by role (image, mask, prompt, given, json), as far as the sample has them."""
        limit = self.job.input.max_pixels
        if "image" not in fields:
            return Fault("missing_image")
        if "mask" not in fields:
            return Fault("missing_mask")
        overrides = read_overrides(fields["json"], self.inpainter.overrides) if "json" in fields else Overrides()
        if isinstance(overrides, Fault):
            return overrides
        original = decode_image(fields["image"], max_pixels=limit)
        if isinstance(original, Fault):
            return original
        height, width = original.pixels.shape[:2]
        mask = decode_mask(fields["mask"], max_pixels=limit, polarity=self.job.input.mask_polarity)
        if isinstance(mask, Fault):
            return mask
        mask = resize_mask(mask, height, width)
        if isinstance(mask, Fault):
            return mask
        given = self._given(fields, height, width)
        if isinstance(given, Fault):
            return given

        dilate, feather = self.job.mask.dilate, self.job.mask.feather
        blend = blend_mask(mask, dilate=dilate, feather=feather)
        binary = model_mask(blend, soft=dilate > 0 or feather > 0)
        box = hole_box(binary)
        seed = self.job.seed if overrides.seed is None else overrides.seed
        seeds = [sample_seed(seed, key, variant) for variant in range(self.job.inpaint.variants)]
        prepared = Prepared(index, key, original, blend, float((mask >= 0.5).mean()), None)
        if box is None and self.job.composite == "paste":
            return Planned(prepared, seeds, ())

        placement = place(
            height,
            width,
            box,
            mode=self.job.geometry.mode,
            margin=self.job.geometry.margin,
            max_side=self.job.geometry.max,
            factor=self.factor,
        )
        prepared.placement = placement
        work_image = image_to_work(original.pixels, placement)
        work_mask = grow_to_grid(mask_to_work(binary, placement), self.job.mask.grid)
        work_given = image_to_work(given, placement) if given is not None else None
        prompt = fields["prompt"].decode(errors="replace") if "prompt" in fields else None
        items = []
        for variant, own_seed in enumerate(seeds):
            item = Item(
                index=index,
                key=key,
                variant=variant,
                seed=own_seed,
                image=work_image,
                mask=work_mask,
                valid=placement.resized,
                given=work_given,
                prompt=prompt,
                template=overrides.prompt,
                negative_prompt=overrides.negative_prompt,
            )
            item.batch_key = self.inpainter.batch_key(item)
            items.append(item)
        fault = self.inpainter.check(items[0])
        if fault is not None:
            return fault
        prepared.prompt, prepared.negative_prompt = self.inpainter.prompts_of(items[0])
        return Planned(prepared, seeds, items)

    def _given(self, fields: Mapping[Any, bytes], height: int, width: int) -> NDArray[np.uint8] | Fault | None:
        if not self.inpainter.needs_given:
            return None
        if "given" not in fields:
            return Fault("missing_given")
        given = decode_image(fields["given"], max_pixels=self.job.input.max_pixels)
        if isinstance(given, Fault):
            return given if given.code == "image_too_large" else Fault("given_undecodable")
        if given.pixels.shape[:2] != (height, width):
            given_height, given_width = given.pixels.shape[:2]
            values = {"given_width": given_width, "given_height": given_height, "width": width, "height": height}
            return Fault("given_size", values)
        return given.pixels
