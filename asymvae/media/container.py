"""What the bytes of an image file say of themselves before any pixel is decoded."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import Final, Literal

Kind = Literal["avif", "bmp", "gif", "jpeg", "png", "tiff", "webp"]
Damage = Literal["cut", "damaged"]

_PNG: Final = b"\x89PNG\r\n\x1a\n"
# Progressive files have ten or so. Each costs a pass over all the pixels, though it be 20 bytes (libjpeg-turbo bounds
# them in fuzzing only, by 500): 24 kB took seconds for 2 million pixels.
_MOST_SCANS: Final = 200
_SCAN: Final = b"\xff\xda"
_MARKER: Final = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_MOST_PROFILE: Final = 16 * 1024 * 1024  # bytes; the largest of real ones, for print, have a few million
_AVIF_BRANDS: Final = (b"avif", b"avis", b"mif1", b"msf1")


def sniff(data: bytes) -> Kind | None:
    """The container, by its signature; a file's name or media type is never believed."""
    if data.startswith(_PNG):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if data[4:8] == b"ftyp" and data[8:12] in _AVIF_BRANDS:
        return "avif"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    return "bmp" if data[:2] == b"BM" else None


def find_damage(data: bytes) -> Damage | None:
    """Whether the file ends before its format's end mark, (PNG) a checksum of its pixels is wrong, or (JPEG) its
    pixels come in more scans than any encoder makes.

    Decoders are lenient: they take a PNG or GIF without its end, and an animation up to the cut.
    The scans of JPEG, the pixels of BMP and TIFF are judged by their decoders, who do notice.
    """
    kind = sniff(data)
    if kind == "png":
        return _png_damage(data)
    if kind == "gif":
        return "cut" if _gif_is_cut(data) else None
    if kind == "webp":
        return "cut" if int.from_bytes(data[4:8], "little") + 8 > len(data) else None
    if kind == "avif":
        return "cut" if _boxes_are_cut(data) else None
    if kind == "jpeg":
        if _SCAN not in data:
            return "cut"
        return "damaged" if data.count(_SCAN) > _MOST_SCANS and _has_many_scans(data) else None
    if kind == "tiff":
        return "cut" if _tiff_layout(data)[1] >= len(data) else None  # the directory, often at the end
    return None


def webp_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a WebP's canvas; None for anything else."""
    if sniff(data) != "webp" or len(data) < 30:
        return None
    chunk = data[12:16]
    if chunk == b"VP8X":
        return int.from_bytes(data[27:30], "little") + 1, int.from_bytes(data[24:27], "little") + 1
    if chunk == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if chunk == b"VP8 ":
        width, height = int.from_bytes(data[26:28], "little"), int.from_bytes(data[28:30], "little")
        return height & 0x3FFF, width & 0x3FFF
    return None


def avif_is_deep(data: bytes) -> bool:
    """Whether an AVIF has 10 or 12 bits a channel (the flag high_bitdepth of its av1C box)."""
    box = data.find(b"av1C")
    return 0 <= box < len(data) - 6 and bool(data[box + 6] & 0x40)


def tiff_is_tiled(data: bytes) -> bool:
    """Whether the first directory names the size of a tile, in whatever type: Pillow's list of tags ends at an
    entry that it can't read, libtiff's does not."""
    order, start, big = _tiff_layout(data)
    head, step = (8, 20) if big else (2, 12)
    count = int.from_bytes(data[start : start + head], order)
    entries = range(start + head, min(start + head + count * step, len(data)), step)
    return any(int.from_bytes(data[entry : entry + 2], order) in (322, 323) for entry in entries)


def _tiff_layout(data: bytes) -> tuple[Literal["little", "big"], int, bool]:
    """Byte order, the first directory's offset, and whether it is a BigTIFF."""
    order: Literal["little", "big"] = "little" if data[:1] == b"I" else "big"
    big = int.from_bytes(data[2:4], order) == 43
    return order, int.from_bytes(data[8:16] if big else data[4:8], order), big


def png_pixels_alone(data: bytes) -> bytes:
    """A PNG without the chunks that tell of other things than its pixels: texts, times, densities, the profile, which
    may be damaged, or huge, and cost no pixel; and those that make an animation of it.

    Of an animation that is the picture for those who know none. OpenCV composes its first frame, and leaves memory as
    it finds it where that covers less than the whole picture.
    """
    kept = [_PNG]
    for name, start, end in _png_chunks(data):
        if name[:1].isupper() or name == b"tRNS" or (name == b"eXIf" and _png_checksum_fits(data, start, end)):
            kept.append(data[start:end])
    return b"".join(kept)


def png_profile(data: bytes) -> bytes | None:
    """A PNG's ICC profile; None where there is none, it can't be unpacked, or it is larger than any real one."""
    for name, start, end in _png_chunks(data):
        if name != b"iCCP":
            continue
        if not _png_checksum_fits(data, start, end):
            return None
        _, _, packed = data[start + 8 : end - 4].partition(b"\0")
        unpacker = zlib.decompressobj()
        try:
            profile = unpacker.decompress(packed[1:], _MOST_PROFILE)
        except zlib.error:
            return None
        return profile if unpacker.eof and packed[0] == 0 else None
    return None


def _png_damage(data: bytes) -> Damage | None:
    name, end = b"", 0
    for name, start, end in _png_chunks(data):
        # Upper case: a critical chunk. A wrong checksum in the others (text, times) costs no pixel.
        if name[:1].isupper() and end <= len(data) and not _png_checksum_fits(data, start, end):
            return "damaged"
    return None if name == b"IEND" and end <= len(data) else "cut"


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, begin and end of each chunk up to IEND, or to the file's end, behind which the last one's may lie."""
    position, name = len(_PNG), b""
    while position + 12 <= len(data) and name != b"IEND":
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        name = data[position + 4 : position + 8]
        yield name, position, end
        position = end


def _png_checksum_fits(data: bytes, start: int, end: int) -> bool:
    return zlib.crc32(memoryview(data)[start + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")


def _has_many_scans(data: bytes) -> bool:
    """Told by walking from marker to marker: a profile, or a film behind the picture, may hold a scan's two bytes."""
    position, scans = 2, 0
    while found := _MARKER.search(data, position):
        marker, position = found[0], found.end()
        if marker == b"\xff\xd9":
            return False
        scans += marker == _SCAN
        if scans > _MOST_SCANS:
            return True
        position += int.from_bytes(data[position : position + 2], "big")
    return False


def _gif_is_cut(data: bytes) -> bool:
    """Walk the blocks up to the trailer; blocks that make no sense are left to the decoder to judge."""
    if len(data) < 13:
        return True
    position = 13 + _gif_table(data[10])
    while position < len(data):
        introducer = data[position]
        if introducer == 0x3B:
            return False
        if introducer == 0x2C:
            if position + 10 > len(data):
                return True
            position += 11 + _gif_table(data[position + 9])
        elif introducer == 0x21:
            position += 2
        else:
            return False
        while position < len(data) and data[position]:
            position += 1 + data[position]
        position += 1
    return True


def _gif_table(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _boxes_are_cut(data: bytes) -> bool:
    position = 0
    while position < len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        elif size == 0:  # up to the file's end
            return False
        if size < 8 or position + size > len(data):
            return True
        position += size
    return False
