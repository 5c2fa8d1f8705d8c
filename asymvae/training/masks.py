"""The masks that an asymmetric decoder is trained with: half of them all hole, the others strokes and boxes.

Distributions as in the paper's training code, https://github.com/buxiangzhiren/Asymmetric_VQGAN:
``configs/autoencoder/random_thick_256.yaml`` (widths, lengths and counts, in pixels of a 256 px image),
``saicinpainting/training/data/masks.py`` (LaMa's generators, which read them) and ``ldm/data/imagenet.py`` with
``Cf_r: 0.5`` (the share of masks that are all hole). Three differences: headings are continuous where LaMa's take
four values; five strokes are the most, as the file says, where the generator draws up to six; boxes are added to the
strokes where LaMa draws them instead. The mean hole covers .44 of the image (theirs: .40).
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

_REFERENCE: Final = 256  # px; the lengths below are of images this large, and scale with the shorter side
_STROKES: Final = (1, 5)
_SEGMENTS: Final = (1, 5)
_SEGMENT_LENGTH: Final = (10, 210)
_THICKNESS: Final = (5, 105)
_BOX_PROBABILITY: Final = 0.3
_BOXES: Final = (1, 3)
_BOX_SIDE: Final = (30, 150)
_BOX_MARGIN: Final = 10


def training_mask(
    rng: np.random.Generator, height: int, width: int, *, full: float = 0.5, empty: float = 0.0
) -> NDArray[np.bool_]:
    """(height, width), True = hole. All hole with probability ``full``, none with ``empty``, else a
    :func:`random_hole`.

    All hole is what teaches the decoder to work from the latent alone, as it must when it is given no image.
    """
    kind = rng.random()
    if kind < full:
        return np.ones((height, width), np.bool_)
    if kind < full + empty:
        return np.zeros((height, width), np.bool_)
    return random_hole(rng, height, width)


def random_hole(rng: np.random.Generator, height: int, width: int) -> NDArray[np.bool_]:
    """(height, width), True = hole: 1 to 5 thick strokes and, with probability .3, 1 to 3 boxes. Never empty."""
    hole = np.zeros((height, width), np.uint8)
    scale = min(height, width) / _REFERENCE
    for _ in range(rng.integers(*_STROKES, endpoint=True)):
        _draw_stroke(hole, rng, scale)
    if rng.random() < _BOX_PROBABILITY:
        for _ in range(rng.integers(*_BOXES, endpoint=True)):
            _draw_box(hole, rng, scale)
    return hole.view(np.bool_)


def _draw_stroke(hole: NDArray[np.uint8], rng: np.random.Generator, scale: float) -> None:
    """A polyline that goes on to one side, left or right, each segment with a thickness of its own."""
    corner = np.array([hole.shape[1] - 1, hole.shape[0] - 1])
    start = rng.integers(0, corner, endpoint=True)
    side = rng.choice((-1, 1))
    for _ in range(rng.integers(*_SEGMENTS, endpoint=True)):
        heading = rng.uniform(0, np.pi)
        step = rng.uniform(*_SEGMENT_LENGTH) * scale * np.array([side * np.sin(heading), np.cos(heading)])
        end = np.clip(np.rint(start + step).astype(np.int64), 0, corner)
        thickness = max(1, round(rng.uniform(*_THICKNESS) * scale))
        cv2.line(hole, start.tolist(), end.tolist(), 1, thickness)
        start = end


def _draw_box(hole: NDArray[np.uint8], rng: np.random.Generator, scale: float) -> None:
    margin = round(_BOX_MARGIN * scale)
    sides = np.maximum(1, np.rint(rng.uniform(*_BOX_SIDE, size=2) * scale)).astype(np.int64)
    top, left = rng.integers(margin, np.array(hole.shape) - margin - sides, endpoint=True)
    hole[top : top + sides[0], left : left + sides[1]] = 1
