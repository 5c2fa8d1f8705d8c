"""Bad files become faults, whatever is wrong with them and wherever."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import PIL.Image
import pytest

from asymvae.faults import Fault
from asymvae.media.image import Image, decode_image, probe_size
from tests.media.files import MAX_PIXELS, photo, png, png16, save, tiff, tiff16


def _frames() -> list[PIL.Image.Image]:
    return [PIL.Image.fromarray(np.roll(photo(20, 28), shift, axis=1)) for shift in (0, 5, 9)]


def _wide() -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    return photo(20, 28).astype(np.uint16) * 257


SMALL = photo(20, 28)
FILES = {
    "jpeg": save(SMALL, "JPEG"),
    "jpeg progressive": save(SMALL, "JPEG", progressive=True),
    "jpeg restarts": save(SMALL, "JPEG", restart_marker_rows=1),
    "jpeg cmyk": save(PIL.Image.fromarray(SMALL).convert("CMYK"), "JPEG"),
    "jpeg grey": save(SMALL[..., 0], "JPEG"),
    "png": save(SMALL, "PNG"),
    "png 16 bits": png16(_wide()),
    "png palette": save(PIL.Image.fromarray(SMALL).quantize(16), "PNG"),
    "webp": save(SMALL, "WEBP"),
    "webp lossless": save(SMALL, "WEBP", lossless=True),
    "webp animated": save(_frames()[0], "WEBP", save_all=True, append_images=_frames()[1:]),
    "gif": save(SMALL, "GIF"),
    "gif animated": save(_frames()[0], "GIF", save_all=True, append_images=_frames()[1:]),
    "bmp": save(SMALL, "BMP"),
    "avif": save(SMALL, "AVIF"),
    "tiff": save(SMALL, "TIFF"),
    "tiff directory first": tiff(SMALL.tobytes(), 20, 28, bits=8, channels=3),
    "tiff deflate": save(SMALL, "TIFF", compression="tiff_adobe_deflate"),
    "tiff lzw": save(SMALL, "TIFF", compression="tiff_lzw"),
    "tiff jpeg": save(SMALL, "TIFF", compression="jpeg"),
    "tiff 16 bits": tiff16(_wide()),
}


def code_of(data: bytes, max_pixels: int = MAX_PIXELS) -> str:
    result = decode_image(data, max_pixels=max_pixels)
    if isinstance(result, Image):
        return "decoded"
    assert result.message
    return result.code


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_at_any_byte_is_a_fault(name: str) -> None:
    data = FILES[name]
    assert code_of(data) == "decoded"
    assert code_of(b"") == "image_empty"
    # every byte of head and tail, and every 7th between: all of them take a minute
    cuts = {*range(1, 64), *range(64, len(data), 7), *range(len(data) - 64, len(data))}
    for cut in sorted(cuts):
        assert code_of(data[:cut]) in ("image_truncated", "image_undecodable"), cut


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_at_three_quarters_is_called_truncated(name: str) -> None:
    # but where libtiff wrote a directory that itself points behind the cut
    allowed = {"image_truncated", "image_undecodable"} if name == "tiff jpeg" else {"image_truncated"}
    assert code_of(FILES[name][: len(FILES[name]) * 3 // 4]) in allowed


def test_a_jpeg_whose_missing_half_was_closed_with_an_end_mark_is_truncated() -> None:
    data = FILES["jpeg"]
    assert code_of(data[: len(data) - 60] + b"\xff\xd9") == "image_truncated"


def test_a_png_with_too_few_rows_is_not_filled_up_with_black() -> None:
    assert code_of(png([bytes(28 * 3)] * 12, 28, 8, 2, height=20)) == "image_undecodable"


def test_a_changed_bit_in_a_pngs_pixels_is_noticed() -> None:
    data = bytearray(FILES["png"])
    data[data.index(b"IDAT") + 30] ^= 1
    assert code_of(bytes(data)) == "image_undecodable"


@pytest.mark.parametrize(
    "data", [b"\0", b"GIF", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"%PDF-1.7", b"<svg/>", b"P6 1 1 255 abc"]
)
def test_unknown_formats_are_refused_by_signature(data: bytes) -> None:
    assert code_of(data) == "image_undecodable"
    assert isinstance(probe_size(data), Fault)


def test_too_many_pixels_are_refused_from_the_header() -> None:
    huge = png([b"\0"], 60000, 8, 2, height=60000)
    tracemalloc.start()
    try:
        fault = decode_image(huge, max_pixels=MAX_PIXELS)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert fault == Fault("image_too_large", {"pixels": 3_600_000_000, "limit": MAX_PIXELS})
    assert probe_size(huge) == (60000, 60000)


@pytest.mark.parametrize("name", FILES)
def test_max_pixels_is_the_most_that_is_decoded(name: str) -> None:
    assert code_of(FILES[name], 560) == "decoded"
    assert code_of(FILES[name], 559) == "image_too_large"


def test_a_huge_webp_canvas_is_refused_before_it_is_allocated() -> None:
    def little(value: int, size: int) -> bytes:
        return value.to_bytes(size, "little")

    body = b"WEBP" + b"VP8X" + little(10, 4) + little(0, 4) + little(16382, 3) + little(16382, 3)
    data = b"RIFF" + little(len(body), 4) + body
    assert code_of(data) == "image_too_large"
    assert probe_size(data) == (16383, 16383)


def test_a_tiff_tile_far_larger_than_its_image_is_refused() -> None:
    tags = {322: 60000, 323: 2000, 324: 8, 325: 100}
    assert code_of(tiff(bytes(28 * 20 * 3), 20, 28, bits=8, channels=3, tags=tags)) == "image_too_large"


@pytest.mark.filterwarnings("ignore:Truncated")
def test_a_tile_side_that_only_libtiff_can_read_is_a_fault() -> None:
    # found by mutation: type 16 (LONG8), which Pillow stops at and libtiff takes: 870 MiB for 7 kB
    data = tiff(bytes(28 * 20 * 3), 20, 28, bits=8, channels=3, tags={322: 60000, 323: 2000, 324: 8, 325: 100})
    entry = data.index(struct.pack("<HHI", 322, 4, 1))
    assert code_of(data[: entry + 2] + struct.pack("<H", 16) + data[entry + 4 :]) == "image_undecodable"


def test_tiff_tags_of_a_wrong_type_are_a_fault() -> None:
    # found by mutation: a strip offset as bytes
    data = FILES["tiff directory first"]
    entry = data.index(struct.pack("<HHI", 273, 4, 1))
    assert code_of(data[: entry + 2] + struct.pack("<H", 7) + data[entry + 4 :]) == "image_undecodable"


def test_no_pixels_at_all() -> None:
    assert code_of(png([], 0, 8, 2, height=0)) == "image_undecodable"
    assert code_of(b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, 0, 0, 1, 24, 0, 0, 0, 0, 0, 0)) != "decoded"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FILES)
def test_random_damage_ends_in_pixels_or_a_fault(name: str) -> None:
    generator = np.random.default_rng(len(name))
    for _ in range(60):
        data = bytearray(FILES[name])
        for place in generator.integers(0, len(data), generator.integers(1, 5)):
            data[place] = generator.integers(0, 256)
        result = decode_image(bytes(data), max_pixels=MAX_PIXELS)
        if isinstance(result, Image):
            assert result.pixels.dtype == np.uint8
            assert result.pixels.ndim == 3
            assert result.alpha is None or result.alpha.shape == result.pixels.shape[:2]
        else:
            assert result.code.startswith("image_")
            assert result.message
