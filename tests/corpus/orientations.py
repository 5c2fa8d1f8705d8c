"""EXIF's eight orientations: on the image, on the mask, on both, in every place that a format has for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from tests.corpus.case import Case, SampleCase, hole, masked, photo, png, result
from tests.media.files import exif, save

_BOX = (2, 4, 10, 16)  # near one corner, so that a mask that is turned the wrong way is seen


def stored(shown: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """What a file of that orientation stores, for ``shown`` to be what it means (EXIF 2.32, 4.6.4)."""
    turned = {
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.swapaxes(0, 1),
        6: shown.swapaxes(0, 1)[::-1],
        7: shown.swapaxes(0, 1)[::-1, ::-1],
        8: shown.swapaxes(0, 1)[:, ::-1],
    }[orientation]
    return np.ascontiguousarray(turned)


def cases() -> Iterator[Case]:
    mask = hole(_BOX)
    jpeg: dict[str, Any] = {"quality": 98, "subsampling": 0}
    for turn in range(1, 9):
        image = save(stored(photo(), turn), "JPEG", exif=exif(turn), **jpeg)
        turned = save(stored(mask, turn), "PNG", exif=exif(turn))
        group = "orientations"
        shown = result(photo(), box=_BOX, within=8, height=32, width=48)
        yield SampleCase(group, f"{turn} of the image", {"jpg": image, "mask.png": png(mask)}, shown)
        exact = result(photo(), box=_BOX, height=32, width=48)
        yield SampleCase(group, f"{turn} of the mask", {"png": png(photo()), "mask.png": turned}, exact)
        yield SampleCase(group, f"{turn} of both", {"jpg": image, "mask.png": turned}, shown)
        for image_format in ("PNG", "TIFF", "WEBP", "AVIF"):
            options: dict[str, Any] = {"lossless": True} if image_format == "WEBP" else {}
            within = 0
            if image_format == "AVIF":
                options, within = {"quality": 98, "subsampling": "4:4:4"}, 10
            data = save(stored(photo(), turn), image_format, exif=exif(turn), **options)
            upright = result(photo(), within=within, height=32, width=48)
            yield SampleCase(group, f"{turn} in {image_format}", masked(data), upright)
    for name, block in {
        "0": exif(0),
        "9": exif(9),
        "65535": exif(65535),
        "cut": exif(6)[:12],
        "of noise": b"Exif\0\0" + bytes(range(200)),
        "empty": b"",
    }.items():
        data = save(photo(), "JPEG", exif=block, **jpeg)
        upright = result(photo(), within=8, height=32, width=48)
        yield SampleCase("orientations", f"EXIF that is {name}", masked(data, "jpg"), upright)
    text = PIL.Image.Exif()
    text[274] = 6
    behind = save(stored(photo(), 6), "PNG")
    exif_chunk = save(stored(photo(), 6), "PNG", exif=text)
    start = exif_chunk.index(b"eXIf") - 4
    length = int.from_bytes(exif_chunk[start : start + 4], "big") + 12
    late = behind[:-12] + exif_chunk[start : start + length] + behind[-12:]
    upright = result(photo(), height=32, width=48)
    yield SampleCase("orientations", "6 in a PNG, behind its pixels", masked(late), upright)
