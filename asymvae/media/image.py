"""Bytes -> image -> bytes."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import PIL.Image
import simplejpeg
from numpy.typing import NDArray

from asymvae.faults import Fault
from asymvae.media.colour import to_srgb
from asymvae.media.raster import orient, read_raster, read_shown, read_size

ImageFormat = Literal["png", "jpeg", "webp"]

# The formats' own: WebP. The libraries' own: libjpeg's (not 65,535), libpng's (not 2**31 - 1), for readers as well.
_LONGEST_SIDE = {"png": 1_000_000, "jpeg": 65500, "webp": 16383}


@dataclass(frozen=True, slots=True)
class Image:
    """What the pipeline calls *the original*: oriented, 8-bit, sRGB.

    ``pixels``: (H, W, 3) uint8. ``alpha``: (H, W) uint8, not premultiplied, carried through to the result;
    None where the file has none. ``bit_depth_reduced``: the file had more than 8 bits a channel. ``reduced``: how
    many times smaller than the file's image each side is (rounded up), where that was asked for.
    """

    pixels: NDArray[np.uint8]
    alpha: NDArray[np.uint8] | None
    bit_depth_reduced: bool
    reduced: int = 1
    whole: tuple[int, int] | None = None  # the file's (height, width), as shown, where it was reduced

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the file's image, as shown."""
        height, width = self.pixels.shape[:2]
        return self.whole or (height, width)


def probe_size(data: bytes) -> tuple[int, int] | Fault:
    """(height, width) as stored, before EXIF orientation, from the header alone: what decoding would cost.

    Faults: image_empty, image_undecodable, image_truncated, image_unsupported.
    """
    return read_size(data)


def probe_shown(data: bytes) -> tuple[tuple[int, int], bool] | Fault:
    """((height, width) as shown, after EXIF orientation; whether :func:`decode_image` can reduce it); from the header.

    Faults: as :func:`probe_size`.
    """
    return read_shown(data)


def decode_image(data: bytes, *, max_pixels: int, times: int = 1) -> Image | Fault:
    """Decode PNG, JPEG, WebP, TIFF, AVIF, GIF or BMP; of several frames the first.

    EXIF orientation is applied, ICC profiles are converted to sRGB (see :mod:`asymvae.media.colour`), 16 bits
    a channel become round(v / 257). A file cut at any place is a fault. More than ``max_pixels`` pixels are
    refused from the header, before memory is taken for them.

    ``times``: 2, 4 or 8 decodes a JPEG at that fraction of its sides, rounded up, by scaling in its own transform,
    which costs a fraction of the time; other formats, and damaged files, come whole (see ``Image.reduced``).

    Faults: image_empty, image_undecodable, image_truncated, image_too_large, image_unsupported.
    """
    raster = read_raster(data, max_pixels=max_pixels, times=times)
    if isinstance(raster, Fault):
        return raster
    pixels = orient(to_srgb(raster.channels, raster.space, raster.icc), raster.orientation)
    alpha = None if raster.alpha is None else orient(raster.alpha, raster.orientation)
    if raster.whole is None:
        return Image(pixels, alpha, raster.bit_depth_reduced)
    whole = raster.whole[::-1] if raster.orientation >= 5 else raster.whole
    return Image(pixels, alpha, raster.bit_depth_reduced, times, whole)


def encode_image(
    pixels: NDArray[np.uint8],
    alpha: NDArray[np.uint8] | None = None,
    *,
    image_format: ImageFormat,
    quality: int = 95,
) -> bytes | Fault:
    """(H, W, 3) sRGB, and (H, W) alpha, as a file. The same pixels give the same bytes.

    PNG and WebP are lossless, under transparent pixels too. ``quality`` (1-100) is JPEG's, which is written 4:4:4
    and drops ``alpha``. No profile is written: files without one are sRGB. Faults: image_format_limit.
    """
    height, width = pixels.shape[:2]
    if pixels.dtype != np.uint8 or pixels.shape != (height, width, 3):
        raise ValueError(f"pixels must be (H, W, 3) uint8, not {pixels.shape} {pixels.dtype}")
    if alpha is not None and (alpha.dtype != np.uint8 or alpha.shape != (height, width)):
        raise ValueError(f"alpha must be ({height}, {width}) uint8, not {alpha.shape} {alpha.dtype}")
    if max(height, width) > _LONGEST_SIDE[image_format]:
        return Fault("image_format_limit", {"format": image_format, "width": width, "height": height})
    if image_format == "jpeg":
        data: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", "444")
        return data
    if image_format == "webp":
        return _encode_webp(pixels, alpha)
    return _encode_png(pixels, alpha)


def _encode_png(pixels: NDArray[np.uint8], alpha: NDArray[np.uint8] | None) -> bytes:
    swapped = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2BGR)
    if alpha is not None:
        swapped = cv2.merge([*cv2.split(swapped), alpha])
    # OpenCV's preset (level 1, run lengths) is the fast one; naming a level in it gives up the run lengths.
    written, buffer = cv2.imencode(".png", swapped)
    if not written:
        raise RuntimeError(f"OpenCV could not write a PNG of {pixels.shape[1]}x{pixels.shape[0]}")
    return buffer.tobytes()


def _encode_webp(pixels: NDArray[np.uint8], alpha: NDArray[np.uint8] | None) -> bytes:
    picture = PIL.Image.fromarray(pixels if alpha is None else np.dstack([pixels, alpha]))
    stream = io.BytesIO()
    # quality is the effort of a lossless WebP; exact keeps the colours under transparent pixels.
    picture.save(stream, "WEBP", lossless=True, method=0, quality=0, exact=True)
    return stream.getvalue()
