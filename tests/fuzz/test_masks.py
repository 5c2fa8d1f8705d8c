"""Masks, for every size, hole and setting."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from asymvae.faults import Fault
from asymvae.media.mask import blend_mask, decode_mask, grow_to_grid, hole_box, model_mask, resize_mask
from tests.fuzz.examples import examples
from tests.fuzz.originals import Size, boxes, holes, sizes
from tests.tiny import file_bytes

REACH = st.one_of(st.integers(0, 12), st.sampled_from([40, 4096]))


@examples(50)
@given(st.data(), sizes(200), REACH, REACH)
def test_the_blend_is_one_over_the_hole_and_grows_outward_only_and_as_far_as_was_asked(
    data: st.DataObject, size: Size, dilate: int, feather: int
) -> None:
    hole = data.draw(holes(size))
    mask = hole.astype(np.float32)
    soft = data.draw(boxes(size))  # a value below the threshold, somewhere
    mask[soft[0] : soft[2], soft[1] : soft[3]] = np.maximum(mask[soft[0] : soft[2], soft[1] : soft[3]], 0.25)
    before = mask.copy()
    blend = blend_mask(mask, dilate=dilate, feather=feather)
    np.testing.assert_array_equal(mask, before)
    assert blend.dtype == np.float32
    assert (blend[hole] == 1).all()
    assert (blend >= mask).all()
    assert blend.max(initial=0) <= 1
    distance = ndimage.distance_transform_edt(~hole) if hole.any() else np.full(size, np.inf)
    if dilate + feather == 0:
        np.testing.assert_array_equal(blend, mask)
        return
    # Bit by bit: OpenCV's distance by way of IPP hung on where the mask lay in memory.
    fall = np.clip((distance.astype(np.float32) - np.float32(dilate)) / np.float32(feather + 1), 0, 1)
    wanted = np.maximum(mask, 1 - fall * fall * (3 - 2 * fall))
    near = distance < 4096  # whose square float32 holds
    np.testing.assert_array_equal(blend[near], wanted[near])
    np.testing.assert_allclose(blend, wanted, rtol=0, atol=1e-6)
    assert (blend[distance <= dilate + feather] > 0).all()
    beyond = distance >= dilate + feather + 1
    np.testing.assert_array_equal(blend[beyond], mask[beyond])


@examples(60)
@given(st.data(), sizes(300), st.sampled_from([1, 2, 3, 8, 16, 64, 1024]))
def test_the_models_mask_holds_the_hole_in_whole_cells_and_no_cell_without_it(
    data: st.DataObject, size: Size, grid: int
) -> None:
    hole = data.draw(holes(size))
    grown = grow_to_grid(hole, grid)
    assert grown.shape == hole.shape
    assert (grown >= hole).all()
    for top in range(0, size[0], grid) if grid > 3 else ():
        for left in range(0, size[1], grid):
            cell = (slice(top, top + grid), slice(left, left + grid))
            assert grown[cell].all() == grown[cell].any() == hole[cell].any()


@examples(60)
@given(st.data(), sizes(300), st.integers(0, 20), st.integers(0, 20))
def test_everything_that_is_blended_is_in_the_models_mask(
    data: st.DataObject, size: Size, dilate: int, feather: int
) -> None:
    mask = data.draw(holes(size)).astype(np.float32)
    blend = blend_mask(mask, dilate=dilate, feather=feather)
    binary = model_mask(blend, soft=dilate > 0 or feather > 0)
    assert (binary >= (blend > 0)).all()
    assert (hole_box(binary) is None) == (not mask.any())


@examples(40)
@given(st.data(), sizes(60), st.sampled_from(["PNG", "BMP", "TIFF", "GIF"]))
def test_the_other_polarity_is_the_negative(data: st.DataObject, size: Size, image_format: str) -> None:
    grey = np.random.default_rng(data.draw(st.integers(0, 9))).integers(0, 256, size, np.uint8)
    limits = {"max_pixels": 10**6}
    white = decode_mask(file_bytes(grey, image_format), polarity="white_is_hole", **limits)
    black = decode_mask(file_bytes(255 - grey, image_format), polarity="black_is_hole", **limits)
    assert not isinstance(white, Fault)
    assert not isinstance(black, Fault)
    np.testing.assert_array_equal(white, black)
    np.testing.assert_array_equal(white >= 0.5, grey >= 128)


@examples(60)
@given(st.data(), sizes(300), st.integers(1, 4))
def test_a_pixel_of_a_mask_of_another_size_is_not_lost(data: st.DataObject, size: Size, times: int) -> None:
    hole = np.zeros(size, np.float32)
    hole[data.draw(st.integers(0, size[0] - 1)), data.draw(st.integers(0, size[1] - 1))] = 1
    for new in ((size[0] * times, size[1] * times), (-(-size[0] // times), -(-size[1] // times))):
        resized = resize_mask(hole, *new)
        if isinstance(resized, Fault):
            assert resized.code == "mask_aspect"
            assert size[0] % times or size[1] % times
        else:
            assert resized.shape == new
            assert resized.max() == 1
