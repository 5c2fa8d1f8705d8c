"""The smallest and the longest images, with no hole, with nothing but a hole, and with one in the middle."""

from __future__ import annotations

from collections.abc import Iterator

from tests.corpus.case import Box, Case, SampleCase, error, hole, photo, png, result
from tests.media.files import save

_SIZES = ((1, 1), (1, 2), (2, 1), (3, 3), (7, 9), (8, 8), (63, 65), (1, 5000), (5000, 1), (3, 8193), (8193, 3))


def cases() -> Iterator[Case]:
    group = "sizes"
    for height, width in _SIZES:
        pixels = photo(height, width)
        middle: Box = (height // 3, width // 3, height // 3 + 1, width // 3 + min(width, 4) // 2 + (width < 4))
        boxes: dict[str, Box | None] = {"no hole": None, "all hole": (0, 0, height, width), "a hole": middle}
        for name, box in boxes.items():
            fields = {"png": png(pixels), "mask.png": png(hole(box, height, width))}
            yield SampleCase(group, f"{width}x{height}, {name}", fields, result(pixels, box=box))
    for image_format in ("JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
        flat = photo(1, 1)
        options = {"lossless": True} if image_format == "WEBP" else {}
        within = 255 if image_format == "GIF" else 40
        fields = {"png": save(flat, image_format, **options), "mask.png": png(hole(None, 1, 1))}
        yield SampleCase(group, f"1x1 in {image_format}", fields, result(flat, box=None, within=within))
    most = photo(1, 65_535)
    fields = {"png": png(most), "mask.png": png(hole((0, 30_000, 1, 30_004), 1, 65_535))}
    yield SampleCase(group, "65535x1, a hole", fields, result(most, box=(0, 30_000, 1, 30_004)))
    beyond = photo(1, 1_000_001)
    fields = {"png": png(beyond), "mask.png": png(hole(None, 1, 1_000_001))}
    yield SampleCase(group, "1000001x1, which libpng doesn't take", fields, error("image_undecodable"))
