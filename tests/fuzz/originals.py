"""Sizes, holes and settings, for hypothesis to choose from."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

MODES = ("crop_to_hole", "whole", "fit", "buckets")

Size = tuple[int, int]


class Setting(NamedTuple):
    """Of ``geometry`` and ``mask``, and the autoencoder's factor."""

    mode: Any
    margin: int
    max_side: int
    factor: int
    dilate: int
    feather: int
    grid: int


def sizes(most: int = 700, *, thin: int = 5000) -> st.SearchStrategy[Size]:
    """From 1x1; up to ``most`` a side; and long ones, up to ``thin`` by 7."""
    side = st.one_of(st.integers(1, 20), st.integers(1, most), st.sampled_from([63, 64, 65, 127, 128, 256, 512]))
    side = side.filter(lambda length: length <= most)
    long = st.tuples(st.integers(1, thin), st.integers(1, 7))
    return st.one_of(st.tuples(side, side), long, long.map(lambda size: size[::-1]), st.just((thin, 7)))


settings_of_a_job = st.builds(
    Setting,
    mode=st.sampled_from(MODES),
    margin=st.one_of(st.integers(0, 80), st.just(10_000)),
    max_side=st.one_of(st.integers(8, 80), st.sampled_from([64, 128, 512, 1024, 4096])),
    factor=st.sampled_from([8, 16]),
    dilate=st.sampled_from([0, 1, 4, 40]),
    feather=st.sampled_from([0, 1, 4, 30]),
    grid=st.sampled_from([1, 3, 8, 16, 64]),
)


@st.composite
def boxes(draw: st.DrawFn, size: Size) -> tuple[int, int, int, int]:
    """Not empty; often a single pixel, often at a border."""

    def span(limit: int) -> tuple[int, int]:
        begin = draw(st.one_of(st.just(0), st.just(limit - 1), st.integers(0, limit - 1)))
        return begin, draw(st.one_of(st.just(begin + 1), st.just(limit), st.integers(begin + 1, limit)))

    (top, bottom), (left, right) = span(size[0]), span(size[1])
    return top, left, bottom, right


@st.composite
def holes(draw: st.DrawFn, size: Size, *, least: int = 0) -> NDArray[np.bool_]:
    """(H, W) bool: up to three boxes, or all of it."""
    hole = np.zeros(size, bool)
    for _ in range(draw(st.integers(least, 3))):
        top, left, bottom, right = draw(boxes(size))
        hole[top:bottom, left:right] = True
    return hole


def noise(size: Size, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
