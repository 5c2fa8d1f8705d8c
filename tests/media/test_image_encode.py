"""What is written is what was given, the same bytes each time, or a fault that says why not."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asymvae.faults import Fault
from asymvae.media.image import Image, ImageFormat, decode_image, encode_image
from tests.media.files import MAX_PIXELS, photo


def encoded(*arguments: object, image_format: ImageFormat, **options: int) -> bytes:
    data = encode_image(*arguments, image_format=image_format, **options)  # type: ignore[arg-type]
    assert isinstance(data, bytes)
    return data


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    transparent=st.booleans(),
    image_format=st.sampled_from(["png", "webp"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_png_and_webp_are_lossless_under_transparent_pixels_too(
    height: int, width: int, transparent: bool, image_format: ImageFormat, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    alpha = generator.choice([0, 0, 9, 255], (height, width)).astype(np.uint8) if transparent else None
    image = decode_image(encoded(pixels, alpha, image_format=image_format), max_pixels=MAX_PIXELS)
    assert isinstance(image, Image)
    assert np.array_equal(image.pixels, pixels)
    if alpha is not None and (alpha < 255).any():  # WebP drops an alpha that is opaque everywhere
        assert image.alpha is not None
        assert np.array_equal(image.alpha, alpha)


def test_an_opaque_alpha_stays_in_a_png() -> None:
    alpha = np.full((40, 56), 255, np.uint8)
    image = decode_image(encoded(photo(), alpha, image_format="png"), max_pixels=MAX_PIXELS)
    assert isinstance(image, Image)
    assert image.alpha is not None


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_other_readers_see_the_same(image_format: ImageFormat) -> None:
    picture = PIL.Image.open(io.BytesIO(encoded(photo(), image_format=image_format)))
    assert picture.format == image_format.upper()
    difference = np.abs(np.asarray(picture).astype(int) - photo())
    assert difference.max() <= (12 if image_format == "jpeg" else 0)
    assert difference.mean() < 1


def test_jpeg_keeps_colour_at_full_resolution_and_drops_alpha() -> None:
    stripes = np.zeros((16, 16, 3), np.uint8)
    stripes[:, ::2, 0] = 200  # 4:2:0 would average these
    data = encoded(stripes, np.zeros((16, 16), np.uint8), image_format="jpeg")
    image = decode_image(data, max_pixels=MAX_PIXELS)
    assert isinstance(image, Image)
    assert image.alpha is None
    assert np.abs(image.pixels.astype(int) - stripes).max() < 25
    assert len(encoded(photo(), image_format="jpeg", quality=50)) < len(encoded(photo(), image_format="jpeg"))


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_the_same_pixels_give_the_same_bytes_in_any_thread(image_format: ImageFormat) -> None:
    alpha = photo()[..., 2]
    with ThreadPoolExecutor(8) as pool:
        runs = pool.map(lambda _: encoded(photo(), alpha, image_format=image_format), range(24))
        assert len(set(runs)) == 1
    strided = np.asfortranarray(photo())
    assert encoded(strided, image_format=image_format) == encoded(photo(), image_format=image_format)


@pytest.mark.parametrize(("image_format", "limit"), [("webp", 16383), ("jpeg", 65500), ("png", 1_000_000)])
def test_sizes_that_a_format_cannot_hold(image_format: ImageFormat, limit: int) -> None:
    for shape in ((1, limit), (limit, 1)):
        assert encoded(np.zeros((*shape, 3), np.uint8), image_format=image_format)
    fault = encode_image(np.zeros((limit + 1, 2, 3), np.uint8), image_format=image_format)
    assert fault == Fault("image_format_limit", {"format": image_format, "width": 2, "height": limit + 1})
    assert encoded(np.zeros((min(limit + 1, 1_000_000), 2, 3), np.uint8), image_format="png")


def test_arrays_of_another_kind_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="uint8"):
        encode_image(photo().astype(np.float32), image_format="png")
    with pytest.raises(ValueError, match="alpha"):
        encode_image(photo(), photo()[:5, :, 0], image_format="png")
