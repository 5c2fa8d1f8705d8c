"""Image files, made byte by byte or by the encoders, for the tests of this folder."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray

MAX_PIXELS = 10**6
_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}  # channels -> PNG colour type


def photo(height: int = 40, width: int = 56) -> NDArray[np.uint8]:
    """Something smooth with an edge and no symmetry: (H, W, 3) uint8."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    edge = 60 * (x > width / 3)
    bands = [120 + 90 * np.sin(y / 9 + x / 31) + edge / 2, 3 * y + 20, 200 - 2 * x + edge]
    pixels: NDArray[np.uint8] = np.clip(np.stack(bands, axis=-1), 0, 255).astype(np.uint8)
    return pixels


def save(pixels: NDArray[Any] | PIL.Image.Image, image_format: str, **options: Any) -> bytes:
    picture = pixels if isinstance(pixels, PIL.Image.Image) else PIL.Image.fromarray(pixels)
    stream = io.BytesIO()
    picture.save(stream, image_format, **options)
    return stream.getvalue()


def exif(orientation: int) -> bytes:
    block = PIL.Image.Exif()
    block[274] = orientation
    return block.tobytes()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(
    rows: list[bytes], width: int, depth: int, colour: int, *, before: bytes = b"", height: int | None = None
) -> bytes:
    header = struct.pack(">IIBBBBB", width, len(rows) if height is None else height, depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def png16(pixels: NDArray[np.uint16], *, before: bytes = b"") -> bytes:
    """(H, W, 1 | 2 | 3 | 4) with 16 bits a channel."""
    rows = [row.astype(">u2").tobytes() for row in pixels]
    return png(rows, pixels.shape[1], 16, _COLOURS[pixels.shape[2]], before=before)


def tiff16(pixels: NDArray[np.uint16]) -> bytes:
    swapped = pixels[..., ::-1] if pixels.ndim == 3 else pixels
    return bytes(cv2.imencode(".tiff", np.ascontiguousarray(swapped))[1].tobytes())


def tiff(
    samples: bytes, height: int, width: int, *, bits: int, channels: int, tags: dict[int, int] | None = None
) -> bytes:
    """An uncompressed little-endian TIFF of one strip, its directory first. ``tags`` are added or replace ours."""
    entries = {256: width, 257: height, 258: bits, 259: 1, 262: 2 if channels >= 3 else 1, 273: 0, 277: channels}
    entries |= {278: height, 279: len(samples), 284: 1} | (tags or {})
    size = 8 + 2 + 12 * len(entries) + 4
    entries[273] = size + 2 * channels
    directory = b""
    for tag in sorted(entries):
        if tag == 258 and channels > 2:
            directory += struct.pack("<HHII", tag, 3, channels, size)
        elif tag == 258:
            directory += struct.pack("<HHIHH", tag, 3, channels, bits, bits)
        else:
            directory += struct.pack("<HHII", tag, 4, 1, entries[tag])
    depths = struct.pack(f"<{channels}H", *[bits] * channels)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + b"\0" * 4 + depths + samples
