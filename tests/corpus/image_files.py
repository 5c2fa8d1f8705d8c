"""Image files of every format that Pillow writes: whole, cut, with a bit changed, empty, under a wrong name, bombs."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from tests.corpus.case import (
    DAMAGED,
    HOLE,
    Case,
    SampleCase,
    damage,
    error,
    masked,
    photo,
    result,
)
from tests.media.files import chunk, png16, save, tiff16
from tests.media.files import png as png_of_rows

_CUTS = (1, 8, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, -2, -1)  # bytes, shares of the file, bytes from its end
_FLIPS = 6
# Their pixels have checksums: a changed bit is an error, or was none of a pixel's.
_CHECKED = ("png", "png 16 bits", "png palette")


def _picture() -> PIL.Image.Image:
    return PIL.Image.fromarray(photo())


def _frames() -> list[PIL.Image.Image]:
    return [PIL.Image.fromarray(np.roll(photo(), 7 * step, axis=1)) for step in range(3)]


def files() -> dict[str, tuple[str, bytes, NDArray[np.uint8], int]]:
    """Field, bytes, pixels and how many levels the format may be off, by name. Of Pillow's and OpenCV's encoders."""
    colours = photo()
    grey = np.repeat(colours[..., :1], 3, axis=2)
    palette = _picture().quantize(64)
    flat = np.asarray(palette.convert("RGB"))
    animated: dict[str, Any] = {"save_all": True, "append_images": _frames()[1:]}
    wide = colours.astype(np.uint16) * 257
    fine: dict[str, Any] = {"quality": 95, "subsampling": 0}
    return {
        "jpeg": ("jpg", save(colours, "JPEG", **fine), colours, 8),
        "jpeg progressive": ("jpg", save(colours, "JPEG", progressive=True, **fine), colours, 8),
        "jpeg restarts": ("jpg", save(colours, "JPEG", restart_marker_rows=1, **fine), colours, 8),
        "jpeg grey": ("jpg", save(colours[..., 0], "JPEG", quality=95), grey, 6),
        "mpo": ("jpg", save(_picture(), "MPO", **fine), colours, 8),
        "png": ("png", save(colours, "PNG"), colours, 0),
        "png 16 bits": ("png", png16(wide), colours, 0),
        "png palette": ("png", save(palette, "PNG"), flat, 0),
        "webp": ("webp", save(colours, "WEBP", quality=95), colours, 24),
        "webp lossless": ("webp", save(colours, "WEBP", lossless=True), colours, 0),
        "webp animated": ("webp", save(_frames()[0], "WEBP", lossless=True, **animated), colours, 0),
        "gif": ("jpg", save(palette, "GIF"), flat, 0),
        "gif animated": ("jpg", save(palette, "GIF", save_all=True, append_images=[palette.rotate(180)]), flat, 0),
        "bmp": ("png", save(colours, "BMP"), colours, 0),
        "avif": ("png", save(colours, "AVIF", quality=95, subsampling="4:4:4"), colours, 12),
        "tiff": ("png", save(colours, "TIFF"), colours, 0),
        "tiff deflate": ("png", save(colours, "TIFF", compression="tiff_adobe_deflate"), colours, 0),
        "tiff lzw": ("png", save(colours, "TIFF", compression="tiff_lzw"), colours, 0),
        "tiff jpeg": ("png", save(colours, "TIFF", compression="jpeg", quality=95), colours, 24),
        "tiff 16 bits": ("png", tiff16(wide), colours, 0),
    }


def cases() -> Iterator[Case]:
    made = files()
    for name, (field, data, pixels, within) in made.items():
        yield SampleCase("formats", name, masked(data, field, HOLE), result(pixels, box=HOLE, within=within))
    yield from _refused()
    for name, (field, data, pixels, within) in made.items():
        yield from _cut(name, field, data)
        yield from _flipped(name, field, data, pixels if name in _CHECKED and not within else None)
    yield from _mislabelled(made)
    yield from _bombs()


def _refused() -> Iterator[Case]:
    """Formats that aren't read are told by their first bytes, and nothing of theirs is started."""
    for image_format in (
        "JPEG2000", "ICO", "PPM", "TGA", "PCX", "SGI", "DDS", "EPS", "PDF", "ICNS", "QOI", "BLP", "DIB", "SPIDER",
    ):  # fmt: skip
        picture: PIL.Image.Image = _picture()
        if image_format == "ICNS":
            picture = picture.resize((32, 32))
        elif image_format == "BLP":
            picture = picture.quantize(16)
        elif image_format == "SPIDER":
            picture = picture.convert("F")
        data = save(picture, image_format)
        yield SampleCase("formats refused", image_format, masked(data), error("image_undecodable"))
    for name, data in {
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "heic": b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + bytes(200),
        "jpeg xl": b"\xff\x0a" + bytes(100),
        "an HTML page": b"<!doctype html><title>404</title>",
        "text": b"not an image at all\n" * 20,
        "zeros": bytes(1000),
        "a tar": b"a.jpg".ljust(512, b"\0"),
    }.items():
        yield SampleCase("formats refused", name, masked(data, "jpg"), error("image_undecodable"))


def _cut(name: str, field: str, data: bytes) -> Iterator[Case]:
    for cut in _CUTS:
        end = int(cut * len(data)) if isinstance(cut, float) else cut
        yield SampleCase("images cut", f"{name} at {cut}", masked(data[:end], field), error(*DAMAGED))


def _flipped(name: str, field: str, data: bytes, checked: NDArray[np.uint8] | None) -> Iterator[Case]:
    chance = random.Random(name)
    for number in range(_FLIPS):
        bit = chance.randrange(8 * len(data))
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        yield SampleCase(
            "images with a bit changed",
            f"{name} {number} bit {bit}",
            masked(bytes(damaged), field),
            damage(checked, *DAMAGED, "image_unsupported", "image_too_large", "mask_aspect"),
        )


def _mislabelled(made: dict[str, tuple[str, bytes, NDArray[np.uint8], int]]) -> Iterator[Case]:
    png, jpeg = made["png"][1], made["jpeg"][1]
    group = "images mislabelled"
    yield SampleCase(group, "a PNG named jpg", masked(png, "jpg"), result(photo()))
    yield SampleCase(group, "a JPEG named png", masked(jpeg, "png"), result(photo(), within=8))
    yield SampleCase(group, "a WebP named jpeg", masked(made["webp lossless"][1], "jpeg"), result(photo()))
    yield SampleCase(group, "bytes behind a PNG", masked(png + b"garbage" * 9), result(photo()))
    yield SampleCase(group, "bytes behind a JPEG", masked(jpeg + b"garbage" * 9, "jpg"), result(photo(), within=8))
    yield SampleCase(group, "a byte before a PNG", masked(b"\n" + png), error("image_undecodable"))
    for field in ("jpg", "png", "webp"):
        yield SampleCase(group, f"an empty {field}", masked(b"", field), error("image_empty"))
    yield SampleCase(group, "no image", {"mask.png": png}, error("missing_image"))
    yield SampleCase(group, "only a text", {"txt": b"a dog"}, error("missing_image"))
    other = save(photo()[::-1], "PNG")
    both = {**masked(other), "jpg": jpeg}
    yield SampleCase(group, "two images: the first of input.image counts", both, result(photo(), within=8))


# --- files that ask for more than they are ------------------------------------------------------------------


def _png_with(*chunks: bytes) -> bytes:
    data = save(photo(), "PNG")
    return data[:33] + b"".join(chunks) + data[33:]


def _jpeg_size(data: bytes, height: int, width: int) -> bytes:
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]


def _scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again: little to store, and the whole picture to pass over."""
    data = save(np.full((1400, 1400, 3), 90, np.uint8), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + b"\xff\xd9"


def _bombs() -> Iterator[Case]:
    group, most = "bombs", error("image_too_large")
    zeros = zlib.compress(bytes(100 * 2**20), 9)
    huge = png_of_rows([b"\0"], 60000, 8, 2, height=60000)
    yield SampleCase(group, "a PNG of 60000x60000", masked(huge + bytes(4000)), most)
    yield SampleCase(group, "a JPEG of 60000x60000", masked(_jpeg_size(save(photo(), "JPEG"), 60000, 60000)), most)
    gif = bytearray(save(_picture().quantize(16), "GIF"))
    gif[6:10] = b"\xff\xff\xff\xff"
    yield SampleCase(group, "a GIF of 65535x65535", masked(bytes(gif)), most)
    gif = bytearray(save(_picture().quantize(16), "GIF"))
    at = gif.index(b"\x2c", 13 + 3 * 2 ** ((gif[10] & 7) + 1))
    gif[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    yield SampleCase(group, "a GIF whose frame is larger than it", masked(bytes(gif)), error("image_undecodable"))
    bmp = bytearray(save(photo(), "BMP"))
    bmp[18:26] = struct.pack("<ii", 60000, 60000)
    yield SampleCase(group, "a BMP of 60000x60000", masked(bytes(bmp)), most)
    avif = bytearray(save(photo(), "AVIF"))
    ispe = avif.index(b"ispe")
    avif[ispe + 8 : ispe + 16] = struct.pack(">II", 30000, 30000)
    yield SampleCase(group, "an AVIF of 30000x30000", masked(bytes(avif)), error("image_too_large", *DAMAGED))
    canvas = b"WEBPVP8X" + struct.pack("<II", 10, 0) + b"\xfd\x3f\0" * 2
    webp = b"RIFF" + struct.pack("<I", len(canvas)) + canvas
    yield SampleCase(group, "a WebP of 16382x16382", masked(webp), most)
    tiff = save(PIL.Image.new("1", (60000, 600)), "TIFF", compression="group4")
    yield SampleCase(group, "a fax of 60000x600 in a few bytes", masked(tiff), most)
    dense = save(np.zeros((1500, 1501, 3), np.uint8), "PNG")
    yield SampleCase(group, "a little more than max_pixels", masked(dense), most)
    # What isn't of a pixel must cost neither the picture nor memory.
    text = chunk(b"zTXt", b"Comment\0\0" + zeros)
    yield SampleCase(group, "a PNG's text of 100 MiB in 100 kB", masked(_png_with(text)), result(photo()))
    texts = chunk(b"iTXt", b"Comment\0\1\0\0\0" + zeros)
    yield SampleCase(group, "a PNG's unicode text of 100 MiB", masked(_png_with(texts)), result(photo()))
    many = chunk(b"tEXt", b"Comment\0" + b"x" * 1000) * 200
    yield SampleCase(group, "a PNG of 200 texts", masked(_png_with(many)), result(photo()))
    profile = chunk(b"iCCP", b"icc\0\0" + zeros)
    yield SampleCase(group, "a PNG's profile of 100 MiB in 100 kB", masked(_png_with(profile)), result(photo()))
    bad = chunk(b"tEXt", b"Comment\0text")
    yield SampleCase(group, "a PNG's text of a wrong checksum", masked(_png_with(bad[:-1] + b"!")), result(photo()))
    yield SampleCase(group, "a PNG's density that is cut", masked(_png_with(chunk(b"pHYs", b"\0\0"))), result(photo()))
    yield SampleCase(group, "a PNG's profile without content", masked(_png_with(chunk(b"iCCP", b""))), result(photo()))
    exif = chunk(b"eXIf", b"MM\0*" + struct.pack(">IHHHII", 8, 1, 274, 4, 0xFFFFFFFF, 8))
    yield SampleCase(group, "EXIF of four billion orientations", masked(_png_with(exif)), result(photo()))
    pixels = chunk(b"IDAT", zeros)
    behind = save(photo(), "PNG")
    bloated = behind[: behind.index(b"IDAT") - 4] + pixels + behind[-12:]
    yield SampleCase(group, "a PNG with 100 MiB of rows too many", masked(bloated), damage(None))
    yield SampleCase(
        group, "a JPEG of 1000 scans", masked(_scans(1000), "jpg"), error("image_undecodable", "mask_aspect")
    )
    empty = png_of_rows([], 0, 8, 2, height=0)
    yield SampleCase(group, "a PNG without pixels", masked(empty), error("image_undecodable"))
    yield SampleCase(group, "a header alone", masked(save(photo(), "PNG")[:33]), error("image_truncated"))
