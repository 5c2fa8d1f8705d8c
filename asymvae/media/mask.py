"""Masks. Inside the library 1 is the hole, always: the polarity is settled where the bytes come in."""

from __future__ import annotations

from typing import Final, Literal, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from asymvae.faults import Fault
from asymvae.media.colour import to_srgb
from asymvae.media.raster import orient, read_raster

Polarity = Literal["white_is_hole", "black_is_hole"]
Box = tuple[int, int, int, int]  # top, left, bottom, right; exclusive at the end

_LEVELS: Final[NDArray[np.float32]] = np.arange(256, dtype=np.float32) / np.float32(255)
_Cell = TypeVar("_Cell", np.bool_, np.float32)


def decode_mask(data: bytes, *, max_pixels: int, polarity: Polarity) -> NDArray[np.float32] | Fault:
    """(H, W) float32 in [0, 1], 1 = hole, EXIF orientation applied.

    The value is the luminance (of colours: Rec. 601) over 255, over black where the file is transparent; no
    colour profile is applied. ``polarity`` is applied last, to that.

    Faults: mask_empty, mask_undecodable, mask_truncated, mask_too_large, mask_unsupported.
    """
    raster = read_raster(data, max_pixels=max_pixels)
    if isinstance(raster, Fault):
        return Fault(raster.code.replace("image_", "mask_", 1), raster.values)
    grey = raster.channels[..., 0] if raster.space == "L" else _grey(to_srgb(raster.channels, raster.space, None))
    if raster.alpha is None:
        # By levels, not as 1 - value: a mask and its negative under the other polarity are equal, bit by bit.
        levels = _LEVELS if polarity == "white_is_hole" else _LEVELS[::-1]
        return levels[orient(grey, raster.orientation)]
    mask = _LEVELS[orient(grey, raster.orientation)] * _LEVELS[orient(raster.alpha, raster.orientation)]
    return mask if polarity == "white_is_hole" else np.float32(1) - mask


def resize_mask(mask: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32] | Fault:
    """(h, w) -> (height, width): the maximum where it is reduced, the nearest where it is enlarged.

    The aspect ratios agree when the larger of the two, scaled by one factor so that one side fits the smaller,
    misses the other side by at most 1 px. Faults: mask_aspect.
    """
    h, w = mask.shape
    larger = max((h, w), (height, width), key=lambda size: size[0] * size[1])
    if abs(h * width - w * height) > max(larger):
        values = {"mask_width": w, "mask_height": h, "width": width, "height": height}
        return Fault("mask_aspect", values)
    return reduce_maximum(mask, height, width)


def blend_mask(mask: NDArray[np.float32], *, dilate: int, feather: int) -> NDArray[np.float32]:
    """The soft mask that the result is composited with: (H, W) in [0, 1].

    The hole is where ``mask >= 0.5``. The result is 1 over it and up to ``dilate`` px around it (Euclidean
    distance between pixel centres), then falls smoothly: it is above 0 up to ``feather`` px further, and 0 beyond.
    Outside, softer values of ``mask`` itself are kept where they are higher. Both 0: ``mask`` as it is.
    """
    reach = dilate + feather
    hole = mask >= 0.5
    box = hole_box(hole)
    if reach == 0 or box is None:
        return mask
    top, left = max(0, box[0] - reach), max(0, box[1] - reach)
    near = (slice(top, box[2] + reach), slice(left, box[3] + reach))  # nothing changes further away
    distance = _distance(~hole[near])
    # At dilate + feather + 1 the ramp would be 0: so it has `feather` pixels above 0.
    fall = np.clip((distance - np.float32(dilate)) / np.float32(feather + 1), 0, 1)
    grown = 1 - fall * fall * (3 - 2 * fall)
    blend = mask.copy()
    np.maximum(blend[near], grown, out=blend[near])
    return blend


def model_mask(blend: NDArray[np.float32], *, soft: bool) -> NDArray[np.bool_]:
    """The binary mask of the network, (H, W). ``soft``: dilation or feather was above 0, and everything that is
    blended at all is hole; else what is at least half."""
    return blend > 0 if soft else blend >= 0.5


def grow_to_grid(mask: NDArray[np.bool_], grid: int) -> NDArray[np.bool_]:
    """(H, W) -> (H, W): every ``grid`` x ``grid`` cell, counted from the top left, that holds a hole pixel becomes
    hole as a whole. ``grid`` 1 returns ``mask`` itself."""
    if grid == 1:
        return mask
    height, width = mask.shape
    cells = np.logical_or.reduceat(mask, np.arange(0, height, grid), axis=0)
    cells = np.logical_or.reduceat(cells, np.arange(0, width, grid), axis=1)
    return cells.repeat(grid, axis=0)[:height].repeat(grid, axis=1)[:, :width]


def hole_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int] | None:
    """(top, left, bottom, right) of the hole, the last two exclusive; None where there is no hole."""
    left, top, width, height = cv2.boundingRect(np.ascontiguousarray(mask).view(np.uint8))
    return (top, left, top + height, left + width) if width else None


def reduce_maximum(mask: NDArray[_Cell], height: int, width: int, window: Box | None = None) -> NDArray[_Cell]:
    """(h, w) -> (height, width), each direction by itself; or of that what ``window`` shows.

    Reduced: the maximum over every pixel that the new one's footprint touches, exactly, so that no hole is lost,
    however thin. Enlarged: the nearest.
    """
    top, left, bottom, right = window or (0, 0, height, width)
    rows = _resize_rows(mask, height, top, bottom)
    return np.ascontiguousarray(_resize_rows(np.ascontiguousarray(rows.T), width, left, right).T)


def _resize_rows(mask: NDArray[_Cell], count: int, begin: int, end: int) -> NDArray[_Cell]:
    """Rows ``begin`` to ``end`` of the ``count`` that they become."""
    rows = mask.shape[0]
    if rows == count:
        return mask[begin:end]
    steps = np.arange(begin, end, dtype=np.int64)
    if rows < count:
        nearest: NDArray[_Cell] = mask[(2 * steps + 1) * rows // (2 * count)]
        return nearest
    # Footprints [i * rows / count, (i + 1) * rows / count), which overlap by a row where they don't end on whole ones.
    begins, ends = steps * rows // count, -(-(steps + 1) * rows // count)
    reduced: NDArray[_Cell] = mask[begins]
    for offset in range(1, int((ends - begins).max())):
        np.maximum(reduced, mask[np.minimum(begins + offset, ends - 1)], out=reduced)
    return reduced


def _distance(known: NDArray[np.bool_]) -> NDArray[np.float32]:
    """In pixels, to the nearest that isn't known; up to 4096 px the exact root, rounded.

    By OpenCV's own code. Intel's, which it would call where it is built with it, rounds by where in memory its input
    lies and by the number of threads (by up to 1e-4 px): the same mask gave other bytes.
    """
    before = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)  # of this thread alone
    try:
        return np.asarray(cv2.distanceTransform(known.view(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32)
    finally:
        cv2.ipp.setUseIPP(before)


def _grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.uint8)
