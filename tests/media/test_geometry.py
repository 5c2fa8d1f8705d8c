"""There and back again: every size comes back exactly, and no hole is lost on the way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asymvae.media.geometry import (
    Box,
    Mode,
    Placement,
    image_from_work,
    image_to_work,
    mask_to_work,
    place,
)
from tests.media.files import photo

MODES: tuple[Mode, ...] = ("crop_to_hole", "whole", "fit", "buckets")
SIDES = st.one_of(st.integers(1, 300), st.sampled_from([1, 2, 63, 64, 65, 640, 1000]))


def placed(height: int, width: int, hole: Box | None = None, **options: object) -> Placement:
    settings_: dict[str, object] = {"mode": "crop_to_hole", "margin": 64, "max_side": 1024, "factor": 8}
    return place(height, width, hole, **(settings_ | options))  # type: ignore[arg-type]


@st.composite
def placements(draw: st.DrawFn) -> tuple[Placement, Box | None, int, int]:
    height, width = draw(SIDES), draw(SIDES)
    hole = None
    if draw(st.booleans()):
        top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        hole = (top, left, draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width)))
    factor, max_side = draw(st.sampled_from([1, 8, 16, 24])), draw(st.integers(1, 400))
    options = {"mode": draw(st.sampled_from(MODES)), "margin": draw(st.integers(0, 100))}
    return placed(height, width, hole, max_side=max_side, factor=factor, **options), hole, max_side, factor


@settings(max_examples=120, deadline=None)
@given(placements())
def test_every_placement_is_possible_and_comes_back_in_its_own_size(
    case: tuple[Placement, Box | None, int, int],
) -> None:
    placement, hole, _, factor = case
    top, left, bottom, right = placement.box
    assert 0 <= top < bottom <= placement.height
    assert 0 <= left < right <= placement.width
    if hole is not None:
        assert top <= hole[0]
        assert left <= hole[1]
        assert hole[2] <= bottom
        assert hole[3] <= right
    for size, resized, padded in zip(placement.box_size, placement.resized, placement.padded, strict=True):
        assert 1 <= resized <= size
        assert resized <= padded
        assert padded % factor == 0
    pixels = photo(placement.height, placement.width)
    work = image_to_work(pixels, placement)
    assert work.shape == (*placement.padded, 3)
    assert work.flags.c_contiguous
    back = image_from_work(work, placement)
    assert back.shape == (*placement.box_size, 3)
    if not placement.reduced:
        assert np.array_equal(back, pixels[top:bottom, left:right])


@settings(max_examples=80, deadline=None)
@given(placements(), st.integers(0, 2**32 - 1))
def test_what_lies_in_the_hole_reaches_no_known_work_pixel(
    case: tuple[Placement, Box | None, int, int], seed: int
) -> None:
    placement = case[0]
    generator = np.random.default_rng(seed)
    mask = generator.random((placement.height, placement.width)) < 0.05
    pixels = photo(placement.height, placement.width)
    other = pixels.copy()
    other[mask] = generator.integers(0, 256, (int(mask.sum()), 3))
    known = ~mask_to_work(mask, placement)
    assert known.shape == placement.padded
    assert np.array_equal(image_to_work(pixels, placement)[known], image_to_work(other, placement)[known])


def test_padding_repeats_the_edge_of_image_and_mask() -> None:
    placement = placed(5, 6, mode="whole")
    pixels = photo(5, 6)
    assert np.array_equal(image_to_work(pixels, placement), np.pad(pixels, ((0, 3), (0, 2), (0, 0)), "edge"))
    mask = np.zeros((5, 6), np.bool_)
    mask[4, 2] = True
    assert mask_to_work(mask, placement)[4:, 2].all()
    assert mask_to_work(mask, placement).sum() == 4


def test_crop_is_the_hole_with_its_margin_in_steps_of_64() -> None:
    placement = placed(1000, 2000, (400, 900, 420, 1000))
    assert placement.box_size == (192, 256)
    assert placement.resized == placement.padded == (192, 256)
    top, left, bottom, right = placement.box
    assert min(400 - top, 900 - left, bottom - 420, right - 1000) >= 64


def test_crop_is_moved_inward_at_the_borders() -> None:
    assert placed(1000, 2000, (0, 1990, 10, 2000)).box == (0, 1872, 128, 2000)
    assert placed(1000, 2000, (990, 0, 1000, 10)).box == (872, 0, 1000, 128)


def test_crop_is_cut_where_the_image_is_smaller_than_a_step() -> None:
    placement = placed(50, 300, (10, 10, 20, 20))
    assert placement.box == (0, 0, 50, 128)
    assert placement.padded == (56, 128)


def test_large_crop_is_reduced_by_one_scale() -> None:
    placement = placed(4096, 4096, (0, 0, 4096, 2048), margin=0)
    assert placement.resized == (1024, 512)


def test_crop_without_a_hole_is_the_whole_image() -> None:
    assert placed(2048, 1024) == placed(2048, 1024, mode="fit")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (5000, 1), (1, 5000), (3, 8193), (8193, 3)])
def test_extreme_sizes_have_a_place(mode: Mode, height: int, width: int) -> None:
    placement = placed(height, width, (0, 0, 1, 1), mode=mode)
    assert min(placement.padded) >= 8
    pixels = photo(height, width)
    assert image_from_work(image_to_work(pixels, placement), placement).shape == (*placement.box_size, 3)
    assert mask_to_work(np.ones((height, width), np.bool_), placement).all()


def test_fit_reduces_the_longer_side_only_where_it_is_too_long() -> None:
    assert placed(3000, 2000, mode="fit").resized == (1024, 683)
    assert placed(3000, 2000, mode="fit").padded == (1024, 688)
    assert placed(300, 200, mode="fit").padded == (304, 200)


def test_buckets_are_few_large_and_near_in_aspect() -> None:
    seen = set()
    for height in range(1100, 4000, 170):
        for width in range(1100, 4000, 190):
            placement = placed(height, width, mode="buckets")
            h, w = placement.padded
            if placement.resized != placement.padded:
                assert max(height, width) < 1400  # smaller than its bucket
                continue
            seen.add((h, w))
            assert h % 64 == w % 64 == 0
            assert 0.8 * 1024**2 < h * w <= 1024**2
            assert max(h / w / (height / width), height / width / (h / w)) < 1.12
    assert len(seen) < 25


def test_buckets_leave_small_and_elongated_images_in_proportion() -> None:
    small = placed(700, 500, mode="buckets")
    assert small.resized == (700, 500)
    assert small.padded == (704, 512)
    strip = placed(10_000, 1000, mode="buckets")
    assert strip.resized == (1024, 102)
    assert strip.padded == (1024, 128)


def test_reduced_images_come_back_close() -> None:
    pixels = photo(400, 600)
    placement = placed(400, 600, mode="fit", max_side=300)
    back = image_from_work(image_to_work(pixels, placement), placement)
    assert np.abs(back.astype(int) - pixels).mean() < 1.5
