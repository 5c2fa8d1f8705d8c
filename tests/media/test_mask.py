"""Masks: 1 is the hole, whatever the file says, and a hole only ever grows."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import ImageCms
from scipy.ndimage import distance_transform_edt

from asymvae.faults import Fault
from asymvae.media.image import Image, decode_image
from asymvae.media.mask import (
    Polarity,
    blend_mask,
    decode_mask,
    grow_to_grid,
    hole_box,
    model_mask,
    reduce_maximum,
    resize_mask,
)
from tests.media.files import MAX_PIXELS, exif, photo, png, png16, save, tiff


def read(data: bytes, polarity: Polarity = "white_is_hole") -> NDArray[np.float32]:
    mask = decode_mask(data, max_pixels=MAX_PIXELS, polarity=polarity)
    assert not isinstance(mask, Fault), mask
    assert mask.dtype == np.float32
    return mask


def shape(height: int = 40, width: int = 56) -> NDArray[np.float32]:
    mask = np.zeros((height, width), np.float32)
    mask[8:20, 30:45] = 1
    mask[25, 3:50] = 1
    return mask


@st.composite
def masks(draw: st.DrawFn, most: int = 40) -> NDArray[np.float32]:
    height, width = draw(st.integers(1, most)), draw(st.integers(1, most))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["sparse", "dense", "soft", "empty", "full"]))
    noise = generator.random((height, width)).astype(np.float32)
    if kind == "soft":
        return noise
    return (noise < {"sparse": 0.02, "dense": 0.6, "empty": -1.0, "full": 2.0}[kind]).astype(np.float32)


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF", "GIF", "WEBP"])
@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_polarity_is_settled_at_the_door(mode: str, image_format: str) -> None:
    picture = PIL.Image.fromarray((shape() * 255).astype(np.uint8)).convert(mode)
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = save(picture, image_format, **options)
    assert np.array_equal(read(data), shape())
    assert np.array_equal(read(data, "black_is_hole"), 1 - shape())


def test_levels_between_are_kept() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(8, 32)
    mask = read(save(levels, "PNG"))
    assert np.array_equal(mask, levels.astype(np.float32) / np.float32(255))
    assert mask.max() == 1
    assert np.allclose(read(save(levels, "PNG"), "black_is_hole"), 1 - mask)


def test_16_bit_masks_use_their_whole_range() -> None:
    wide = np.array([[0, 32767, 32768, 65535]], np.uint16)
    for data in (png16(wide[..., None]), tiff(wide.tobytes(), 1, 4, bits=16, channels=1)):
        mask = read(data)
        assert np.allclose(mask, wide / 65535, atol=0.5 / 255)
        assert (mask >= 0.5).tolist() == [[False, False, True, True]]


def test_transparent_parts_are_black() -> None:
    alpha = (shape() * 255).astype(np.uint8)
    white = np.full((40, 56), 255, np.uint8)
    rgba = save(np.dstack([white, white, white, alpha]), "PNG")
    assert np.array_equal(read(rgba), shape())
    assert np.array_equal(read(rgba, "black_is_hole"), 1 - shape())
    assert np.array_equal(read(save(PIL.Image.fromarray(np.dstack([white, alpha]), "LA"), "PNG")), shape())


def test_luminance_of_colours_and_ink() -> None:
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    assert np.allclose(read(save(colours, "PNG")), [[0.299, 0.587, 0.114, 1]], atol=0.003)
    assert np.array_equal(read(save(PIL.Image.new("CMYK", (3, 2)), "TIFF")), np.ones((2, 3)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_mask_turns_as_the_image_does(orientation: int) -> None:
    levels = (shape() * 255).astype(np.uint8)
    data = save(levels, "PNG", exif=exif(orientation))
    image = decode_image(data, max_pixels=MAX_PIXELS)
    assert isinstance(image, Image)
    assert np.array_equal(read(data) * 255, image.pixels[..., 0])


def test_profiles_do_not_change_a_mask() -> None:
    gamma = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes().replace(b"rXYZ", b"gXYZ", 1)
    assert np.array_equal(read(save(photo(), "PNG", icc_profile=gamma)), read(save(photo(), "PNG")))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "mask_empty"),
        (b"white", "mask_undecodable"),
        (save(photo(), "PNG")[:-30], "mask_truncated"),
        (save(photo(), "JPEG")[:-30], "mask_truncated"),
        (png([b"\0"], 60000, 8, 0, height=60000), "mask_too_large"),
        (tiff(bytes(4 * 12), 3, 4, bits=32, channels=1, tags={339: 3}), "mask_unsupported"),
    ],
)
def test_bad_masks_are_faults_of_the_mask(data: bytes, code: str) -> None:
    fault = decode_mask(data, max_pixels=MAX_PIXELS, polarity="white_is_hole")
    assert isinstance(fault, Fault)
    assert fault.code == code
    assert fault.message


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((512, 512), (513, 512)), ((64, 96), (427, 640)), ((427, 640), (64, 96)), ((1, 1), (2, 1)), ((500, 1), (5000, 1))],
)
def test_aspects_that_agree_within_a_pixel(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    mask = resize_mask(np.ones(size, np.float32), *wanted)
    assert not isinstance(mask, Fault)
    assert mask.shape == wanted
    assert (mask == 1).all()


@pytest.mark.parametrize(("size", "wanted"), [((512, 512), (512, 515)), ((40, 60), (60, 40)), ((64, 64), (640, 660))])
def test_aspects_that_do_not_agree(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    fault = resize_mask(np.ones(size, np.float32), *wanted)
    assert isinstance(fault, Fault)
    assert fault.code == "mask_aspect"
    assert str(wanted[1]) in fault.message


def test_a_line_one_pixel_thin_survives_any_reduction() -> None:
    mask = np.zeros((1000, 1500), np.float32)
    mask[:, 777] = 1
    for height in (999, 750, 500, 333, 100, 2):
        reduced = resize_mask(mask, height, round(height * 1.5))
        assert not isinstance(reduced, Fault)
        assert (reduced.max(axis=1) == 1).all()


def test_enlarging_a_mask_repeats_its_pixels() -> None:
    enlarged = resize_mask(shape(), 120, 168)
    assert np.array_equal(np.asarray(enlarged), shape().repeat(3, axis=0).repeat(3, axis=1))


@settings(max_examples=40, deadline=None)
@given(mask=masks(), height=st.integers(1, 40), width=st.integers(1, 40))
def test_reducing_marks_exactly_the_pixels_that_touch_a_hole(
    mask: NDArray[np.float32], height: int, width: int
) -> None:
    height, width = min(height, mask.shape[0]), min(width, mask.shape[1])
    reduced = reduce_maximum(mask, height, width)
    for row in range(height):
        rows = slice(row * mask.shape[0] // height, -(-(row + 1) * mask.shape[0] // height))
        for column in range(width):
            columns = slice(column * mask.shape[1] // width, -(-(column + 1) * mask.shape[1] // width))
            assert reduced[row, column] == mask[rows, columns].max()


@settings(max_examples=60, deadline=None)
@given(mask=masks(), dilate=st.integers(0, 12), feather=st.integers(0, 12))
def test_the_blend_grows_outward_only(mask: NDArray[np.float32], dilate: int, feather: int) -> None:
    blend = blend_mask(mask, dilate=dilate, feather=feather)
    assert blend.dtype == np.float32
    assert (blend >= mask).all()
    assert blend.max(initial=0) <= 1
    if dilate == feather == 0:
        assert np.array_equal(blend, mask)
        return
    hole = mask >= 0.5
    if not hole.any():
        assert np.array_equal(blend, mask)
        return
    distance = distance_transform_edt(~hole)
    assert (blend[distance <= dilate] == 1).all()
    ramp = (distance > dilate) & (distance <= dilate + feather)
    assert (blend[ramp] > 0).all()
    beyond = distance >= dilate + feather + 1
    assert np.array_equal(blend[beyond], mask[beyond])


def test_the_feather_falls_smoothly() -> None:
    mask = np.zeros((1, 40), np.float32)
    mask[0, :10] = 1
    fall = blend_mask(mask, dilate=3, feather=8)[0]
    assert (fall[:13] == 1).all()
    assert (np.diff(fall[12:22]) < 0).all()
    assert fall[20] > 0
    assert (fall[21:] == 0).all()
    assert np.abs(np.diff(fall)).max() < 0.2


def test_model_mask_of_soft_and_hard_blends() -> None:
    blend = np.array([[0, 0.1, 0.5, 1]], np.float32)
    assert model_mask(blend, soft=True).tolist() == [[False, True, True, True]]
    assert model_mask(blend, soft=False).tolist() == [[False, False, True, True]]


@settings(max_examples=40, deadline=None)
@given(mask=masks(), grid=st.integers(1, 16))
def test_growing_to_the_grid_fills_whole_cells_that_hold_a_hole(mask: NDArray[np.float32], grid: int) -> None:
    hole = mask > 0.5
    grown = grow_to_grid(hole, grid)
    assert grown.shape == hole.shape
    for top in range(0, hole.shape[0], grid):
        for left in range(0, hole.shape[1], grid):
            cell = (slice(top, top + grid), slice(left, left + grid))
            assert (grown[cell] == hole[cell].any()).all()
    if grid == 1:
        assert grown is hole


@settings(max_examples=40, deadline=None)
@given(mask=masks())
def test_hole_box_is_the_smallest_that_holds_the_hole(mask: NDArray[np.float32]) -> None:
    hole = mask > 0.5
    box = hole_box(hole)
    rows, columns = np.nonzero(hole)
    if not rows.size:
        assert box is None
        return
    assert box == (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
    assert hole_box(np.asfortranarray(hole)) == box
