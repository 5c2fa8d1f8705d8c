"""Every kind of file becomes the same thing: oriented 8-bit sRGB, and alpha apart."""

from __future__ import annotations

import io
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import cv2
import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray
from PIL import ImageCms

from asymvae.faults import Fault
from asymvae.media.image import Image, decode_image, probe_size
from tests.media.files import MAX_PIXELS, chunk, exif, photo, png, png16, save, tiff, tiff16


def decoded(data: bytes) -> Image:
    image = decode_image(data, max_pixels=MAX_PIXELS)
    assert isinstance(image, Image), image
    return image


def levels16(channels: int) -> NDArray[np.uint16]:
    return np.random.default_rng(0).integers(0, 65536, (11, 13, channels)).astype(np.uint16)


def narrowed(wide: NDArray[np.uint16]) -> NDArray[np.uint8]:
    return np.round(wide / 257.0).astype(np.uint8)


def profile(name: Literal["LAB", "XYZ", "sRGB"]) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name)).tobytes()


def wide_gamut_profile() -> bytes:
    """sRGB's profile with its red and green primaries exchanged: unmistakable."""
    data = profile("sRGB")
    return data.replace(b"rXYZ", b"____").replace(b"gXYZ", b"rXYZ").replace(b"____", b"gXYZ")


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "BMP", "WEBP"])
def test_lossless_formats_give_the_pixels_that_were_saved(image_format: str) -> None:
    options = {"lossless": True} if image_format == "WEBP" else {}
    image = decoded(save(photo(), image_format, **options))
    assert np.array_equal(image.pixels, photo())
    assert image.alpha is None
    assert not image.bit_depth_reduced


@pytest.mark.parametrize("image_format", ["JPEG", "AVIF", "WEBP"])
def test_lossy_formats_come_near_what_was_saved(image_format: str) -> None:
    difference = np.abs(decoded(save(photo(), image_format, quality=95)).pixels.astype(int) - photo())
    assert difference.mean() < 4


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_pixels_are_those_of_pillow(mode: str, options: dict[str, int]) -> None:
    data = save(PIL.Image.fromarray(photo()).convert(mode), "JPEG", **options)
    expected = np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decoded(data).pixels, expected)


def test_bytes_after_a_jpegs_end_cost_nothing() -> None:
    data = save(photo(), "JPEG")
    assert np.array_equal(decoded(data + b"camera maker's notes").pixels, decoded(data).pixels)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(image_format: str, orientation: int) -> None:
    upright = decoded(save(photo(), image_format)).pixels
    turned = {
        1: upright,
        2: np.fliplr(upright),
        3: np.rot90(upright, 2),
        4: np.flipud(upright),
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, -1),
        7: np.rot90(upright, 2).swapaxes(0, 1),
        8: np.rot90(upright, 1),
    }
    image = decoded(save(photo(), image_format, exif=exif(orientation)))
    assert np.array_equal(image.pixels, turned[orientation])
    assert image.pixels.flags.c_contiguous


def test_alpha_turns_with_its_image() -> None:
    alpha = np.arange(40 * 56, dtype=np.uint32).reshape(40, 56).astype(np.uint8)
    image = decoded(save(np.dstack([photo(), alpha]), "PNG", exif=exif(6)))
    assert image.alpha is not None
    assert np.array_equal(image.alpha, np.rot90(alpha, -1))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_costs_the_orientation_only() -> None:
    assert np.array_equal(decoded(save(photo(), "PNG", exif=b"Exif\0\0MM\0*junk")).pixels, photo())


def test_alpha_is_carried_through_with_the_colours_under_it() -> None:
    alpha = np.where(photo()[..., 0] > 120, 0, 77).astype(np.uint8)
    for data in (
        save(np.dstack([photo(), alpha]), "PNG"),
        save(np.dstack([photo(), alpha]), "TIFF"),
        save(np.dstack([photo(), alpha]), "WEBP", lossless=True, exact=True),
    ):
        image = decoded(data)
        assert image.alpha is not None
        assert np.array_equal(image.alpha, alpha)
        assert np.array_equal(image.pixels, photo())


def test_grey_with_alpha() -> None:
    grey, alpha = photo()[..., 0], photo()[..., 1]
    image = decoded(save(PIL.Image.fromarray(np.dstack([grey, alpha]), "LA"), "PNG"))
    assert image.alpha is not None
    assert np.array_equal(image.alpha, alpha)
    assert np.array_equal(image.pixels, np.repeat(grey[..., None], 3, axis=2))


def test_palette_with_transparency() -> None:
    picture = PIL.Image.fromarray(photo()).quantize(8)
    expected = np.asarray(picture.convert("RGB"))
    index = np.asarray(picture)
    opaque = decoded(save(picture, "PNG"))
    assert np.array_equal(opaque.pixels, expected)
    assert opaque.alpha is None
    one = decoded(save(picture, "PNG", transparency=3))
    assert one.alpha is not None
    assert np.array_equal(one.alpha, np.where(index == 3, 0, 255))
    graded = decoded(save(picture, "PNG", transparency=bytes(range(0, 80, 10))))
    assert graded.alpha is not None
    assert np.array_equal(graded.alpha, index * 10)
    assert np.array_equal(graded.pixels, expected)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_grey_of_few_bits_fills_the_range_and_its_transparent_level_is_found(depth: int) -> None:
    bits = np.random.default_rng(depth).integers(0, 2, (9, 16, depth))
    level = (bits << np.arange(depth)[::-1]).sum(axis=2)
    rows = [np.packbits(row.ravel()).tobytes() for row in bits.astype(np.uint8)]
    image = decoded(png(rows, 16, depth, 0, before=chunk(b"tRNS", b"\0\1")))
    assert np.array_equal(image.pixels[..., 0], level * 255 // (2**depth - 1))
    assert image.alpha is not None
    assert np.array_equal(image.alpha, np.where(level == 1, 0, 255))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_is_rounded_to_8_and_flagged(channels: int) -> None:
    wide = levels16(channels)
    image = decoded(png16(wide))
    assert image.bit_depth_reduced
    colours = narrowed(wide if channels in (1, 3) else wide[..., :-1])
    assert np.array_equal(image.pixels, np.broadcast_to(colours, image.pixels.shape))
    if channels in (2, 4):
        assert image.alpha is not None
        assert np.array_equal(image.alpha, narrowed(wide[..., -1]))


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_png_with_a_transparent_colour(channels: int) -> None:
    wide = levels16(channels)
    wide[::2] = 4660
    image = decoded(png16(wide, before=chunk(b"tRNS", b"\x12\x34" * channels)))
    assert image.alpha is not None
    assert (image.alpha[::2] == 0).all()
    assert (image.alpha[1::2] == 255).all()


def test_16_bit_tiff_is_rounded_to_8_and_flagged() -> None:
    wide = levels16(3)
    for orientation in range(1, 9):
        data = tiff(wide.astype("<u2").tobytes(), 11, 13, bits=16, channels=3, tags={274: orientation})
        image = decoded(data)
        assert image.bit_depth_reduced
        upright = decoded(save(narrowed(wide), "PNG", exif=exif(orientation)))
        assert np.array_equal(image.pixels, upright.pixels)
    assert np.array_equal(decoded(tiff16(wide)).pixels, narrowed(wide))
    grey = decoded(tiff16(wide[..., 0]))
    assert grey.bit_depth_reduced
    assert np.array_equal(grey.pixels[..., 1], narrowed(wide[..., 0]))


@pytest.mark.parametrize(("bits", "samples"), [(8, np.uint8), (16, np.uint16)])
def test_tiff_whose_zero_is_white(bits: int, samples: type) -> None:
    wide: NDArray[Any] = levels16(1)[..., 0].astype(samples)
    data = tiff(wide.tobytes(), 11, 13, bits=bits, channels=1, tags={262: 0})
    most = 2**bits - 1
    assert np.array_equal(decoded(data).pixels[..., 0], np.round((most - wide.astype(int)) * 255 / most))


def test_avif_of_10_bits_is_flagged() -> None:
    data = cv2.imencode(".avif", levels16(3), [cv2.IMWRITE_AVIF_DEPTH, 10])[1].tobytes()
    assert decoded(data).bit_depth_reduced
    assert not decoded(save(photo(), "AVIF")).bit_depth_reduced


@pytest.mark.parametrize(
    "kind", ["float grey", "float RGB", "32-bit", "signed", "16-bit planes", "16-bit premultiplied", "Lab"]
)
def test_what_has_no_8_bit_meaning_is_refused(kind: str) -> None:
    zeros = bytes(11 * 13 * 16)
    data = {
        "float grey": tiff(zeros[: 11 * 13 * 4], 11, 13, bits=32, channels=1, tags={339: 3}),
        "float RGB": tiff(zeros[: 11 * 13 * 12], 11, 13, bits=32, channels=3, tags={339: 3}),
        "32-bit": tiff(zeros[: 11 * 13 * 4], 11, 13, bits=32, channels=1),
        "signed": tiff(zeros[: 11 * 13 * 2], 11, 13, bits=16, channels=1, tags={339: 2}),
        "16-bit planes": tiff(zeros[: 11 * 13 * 6], 11, 13, bits=16, channels=3, tags={284: 2}),
        "16-bit premultiplied": tiff(zeros[: 11 * 13 * 8], 11, 13, bits=16, channels=4, tags={338: 1}),
        "Lab": tiff(zeros[: 11 * 13 * 3], 11, 13, bits=8, channels=3, tags={262: 8}),
    }[kind]
    fault = decode_image(data, max_pixels=MAX_PIXELS)
    assert isinstance(fault, Fault)
    assert fault.code == "image_unsupported"
    assert fault.message


def test_one_bit_images_are_black_and_white() -> None:
    bits = photo()[..., 0] > 120
    for image_format in ("PNG", "TIFF", "BMP", "GIF"):
        image = decoded(save(PIL.Image.fromarray(bits), image_format))
        assert np.array_equal(image.pixels[..., 0], np.where(bits, 255, 0)), image_format


def test_cmyk_without_a_profile() -> None:
    ink = np.dstack([photo(), photo()[::-1, :, 0] // 3])
    expected = np.asarray(PIL.Image.fromarray(ink, "CMYK").convert("RGB"))
    assert np.array_equal(decoded(save(PIL.Image.fromarray(ink, "CMYK"), "TIFF")).pixels, expected)
    # Adobe's JPEGs hold the ink inverted; a picture of no ink must come out white, not black.
    data = save(PIL.Image.fromarray(ink, "CMYK"), "JPEG", quality=100)
    assert np.abs(decoded(data).pixels.astype(int) - expected).mean() < 3
    blank = PIL.Image.new("CMYK", (8, 8))
    assert (decoded(save(blank, "JPEG")).pixels == 255).all()


def test_cmyk_jpeg_is_decoded_as_pillow_does() -> None:
    ink = PIL.Image.fromarray(np.dstack([photo(), photo()[..., :1]]), "CMYK")
    data = save(ink, "JPEG")
    assert np.array_equal(decoded(data).pixels, np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_icc_profile_is_converted_to_srgb(image_format: str) -> None:
    icc = wide_gamut_profile()
    plain = decoded(save(photo(), image_format))
    image = decoded(save(photo(), image_format, icc_profile=icc))
    expected = ImageCms.profileToProfile(
        PIL.Image.fromarray(plain.pixels), io.BytesIO(icc), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert expected is not None
    assert np.abs(image.pixels.astype(int) - np.asarray(expected)).max() <= 1
    assert np.abs(image.pixels.astype(int) - plain.pixels).max() > 50


def test_srgb_profile_changes_no_pixel() -> None:
    assert np.array_equal(decoded(save(photo(), "PNG", icc_profile=profile("sRGB"))).pixels, photo())


@pytest.mark.parametrize("icc", [b"", b"not a profile", profile("sRGB")[:200], profile("LAB"), profile("XYZ")])
def test_profiles_that_are_broken_or_of_another_space_are_ignored(icc: bytes) -> None:
    assert np.array_equal(decoded(save(photo(), "PNG", icc_profile=icc)).pixels, photo())
    grey = PIL.Image.fromarray(photo()[..., 0])
    assert np.array_equal(decoded(save(grey, "PNG", icc_profile=icc)).pixels[..., 2], photo()[..., 0])


def test_grey_image_with_an_rgb_profile() -> None:
    grey = photo()[..., 0]
    image = decoded(save(PIL.Image.fromarray(grey), "PNG", icc_profile=profile("sRGB")))
    assert np.array_equal(image.pixels, np.repeat(grey[..., None], 3, axis=2))


def test_cmyk_with_a_profile_of_another_space() -> None:
    ink = PIL.Image.fromarray(np.dstack([photo(), photo()[..., :1]]), "CMYK")
    plain, profiled = save(ink, "TIFF"), save(ink, "TIFF", icc_profile=profile("sRGB"))
    assert np.array_equal(decoded(profiled).pixels, decoded(plain).pixels)


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_taken(image_format: str) -> None:
    frames = [PIL.Image.fromarray(np.full((9, 12, 3), level, np.uint8)) for level in (250, 120, 4)]
    data = save(frames[0], image_format, save_all=True, append_images=frames[1:])
    assert np.abs(decoded(data).pixels.astype(int) - 250).max() <= 3


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5000, 1), (1, 5000), (3, 8193)])
@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"])
def test_extreme_sizes(image_format: str, height: int, width: int) -> None:
    data = save(np.full((height, width, 3), 99, np.uint8), image_format)
    image = decoded(data)
    assert image.pixels.shape == (height, width, 3)
    assert np.abs(image.pixels.astype(int) - 99).max() <= 2
    assert probe_size(data) == (height, width)


def test_many_threads_decode_the_same() -> None:
    files = [
        save(photo(), "JPEG", icc_profile=wide_gamut_profile()),
        save(photo(), "PNG"),
        save(photo(), "WEBP"),
        png16(levels16(3)),
        save(photo(), "AVIF"),
        save(photo(), "TIFF"),
    ]
    expected = [decoded(data).pixels for data in files]
    order = [index % len(files) for index in range(120)]
    random.Random(0).shuffle(order)
    with ThreadPoolExecutor(8) as pool:
        for index, image in zip(order, pool.map(lambda i: decoded(files[i]), order), strict=True):
            assert np.array_equal(image.pixels, expected[index])
