"""Composite: the decoded work image back into the original, on the CPU, in a thread of the encode pool."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from asymvae.media.geometry import image_from_work
from asymvae.media.paste import paste
from asymvae.stages.prepare import Prepared

_RING = 4  # pixels beside the hole whose own gradients the seam is judged against


def composite(prepared: Prepared, decoded: NDArray[np.uint8] | None, mode: str) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 at the original's size.

    ``paste`` keeps the original's bytes wherever the blend mask is 0. ``none`` puts what the decoder made over the
    whole box that it saw. Without ``decoded`` the original passes through.
    """
    if decoded is None or prepared.placement is None:
        return prepared.original.pixels
    box_pixels = image_from_work(decoded, prepared.placement)
    if mode == "paste":
        return paste(prepared.original.pixels, box_pixels, prepared.blend, prepared.placement)
    top, left, bottom, right = prepared.placement.box
    out = prepared.original.pixels.copy()
    out[top:bottom, left:right] = box_pixels
    return out


def max_abs_known(prepared: Prepared, out: NDArray[np.uint8]) -> int | None:
    """Largest change of a known pixel (blend mask 0), in 8-bit levels; None where nothing is known."""
    known = prepared.blend == 0
    if not known.any():
        return None
    if out is prepared.original.pixels:
        return 0
    # maximum - minimum is |a - b| without leaving uint8
    change = np.maximum(out, prepared.original.pixels) - np.minimum(out, prepared.original.pixels)
    return int(change.max(axis=2)[known].max())


def seam(prepared: Prepared, out: NDArray[np.uint8]) -> float | None:
    """How much harder the picture steps across the hole's border than beside it, in 8-bit levels a pixel.

    The mean absolute step between neighbours of which one lies in the hole (blend mask >= 0.5) and one doesn't, less
    the mean step between untouched neighbours (blend mask 0) within four pixels of it. 0 is seamless, below 0
    smoother than its surroundings. None where there is no border or nothing known beside it.
    """
    if prepared.placement is None:
        return None
    top, left, bottom, right = prepared.placement.box
    hole = prepared.blend[top:bottom, left:right] >= 0.5
    if not hole.any() or hole.all():
        return None
    touched = (prepared.blend[top:bottom, left:right] > 0).astype(np.uint8)
    grown = cv2.dilate(touched, np.ones((2 * _RING + 1, 2 * _RING + 1), np.uint8))
    near = (grown - touched).astype(bool)
    pixels = out[top:bottom, left:right]
    across, beside = _Mean(), _Mean()
    for axis in (0, 1):
        first = (slice(None, -1), slice(None)) if axis == 0 else (slice(None), slice(None, -1))
        second = (slice(1, None), slice(None)) if axis == 0 else (slice(None), slice(1, None))
        a, b = pixels[first], pixels[second]
        step = (np.maximum(a, b) - np.minimum(a, b)).mean(axis=2)
        across.add(step[hole[first] != hole[second]])
        beside.add(step[near[first] & near[second]])
    if across.count == 0 or beside.count == 0:
        return None
    return across.value - beside.value


class _Mean:
    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, values: NDArray[np.floating]) -> None:
        self.total += float(values.sum(dtype=np.float64))
        self.count += values.size

    @property
    def value(self) -> float:
        return self.total / self.count
