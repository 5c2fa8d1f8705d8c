"""Prepare, for decoding latents: the original's pixels and mask brought to where the latents were encoded."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from asymvae.config_latents import DecodeJob
from asymvae.faults import Fault
from asymvae.media.buckets import Box, Size, cut
from asymvae.media.image import Image, decode_image
from asymvae.media.mask import blend_mask, decode_mask, grow_to_grid, model_mask, reduce_maximum, resize_mask

_MOST_ENLARGED = 4  # times the pixels of the largest original: one block more than the encoder doubles its sides


class Place(Protocol):
    """How an image was brought to the pixels of its latents; see storage/latents.py."""

    @property
    def original(self) -> Size: ...
    @property
    def resized(self) -> Size: ...
    @property
    def crop(self) -> Box: ...
    @property
    def hflip(self) -> bool: ...


@dataclass(slots=True)
class Shown:
    """What of the original the latents show: ``pixels`` (H, W, 3) uint8; ``mask`` (H, W) bool, True in the hole;
    ``blend`` (H, W) in [0, 1], what the result is pasted by; ``hole_fraction`` of the window, before it is grown."""

    pixels: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    blend: NDArray[np.float32]
    hole_fraction: float
    bit_depth_reduced: bool


@dataclass(slots=True)
class DecodeItem:
    """One row: ``values`` (C, h, w) float32, unscaled; ``size``: (H, W) of the image that it becomes."""

    variant: int
    values: NDArray[np.float32]
    size: Size
    shown: Shown | None
    owner: Any = None

    @property
    def shape_key(self) -> Hashable:
        return self.size


@dataclass(slots=True)
class DecodePlanned:
    index: int
    key: str
    caption: str | None
    crop: Box
    items: Sequence[DecodeItem]


class PrepareDecode:
    """A row of latents -> DecodePlanned, or the fault that makes it an error row.

    Args:
        factor: the decoder's, pixels for each cell of the latents.
        channels: of the model's latents.
    """

    def __init__(self, job: DecodeJob, factor: int, channels: int) -> None:
        self.job, self.factor, self.channels = job, factor, channels

    def __call__(
        self,
        index: int,
        key: str,
        variant: int,
        values: NDArray[np.float32],
        place: Place | None,
        caption: str | None,
        fields: Mapping[Any, bytes],
    ) -> DecodePlanned | Fault:
        """``fields``: of the original, by role (image, mask); not looked at where the job has no originals."""
        channels, height, width = values.shape
        if channels != self.channels:
            return Fault("latents_channels", {"channels": channels, "wanted": self.channels})
        size = (height * self.factor, width * self.factor)
        shown = self._shown(size, place, fields) if self.job.originals.urls else None
        if isinstance(shown, Fault):
            return shown
        crop = place.crop if place is not None else (0, 0, *size)
        return DecodePlanned(index, key, caption, crop, [DecodeItem(variant, values, size, shown)])

    def _shown(self, size: Size, place: Place | None, fields: Mapping[Any, bytes]) -> Shown | Fault:
        if "image" not in fields:
            return Fault("missing_image")
        if "mask" not in fields:
            return Fault("missing_mask")
        settings = self.job.originals
        image = decode_image(fields["image"], max_pixels=settings.max_pixels)
        if isinstance(image, Fault):
            return image
        mask = decode_mask(fields["mask"], max_pixels=settings.max_pixels, polarity=settings.mask_polarity)
        if isinstance(mask, Fault):
            return mask
        mask = resize_mask(mask, *image.size)
        if isinstance(mask, Fault):
            return mask
        return self._window(size, place, image, mask)

    def _window(self, size: Size, place: Place | None, image: Image, mask: NDArray[np.float32]) -> Shown | Fault:
        original = size if place is None else place.original
        if image.size != original:
            wanted = f"{original[1]}x{original[0]}"
            return Fault("original_size", {"width": image.size[1], "height": image.size[0], "wanted": wanted})
        if place is None:
            resized, box, hflip = size, (0, 0, *size), False
        else:
            times = _times(size, place)
            if times is None:
                return Fault("placement_invalid")
            resized = (place.resized[0] * times, place.resized[1] * times)
            top, left, bottom, right = (side * times for side in place.crop)
            box, hflip = (top, left, bottom, right), place.hflip
        pixels = cut(image, resized, box, hflip=hflip)
        dilate, feather = self.job.mask.dilate, self.job.mask.feather
        # Of the resized mask, too, only what the window shows is made, and what reaches into it.
        near = _grown(box, dilate + feather + 1, resized)
        mask = reduce_maximum(mask, *resized, near)
        inside = (box[0] - near[0], box[1] - near[1], box[2] - near[0], box[3] - near[1])
        blend = _windowed(blend_mask(mask, dilate=dilate, feather=feather), inside, hflip)
        binary = grow_to_grid(model_mask(blend, soft=dilate > 0 or feather > 0), self.job.mask.grid)
        hole_fraction = float((_windowed(mask, inside, hflip) >= 0.5).mean())
        return Shown(pixels, binary, blend, hole_fraction, image.bit_depth_reduced)


def _grown(box: Box, reach: int, size: Size) -> Box:
    top, left, bottom, right = box
    return max(0, top - reach), max(0, left - reach), min(size[0], bottom + reach), min(size[1], right + reach)


def _times(size: Size, place: Place) -> int | None:
    """How many pixels a side the decoder makes of one that was encoded: 1 with the published checkpoints (x-2 is wider,
    not larger), 2 where it has a block more than the encoder; None where the numbers don't agree."""
    top, left, bottom, right = place.crop
    height, width = bottom - top, right - left
    inside = 0 <= top < bottom <= place.resized[0] and 0 <= left < right <= place.resized[1]
    if not inside or size[0] % height or size[0] // height * width != size[1]:
        return None
    return size[0] // height


def _windowed(mask: NDArray[np.float32], box: Box, hflip: bool) -> NDArray[np.float32]:
    inside = mask[box[0] : box[2], box[1] : box[3]]
    return np.ascontiguousarray(inside[:, ::-1] if hflip else inside)
