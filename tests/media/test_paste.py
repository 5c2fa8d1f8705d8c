"""Known pixels come through untouched, for every size, hole and setting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asymvae.media.geometry import Mode, image_from_work, image_to_work, place
from asymvae.media.mask import blend_mask, hole_box
from asymvae.media.paste import paste
from tests.media.files import photo

MODES: tuple[Mode, ...] = ("crop_to_hole", "whole", "fit", "buckets")


@settings(max_examples=120, deadline=None)
@given(
    height=st.integers(1, 200),
    width=st.integers(1, 200),
    mode=st.sampled_from(MODES),
    margin=st.integers(0, 80),
    max_side=st.integers(1, 220),
    dilate=st.integers(0, 6),
    feather=st.integers(0, 6),
    share=st.sampled_from([0.0, 0.001, 0.1, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_known_pixels_keep_their_bytes_and_the_hole_gets_the_decoded_ones(
    height: int,
    width: int,
    mode: Mode,
    margin: int,
    max_side: int,
    dilate: int,
    feather: int,
    share: float,
    seed: int,
) -> None:
    generator = np.random.default_rng(seed)
    original = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    kept = original.copy()
    mask = (generator.random((height, width)) < share).astype(np.float32)
    blend = blend_mask(mask, dilate=dilate, feather=feather)
    placement = place(height, width, hole_box(blend > 0), mode=mode, margin=margin, max_side=max_side, factor=8)
    work = 255 - image_to_work(original, placement)
    decoded = image_from_work(work, placement)
    result = paste(original, decoded, blend, placement)
    assert np.array_equal(original, kept)
    assert result.shape == original.shape
    assert np.array_equal(result[blend == 0], original[blend == 0])
    whole = original.astype(np.float64)
    top, left, bottom, right = placement.box
    whole[top:bottom, left:right] = decoded
    exact = blend[..., None] * whole + (1 - blend[..., None].astype(np.float64)) * original
    assert np.abs(result - exact).max() <= 0.501
    assert np.array_equal(result[blend == 1], whole[blend == 1])
    if not placement.reduced:
        assert np.array_equal(result[blend == 1], 255 - original[blend == 1])


def test_halves_are_rounded_up() -> None:
    placement = place(1, 1, None, mode="whole", margin=0, max_side=8, factor=1)
    black, one = np.zeros((1, 1, 3), np.uint8), np.ones((1, 1, 3), np.uint8)
    half = np.full((1, 1), 0.5, np.float32)
    assert (paste(black, one, half, placement) == 1).all()
    assert (paste(one, black, half, placement) == 1).all()


def test_nothing_outside_the_box_changes() -> None:
    placement = place(300, 300, (100, 100, 110, 110), mode="crop_to_hole", margin=0, max_side=512, factor=8)
    original = photo(300, 300)
    result = paste(original, np.zeros((64, 64, 3), np.uint8), np.ones((300, 300), np.float32), placement)
    top, left, bottom, right = placement.box
    assert (result[top:bottom, left:right] == 0).all()
    result[top:bottom, left:right] = original[top:bottom, left:right]
    assert np.array_equal(result, original)


def test_a_decoded_image_of_the_wrong_size_is_a_mistake_of_the_caller() -> None:
    placement = place(30, 30, None, mode="whole", margin=0, max_side=8, factor=8)
    with pytest.raises(ValueError, match="image_from_work"):
        paste(photo(30, 30), photo(32, 32), np.zeros((30, 30), np.float32), placement)
