"""Where the work image (what the network sees) lies in the original, there and exactly back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from asymvae.media.buckets import bucket_sizes
from asymvae.media.mask import reduce_maximum

Box = tuple[int, int, int, int]
Mode = Literal["crop_to_hole", "whole", "fit", "buckets"]
_Cell = TypeVar("_Cell", np.bool_, np.uint8)

_STEP: Final = 64  # crops and buckets come in multiples of this, so that there are few shapes
_WIDEST: Final = 4  # the most elongated bucket, as SDXL's


@dataclass(frozen=True, slots=True)
class Placement:
    """The original is cropped to ``box``, that is reduced to ``resized``, and that is padded to ``padded``.

    ``height``, ``width``: of the original. ``box``: (top, left, bottom, right) in the original, exclusive at the
    end. ``resized``: (h, w), never larger than the box. ``padded``: (H, W), multiples of the factor; the padding
    is at the bottom and the right.
    """

    height: int
    width: int
    box: Box
    resized: tuple[int, int]
    padded: tuple[int, int]

    @property
    def box_size(self) -> tuple[int, int]:
        """(height, width) of the box."""
        return self.box[2] - self.box[0], self.box[3] - self.box[1]

    @property
    def reduced(self) -> bool:
        """Whether pixels are resampled at all."""
        return self.resized != self.box_size


def place(
    height: int,
    width: int,
    hole: Box | None,
    *,
    mode: Mode,
    margin: int,
    max_side: int,
    factor: int,
) -> Placement:
    """Choose the work image of an original of ``height`` x ``width``. Nothing is ever enlarged.

    - ``crop_to_hole``: ``hole`` and ``margin`` px around it, its sides rounded up to multiples of 64 where the
      image allows, moved inward at the image's borders; a side above ``max_side`` reduces both by one scale.
      Without a hole: ``fit``.
    - ``whole``: all of it, as it is.
    - ``fit``: all of it, reduced so that the longer side is at most ``max_side``.
    - ``buckets``: all of it, resized to the shape of nearest aspect among those with sides in steps of 64, area
      up to ``max_side`` squared and ratio up to 4, which may differ slightly in aspect (undone on the way back).
      Images smaller than their bucket, or more elongated, are placed as by ``fit`` and padded to steps of 64.

    ``hole`` bounds everything that is to change: what :func:`asymvae.media.mask.hole_box` gives for the blend mask.
    ``factor`` is the autoencoder's, in px.
    """
    whole = (0, 0, height, width)
    if mode == "whole":
        return Placement(height, width, whole, (height, width), _pad(height, width, factor))
    if mode == "buckets":
        return _place_in_bucket(height, width, max_side, math.lcm(_STEP, factor))
    box = whole
    if mode == "crop_to_hole" and hole is not None:
        top, bottom = _snap(hole[0] - margin, hole[2] + margin, height)
        left, right = _snap(hole[1] - margin, hole[3] + margin, width)
        box = (top, left, bottom, right)
    resized = _fit(box[2] - box[0], box[3] - box[1], max_side)
    return Placement(height, width, box, resized, _pad(*resized, factor))


def image_to_work(pixels: NDArray[np.uint8], placement: Placement) -> NDArray[np.uint8]:
    """(H, W, C) original -> (*padded, C): area-averaged where reduced, the last row and column repeated as padding."""
    top, left, bottom, right = placement.box
    work = pixels[top:bottom, left:right]
    if placement.reduced:
        # Averages exactly the pixels that a work pixel covers, as mask_to_work counts them: none leaks from the hole.
        work = _resize(work, placement.resized, cv2.INTER_AREA)
    return _repeat_edges(work, placement.padded)


def mask_to_work(mask: NDArray[np.bool_], placement: Placement) -> NDArray[np.bool_]:
    """(H, W) -> padded: hole wherever a work pixel covers any part of a hole pixel; padding beside a hole is hole."""
    top, left, bottom, right = placement.box
    work = reduce_maximum(mask[top:bottom, left:right], *placement.resized)
    return _repeat_edges(work, placement.padded)


def image_from_work(work: NDArray[np.uint8], placement: Placement) -> NDArray[np.uint8]:
    """(*padded, C) -> (box height, box width, C): the padding dropped, what was reduced enlarged (cubic)."""
    height, width = placement.resized
    image = work[:height, :width]
    return _resize(image, placement.box_size, cv2.INTER_CUBIC) if placement.reduced else image


def _snap(begin: int, end: int, limit: int) -> tuple[int, int]:
    begin, end = max(0, begin), min(limit, end)
    length = min(limit, -(-(end - begin) // _STEP) * _STEP)
    begin = min(max(0, begin - (length - (end - begin)) // 2), limit - length)
    return begin, begin + length


def _fit(height: int, width: int, max_side: int) -> tuple[int, int]:
    longer = max(height, width)
    if longer <= max_side:
        return height, width

    def scaled(side: int) -> int:
        return max(1, (2 * side * max_side + longer) // (2 * longer))  # rounded half up, in integers

    return scaled(height), scaled(width)


def _pad(height: int, width: int, step: int) -> tuple[int, int]:
    return -(-height // step) * step, -(-width // step) * step


def _place_in_bucket(height: int, width: int, max_side: int, step: int) -> Placement:
    box = (0, 0, height, width)
    if max(height, width) <= _WIDEST * min(height, width):
        ratio = math.log(height / width)
        shape = min(_buckets(max_side, step), key=lambda s: (abs(math.log(s[0] / s[1]) - ratio), s))
        if shape[0] <= height and shape[1] <= width:
            return Placement(height, width, box, shape, shape)
    resized = _fit(height, width, max_side)
    return Placement(height, width, box, resized, _pad(*resized, step))


@lru_cache(maxsize=8)
def _buckets(max_side: int, step: int) -> list[tuple[int, int]]:
    return bucket_sizes(max_side, step, _WIDEST)


def _resize(pixels: NDArray[np.uint8], size: tuple[int, int], how: int) -> NDArray[np.uint8]:
    resized = cv2.resize(np.ascontiguousarray(pixels), (size[1], size[0]), interpolation=how)
    return np.asarray(resized, np.uint8).reshape(*size, pixels.shape[2])


def _repeat_edges(work: NDArray[_Cell], padded: tuple[int, int]) -> NDArray[_Cell]:
    height, width = work.shape[:2]
    if (height, width) == padded:
        return np.ascontiguousarray(work)
    sides = ((0, padded[0] - height), (0, padded[1] - width), (0, 0))
    return np.pad(work, sides[: work.ndim], mode="edge")
