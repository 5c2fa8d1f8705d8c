"""A file's bytes as the pixels it stores: any container and mode in; 8-bit grey, RGB or CMYK out.

Neither the colour profile nor the EXIF orientation is applied here: :mod:`asymvae.media.image` applies both,
:mod:`asymvae.media.mask` the orientation alone.

The decoder is chosen by the file's signature, from a closed list: Pillow's own choice would include plug-ins that
start other programs. Nothing here changes a global, so that many threads may decode at once.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Final, Literal

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
from asymvae.media.container import Damage, avif_is_deep, find_damage, sniff, webp_size

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
_SPACES: Final[dict[str, Space]] = {"1": "L", "L": "L", "LA": "L", "La": "L", "CMYK": "CMYK"}
_RGB_MODES: Final = ("RGB", "RGBA", "RGBX", "RGBa", "P", "PA", "YCbCr")
_FAULTS: Final[dict[Damage, Fault]] = {
    "cut": Fault("image_truncated"),
    "damaged": Fault("image_undecodable"),
}
_ORIENTATION: Final = 274
_BITS_PER_SAMPLE: Final = 258
_PHOTOMETRIC: Final = 262
_PLANES: Final = 284
_EXTRA_SAMPLES: Final = 338
_SAMPLE_FORMAT: Final = 339
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


def read_size(data: bytes) -> tuple[int, int] | Fault:
    """(height, width) as stored, before EXIF orientation, from the header alone."""
    size = webp_size(data)  # Pillow allocates the whole canvas of a WebP when it opens it
    if size is not None:
        return size
    opened = _open(data)
    return opened if isinstance(opened, Fault) else (opened.height, opened.width)


def read_raster(data: bytes, *, max_pixels: int) -> Raster | Fault:
    """Decode the first frame. Whatever is cut off or damaged is a fault, not a partial picture.

    A cut is recognised at any place, in the end marks of PNG, GIF, WebP and AVIF too.
    Faults: image_empty, image_undecodable, image_truncated, image_too_large, image_unsupported.
    """
    size = read_size(data)
    if isinstance(size, Fault):
        return size
    if size[0] * size[1] > max_pixels:
        return Fault("image_too_large", {"pixels": size[0] * size[1], "limit": max_pixels})
    damage = find_damage(data)
    if damage is not None:
        return _FAULTS[damage]
    picture = _open(data)
    if isinstance(picture, Fault):
        return picture
    if picture.height * picture.width == 0:
        return Fault("image_undecodable")
    try:
        if isinstance(picture, JpegImageFile):
            return _read_jpeg(data, picture)
        return _read_other(data, picture)
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
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  as in read_raster
        return _unsupported_tiff(data) or _FAULTS.get(find_damage(data) or "damaged", _fault_of(error))
    if isinstance(picture, TiffImagePlugin.TiffImageFile) and _strips_are_cut(picture, len(data)):
        return Fault("image_truncated")
    return picture


def _fault_of(error: Exception) -> Fault:
    text = str(error).lower()
    cut = "truncat" in text or "premature end" in text or isinstance(error, EOFError)
    return Fault("image_truncated" if cut else "image_undecodable")


def _read_jpeg(data: bytes, picture: JpegImageFile) -> Raster | Fault:
    space: Space = "RGB" if picture.mode == "RGB" else "CMYK" if picture.mode == "CMYK" else "L"
    try:
        # Strict: libjpeg makes grey of what is missing and only warns of it; Pillow ignores the warning.
        channels = simplejpeg.decode_jpeg(data, "GRAY" if space == "L" else space)
        if space == "CMYK" and "adobe" in picture.info:
            channels = 255 - channels  # Adobe stores ink inverted
    except ValueError as error:
        text = str(error)
        if "remature end" in text:
            return Fault("image_truncated")
        if "Huffman" in text or "arithmetic" in text or "instead of RST" in text:
            return Fault("image_undecodable")
        # Warnings that cost no pixel (bytes between markers), and what TurboJPEG doesn't know.
        picture.load()
        channels = np.asarray(picture).reshape(picture.height, picture.width, -1)
    return Raster(channels, None, space, picture.info.get("icc_profile"), _orientation(picture), False)


def _read_other(data: bytes, picture: ImageFile) -> Raster | Fault:
    # Read before load(), which forgets some tags.
    bits = _bits(data, picture)
    inverted = isinstance(picture, TiffImagePlugin.TiffImageFile) and picture.tag_v2.get(_PHOTOMETRIC) == 0
    if bits == 16 and isinstance(picture, TiffImagePlugin.TiffImageFile) and _is_odd_16(picture):
        return Fault("image_unsupported", {"mode": f"{picture.mode};16"})
    picture.load()
    orientation = _orientation(picture)
    _scale_grey_key(data, picture)
    icc = picture.info.get("icc_profile")
    if picture.mode.startswith("I;16"):
        wide = np.asarray(picture).astype(np.uint32)
        if inverted:
            wide = (1 << bits) - 1 - wide
        grey = ((wide * 255 * 2 + (1 << bits) - 1) // (2 * ((1 << bits) - 1))).astype(np.uint8)
        key = picture.info.get("transparency")
        alpha = np.where(wide == key, 0, 255).astype(np.uint8) if isinstance(key, int) else None
        return Raster(grey[..., None], alpha, "L", icc, orientation, True)
    if bits == 16 and picture.mode in ("LA", "RGB", "RGBA"):
        return _read_wide(data, picture, icc, orientation)
    return _split(picture, icc, orientation, bits > 8)


def _read_wide(data: bytes, picture: ImageFile, icc: bytes | None, orientation: int) -> Raster | Fault:
    """16 bits a channel in several channels, of which Pillow keeps the upper byte: 65,535 / 2 would be 127, not
    128. OpenCV reads all 16."""
    wide = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if wide is None or wide.dtype != np.uint16 or wide.ndim != 3 or wide.shape[2] not in (3, 4):
        return Fault("image_unsupported", {"mode": f"{picture.mode};16"})
    narrow = ((wide.astype(np.uint32) + 128) // 257).astype(np.uint8)  # exact: 257 is odd, there are no ties
    alpha = np.ascontiguousarray(narrow[..., 3]) if wide.shape[2] == 4 else None
    return Raster(np.ascontiguousarray(narrow[..., 2::-1]), alpha, "RGB", icc, orientation, True)


def _split(picture: PIL.Image.Image, icc: bytes | None, orientation: int, reduced: bool) -> Raster | Fault:
    """Colours and alpha apart, whatever the mode."""
    space = _SPACES.get(picture.mode) or ("RGB" if picture.mode in _RGB_MODES else None)
    if space is None:
        return Fault("image_unsupported", {"mode": picture.mode})
    if space == "CMYK":
        return Raster(np.asarray(picture), None, space, icc, orientation, reduced)
    if not picture.has_transparency_data:
        plain = np.asarray(picture if picture.mode == space else picture.convert(space))
        return Raster(plain.reshape(picture.height, picture.width, -1), None, space, icc, orientation, reduced)
    both = np.asarray(picture.convert("LA" if space == "L" else "RGBA"))
    colours, alpha = np.ascontiguousarray(both[..., :-1]), np.ascontiguousarray(both[..., -1])
    return Raster(colours, alpha, space, icc, orientation, reduced)


def _bits(data: bytes, picture: ImageFile) -> int:
    """Bits a channel, 8 where fewer."""
    if isinstance(picture, PngImageFile):
        return max(8, data[24])  # IHDR's bit depth
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        return max((8, *(int(bits) for bits in picture.tag_v2.get(_BITS_PER_SAMPLE, ()))))
    if isinstance(picture, AvifImageFile):
        return 16 if avif_is_deep(data) else 8
    return 8


def _is_odd_16(picture: TiffImagePlugin.TiffImageFile) -> bool:
    """16-bit channels in planes of their own, or multiplied by alpha: Pillow and OpenCV both get them wrong."""
    planes = picture.tag_v2.get(_PLANES, 1) == 2 and len(picture.getbands()) > 1
    return planes or 1 in picture.tag_v2.get(_EXTRA_SAMPLES, ())


def _scale_grey_key(data: bytes, picture: ImageFile) -> None:
    """Pillow widens 2- and 4-bit grey to 8, but leaves the transparent level (PNG's tRNS) in the file's bits."""
    key = picture.info.get("transparency")
    if isinstance(picture, PngImageFile) and picture.mode == "L" and isinstance(key, int) and data[24] < 8:
        picture.info["transparency"] = key * 255 // ((1 << data[24]) - 1)


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
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  as in read_raster
        return None
    if 3 in formats or bits > 16:
        return Fault("image_unsupported", {"mode": f"{bits}-bit {'float' if 3 in formats else 'integer'}"})
    return None
