"""A file's bytes as the pixels it stores: any container and mode in; 8-bit grey, RGB or CMYK out.

Neither the colour profile nor the EXIF orientation is applied here: :mod:`asymvae.media.image` applies both,
:mod:`asymvae.media.mask` the orientation alone.

The decoder is chosen by the file's signature, from a closed list: Pillow's own choice would include plug-ins that
start other programs. Nothing here changes a global, so that many threads may decode at once.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import cv2
import numpy as np
import PIL.Image
import simplejpeg
from numpy.typing import NDArray
from PIL import TiffImagePlugin
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from asymvae.faults import Fault
from asymvae.media.container import (
    Damage,
    avif_is_deep,
    find_damage,
    png_pixels_alone,
    png_profile,
    sniff,
    tiff_is_tiled,
    webp_size,
)

Space = Literal["L", "RGB", "CMYK"]

_READERS: Final[dict[str, type[ImageFile]]] = {
    "avif": AvifImageFile,
    "bmp": BmpImageFile,
    "gif": GifImageFile,
    "jpeg": JpegImageFile,
    "png": PngImageFile,
    "tiff": TiffImagePlugin.TiffImageFile,
    "webp": WebPImageFile,
}
_GREY_MODES: Final = ("1", "L", "LA", "La")
_RGB_MODES: Final = ("RGB", "RGBA", "RGBX", "RGBa", "P", "PA", "YCbCr")
_FAULTS: Final[dict[Damage, Fault]] = {
    "cut": Fault("image_truncated"),
    "damaged": Fault("image_undecodable"),
}
_TO_8_BITS: Final = ((np.arange(65536) + 128) // 257).astype(np.uint8)  # round(v / 257); odd, so no ties
_PNG_EXIF: Final = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
_LARGEST_PLAIN_TILE: Final = 2**22  # 2048 x 2048, which small images come in, too
# TIFF tags
_ORIENTATION: Final = 274
_BITS_PER_SAMPLE: Final = 258
_PHOTOMETRIC: Final = 262
_PLANES: Final = 284
_EXTRA_SAMPLES: Final = 338
_SAMPLE_FORMAT: Final = 339
_TILE_SIDES: Final = (322, 323)
_TIFF_PIECES: Final = ((273, 279), (324, 325))  # offsets and byte counts, of strips and of tiles


@dataclass(frozen=True, slots=True)
class Raster:
    """The pixels as stored. ``channels``: (H, W, 1 | 3 | 4) uint8 of ``space``; ``alpha``: (H, W), not
    premultiplied; ``orientation``: 1-8 as EXIF has it, 1 where there is none or TIFF's was applied already."""

    channels: NDArray[np.uint8]
    alpha: NDArray[np.uint8] | None
    space: Space
    icc: bytes | None
    orientation: int
    bit_depth_reduced: bool
    whole: tuple[int, int] | None = None  # (height, width) as stored, of an image that was decoded smaller


def read_size(data: bytes) -> tuple[int, int] | Fault:
    """(height, width) as stored, before EXIF orientation, from the header alone."""
    size = webp_size(data)  # Pillow allocates the whole canvas of a WebP when it opens it
    if size is not None:
        return size
    opened = _open(data)
    return opened if isinstance(opened, Fault) else (opened.height, opened.width)


def read_shown(data: bytes) -> tuple[tuple[int, int], bool] | Fault:
    """((height, width) after EXIF orientation, whether ``read_raster`` can reduce it), from the header alone."""
    size = webp_size(data)
    opened = _open(data)
    if isinstance(opened, Fault):
        return opened
    height, width = size or (opened.height, opened.width)
    # Of a PNG Pillow would decode the pixels, to look for EXIF behind them.
    turned = isinstance(opened, JpegImageFile) and _orientation(opened) >= 5
    return ((width, height) if turned else (height, width)), isinstance(opened, JpegImageFile)


def read_raster(data: bytes, *, max_pixels: int, times: int = 1) -> Raster | Fault:
    """Decode the first frame. Whatever is cut off or damaged is a fault, not a partial picture. ``times``: see
    :func:`asymvae.media.image.decode_image`.

    A cut is recognised at any place, in the end marks of PNG, GIF, WebP and AVIF too.
    Faults: image_empty, image_undecodable, image_truncated, image_too_large, image_unsupported.
    """
    size = webp_size(data)
    if size is not None and size[0] * size[1] > max_pixels:
        return Fault("image_too_large", {"pixels": size[0] * size[1], "limit": max_pixels})
    picture = _open(data)
    if isinstance(picture, Fault):
        return picture
    pixels = picture.height * picture.width
    if pixels == 0:
        return Fault("image_undecodable")
    tile = _tile_pixels(data, picture)
    if isinstance(tile, Fault):
        return tile
    if pixels > max_pixels or tile > max(max_pixels, _LARGEST_PLAIN_TILE):
        return Fault("image_too_large", {"pixels": max(pixels, tile), "limit": max_pixels})
    damage = find_damage(data)
    if damage is not None:
        return _FAULTS[damage]
    try:
        if isinstance(picture, JpegImageFile):
            return _read_jpeg(data, picture, times)
        if isinstance(picture, PngImageFile):
            return _read_png(data, picture)
        if isinstance(picture, TiffImagePlugin.TiffImageFile):
            return _read_tiff(data, picture)
        picture.load()
        deep = isinstance(picture, AvifImageFile) and avif_is_deep(data)
        return _split(picture, picture.info.get("icc_profile"), _orientation(picture), deep)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  bytes in memory are all that can be at fault here
        return _fault_of(error)


def orient(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """(H, W, ...) as stored -> as meant, by EXIF's orientation 1-8; contiguous."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _open(data: bytes) -> ImageFile | Fault:
    if not data:
        return Fault("image_empty")
    kind = sniff(data)
    if kind is None:
        return Fault("image_undecodable")
    try:
        # The class itself, since PIL.Image.open would apply its own pixel limit, a global, after the header.
        picture = _READERS[kind](io.BytesIO(data))
        if isinstance(picture, TiffImagePlugin.TiffImageFile) and _strips_are_cut(picture, len(data)):
            return Fault("image_truncated")
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  as in read_raster
        if kind == "png" and (bare := png_pixels_alone(data)) != data:
            # Pillow gives the whole picture up for a text or a profile that is too large, or damaged.
            opened = _open(bare)
            if not isinstance(opened, Fault):
                opened.info["icc_profile"] = png_profile(data)
                return opened
        cut = find_damage(data) == "cut"
        return _unsupported_tiff(data) or (Fault("image_truncated") if cut else _fault_of(error))
    return picture


def _tile_pixels(data: bytes, picture: ImageFile) -> int | Fault:
    """A TIFF's tile is decoded as a whole, and may be declared far larger than the image. 0: there are no tiles."""
    if not isinstance(picture, TiffImagePlugin.TiffImageFile) or not tiff_is_tiled(data):
        return 0
    width, height = (picture.tag_v2.get(tag) for tag in _TILE_SIDES)
    if isinstance(width, int) and isinstance(height, int):
        return height * width
    return Fault("image_undecodable")  # libtiff might still find a size where Pillow doesn't


def _fault_of(error: Exception) -> Fault:
    text = str(error).lower()
    cut = "truncat" in text or "premature end" in text or isinstance(error, EOFError)
    return Fault("image_truncated" if cut else "image_undecodable")


def _read_jpeg(data: bytes, picture: JpegImageFile, times: int) -> Raster | Fault:
    space: Space = "RGB" if picture.mode == "RGB" else "CMYK" if picture.mode == "CMYK" else "L"
    orientation = _orientation(picture)
    if orientation != 1 and (picture.height % times or picture.width % times):
        times = 1  # the rounded-up edge would come to lie at the top or the left, and shift the picture
    try:
        # Strict: libjpeg makes grey of what is missing and only warns of it; Pillow ignores the warning.
        # The least that is asked for is what the fraction gives, so libjpeg takes just that fraction.
        least = (-(-picture.height // times), -(-picture.width // times)) if times > 1 else (0, 0)
        channels = simplejpeg.decode_jpeg(
            data, "GRAY" if space == "L" else space, min_height=least[0], min_width=least[1]
        )
        if space == "CMYK":
            channels = 255 - channels  # Adobe stores ink inverted; Pillow takes all for Adobe's, and so do we
    except ValueError as error:
        text = str(error)
        if "remature end" in text:
            return Fault("image_truncated")
        if "Huffman" in text or "arithmetic" in text or "instead of RST" in text:
            return Fault("image_undecodable")
        # Warnings that cost no pixel (bytes between markers), and what TurboJPEG doesn't know.
        picture.load()
        channels = np.asarray(picture).reshape(picture.height, picture.width, -1)
    stored = (picture.height, picture.width)
    whole = None if channels.shape[:2] == stored else stored
    return Raster(channels, None, space, picture.info.get("icc_profile"), orientation, False, whole)


def _read_png(data: bytes, picture: PngImageFile) -> Raster | Fault:
    """By OpenCV, which reads all 16 bits (Pillow keeps the upper byte: half of 65,535 would be 127, not 128) and
    refuses a file with too few rows (Pillow leaves them black)."""
    levels = cv2.imdecode(np.frombuffer(png_pixels_alone(data), np.uint8), cv2.IMREAD_UNCHANGED)
    if levels is None or levels.shape[:2] != (picture.height, picture.width):
        return Fault("image_undecodable")
    # Pillow decodes all the pixels to find EXIF behind them: it is asked only where there may be some.
    orientation = _orientation(picture) if any(mark in data for mark in _PNG_EXIF) else 1
    space: Space = "L" if picture.mode in _GREY_MODES or picture.mode.startswith("I") else "RGB"
    raster = _from_opencv(levels, space, picture.info.get("icc_profile"), orientation)
    key, depth = picture.info.get("transparency"), data[24]
    if space == "L" and isinstance(key, int):  # the one kind of transparency that OpenCV drops
        if depth in (2, 4):
            key = key * 255 // ((1 << depth) - 1)  # the levels are in 8 bits by now, and 1-bit keys as well
        return replace(raster, alpha=np.where(levels == key, 0, 255).astype(np.uint8))
    return raster


def _read_tiff(data: bytes, picture: TiffImagePlugin.TiffImageFile) -> Raster | Fault:
    # Read before load(), which forgets some tags.
    tags = picture.tag_v2
    bits = max((8, *(int(count) for count in tags.get(_BITS_PER_SAMPLE, ()))))
    white_is_zero = tags.get(_PHOTOMETRIC) == 0
    planes = tags.get(_PLANES, 1) == 2 and len(picture.getbands()) > 1
    if bits > 8 and (planes or 1 in tags.get(_EXTRA_SAMPLES, ())):
        # In planes of their own, or multiplied by alpha: Pillow and OpenCV both get 16 bits wrong.
        return Fault("image_unsupported", {"mode": f"{picture.mode};{bits}"})
    picture.load()  # turns the image, too; and tells a cut file before OpenCV sees it
    icc = picture.info.get("icc_profile")
    if picture.mode.startswith("I;16"):  # 12 bits as well
        most = (1 << bits) - 1
        stored = np.asarray(picture).astype(np.uint32)
        grey = ((most - stored if white_is_zero else stored) * 510 + most) // (2 * most)
        return Raster(grey.astype(np.uint8)[..., None], None, "L", icc, 1, True)
    if bits == 16 and picture.mode in ("RGB", "RGBA"):
        wide = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)  # turned by OpenCV, too
        if wide is None or wide.dtype != np.uint16 or wide.shape != (*picture.size[::-1], len(picture.mode)):
            return Fault("image_unsupported", {"mode": f"{picture.mode};16"})
        return _from_opencv(wide, "RGB", icc, 1)
    return _split(picture, icc, 1, bits > 8)


def _from_opencv(levels: NDArray[Any], space: Space, icc: bytes | None, orientation: int) -> Raster:
    """(H, W), (H, W, 3) or (H, W, 4) of blue, green, red, alpha, in 8 or 16 bits."""
    reduced = levels.dtype == np.uint16
    levels = (_TO_8_BITS[levels] if reduced else levels).reshape(*levels.shape[:2], -1)
    alpha = np.ascontiguousarray(levels[..., 3]) if levels.shape[2] == 4 else None
    if levels.shape[2] == 1 or space == "L":
        return Raster(np.ascontiguousarray(levels[..., :1]), alpha, "L", icc, orientation, reduced)
    swap = cv2.COLOR_BGR2RGB if alpha is None else cv2.COLOR_BGRA2RGB
    return Raster(np.asarray(cv2.cvtColor(levels, swap), np.uint8), alpha, "RGB", icc, orientation, reduced)


def _split(picture: PIL.Image.Image, icc: bytes | None, orientation: int, reduced: bool) -> Raster | Fault:
    """Colours and alpha apart, whatever the mode."""
    if picture.mode == "CMYK":
        return Raster(np.asarray(picture), None, "CMYK", icc, orientation, reduced)
    space: Space
    if picture.mode in _GREY_MODES:
        space = "L"
    elif picture.mode in _RGB_MODES:
        space = "RGB"
    else:
        return Fault("image_unsupported", {"mode": picture.mode})
    if not picture.has_transparency_data:
        plain = np.asarray(picture if picture.mode == space else picture.convert(space))
        return Raster(plain.reshape(picture.height, picture.width, -1), None, space, icc, orientation, reduced)
    both = np.asarray(picture.convert("LA" if space == "L" else "RGBA"))
    colours, alpha = np.ascontiguousarray(both[..., :-1]), np.ascontiguousarray(both[..., -1])
    return Raster(colours, alpha, space, icc, orientation, reduced)


def _orientation(picture: PIL.Image.Image) -> int:
    try:
        value = picture.getexif().get(_ORIENTATION, 1)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  a broken EXIF block costs the orientation, not the picture
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _strips_are_cut(picture: TiffImagePlugin.TiffImageFile, size: int) -> bool:
    """Where the file is cut behind its directory, libtiff would leave the missing strips black."""
    for offsets, counts in _TIFF_PIECES:
        begins, lengths = picture.tag_v2.get(offsets, ()), picture.tag_v2.get(counts, ())
        if len(begins) == len(lengths) and any(b + n > size for b, n in zip(begins, lengths, strict=True)):
            return True
    return False


def _unsupported_tiff(data: bytes) -> Fault | None:
    """Float and 32-bit TIFFs, which Pillow doesn't open at all, told from damaged ones."""
    if sniff(data) != "tiff":
        return None
    try:
        directory = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
        stream = io.BytesIO(data)
        stream.seek(directory.next)
        directory.load(stream)
        bits, formats = max(directory.get(_BITS_PER_SAMPLE, (8,))), directory.get(_SAMPLE_FORMAT, (1,))
        is_float = 3 in formats
        deep = bool(is_float or bits > 16)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  as in read_raster; tags may be of any type, too
        return None
    return Fault("image_unsupported", {"mode": f"{bits}-bit {'float' if is_float else 'integer'}"}) if deep else None
