"""Masks of every kind: other sizes, soft, coloured, inverted, deep, missing, broken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from tests.corpus.case import (
    DAMAGED,
    HEIGHT,
    HOLE,
    WIDTH,
    Box,
    Came,
    Case,
    Expects,
    SampleCase,
    error,
    hole,
    photo,
    png,
    result,
)
from tests.media.files import png16, save, tiff16
from tests.tiny import pixels_of

_ALL: Box = (0, 0, HEIGHT, WIDTH)
_BAD = tuple(code.replace("image", "mask") for code in sorted(DAMAGED))


def _fields(mask: bytes | None, name: str = "mask.png") -> Mapping[str, bytes]:
    return {"png": png(photo())} | ({} if mask is None else {name: mask})


def _case(name: str, mask: bytes | None, expects: Expects, field: str = "mask.png") -> SampleCase:
    return SampleCase("masks", name, _fields(mask, field), expects)


def cases() -> Iterator[Case]:
    exact = result(photo(), box=HOLE)
    plain = hole()
    yield from _sizes()
    yield _case("all 0", png(hole(None)), result(photo()))
    yield _case("all 1", png(hole(_ALL)), result(photo(), box=_ALL))
    yield _case("0 and 1 instead of 0 and 255", png(plain // 255), _faint(1))
    yield _case("just below half", png(plain // 255 * 127), _faint(128))
    yield _case("just above half", png(plain // 255 * 128), exact)
    soft = np.clip(plain.astype(np.int16) - 60 * (np.indices(plain.shape).sum(0) % 3), 0, 255).astype(np.uint8)
    yield _case("soft", png(soft), exact)
    yield _case("one pixel", png(hole((16, 24, 17, 25))), result(photo(), box=(16, 24, 17, 25)))
    yield _case("a pixel in each corner", png(_corners()), _corners_changed)
    yield _case("RGB", png(np.repeat(plain[..., None], 3, axis=2)), exact)
    opaque = np.full_like(plain, 255)
    yield _case("RGBA, opaque", png(np.dstack([plain, plain, plain, opaque])), exact)
    yield _case("RGBA, white where it is opaque", png(np.dstack([opaque, opaque, opaque, plain])), exact)
    yield _case("RGBA, black everywhere", png(np.dstack([0 * plain] * 3 + [plain])), result(photo()))
    both = PIL.Image.merge("LA", [PIL.Image.fromarray(opaque), PIL.Image.fromarray(plain)])
    yield _case("grey with alpha", save(both, "PNG"), exact)
    yield _case("red, which is dark", png(np.dstack([plain, 0 * plain, 0 * plain])), _faint(80))
    yield _case("green, which is light", png(np.dstack([0 * plain, plain, 0 * plain])), exact)
    yield _case("1-bit", save(PIL.Image.fromarray(plain > 0), "PNG"), exact)
    yield _case("16-bit", png16((plain.astype(np.uint16) * 257)[..., None]), exact)
    yield _case("16-bit TIFF", tiff16(plain.astype(np.uint16) * 257), exact)
    yield _case("16-bit PNG whose levels end at 255", png16(plain.astype(np.uint16)[..., None]), _faint(1))
    palette = PIL.Image.fromarray(plain // 255)
    palette.putpalette([0, 0, 0, 255, 255, 255])
    yield _case("palette of black and white", save(palette, "PNG"), exact)
    palette.putpalette([255, 255, 255, 0, 0, 0])
    outside = hole((0, 0, HEIGHT, WIDTH)) - plain
    yield _case("palette of white and black, which is inverted", save(palette, "PNG"), _outside(outside))
    yield _case("JPEG", save(plain, "JPEG", quality=95), exact, "mask.jpg")
    yield _case("JPEG in colours", save(np.repeat(plain[..., None], 3, axis=2), "JPEG", quality=95), exact, "mask.jpg")
    for image_format in ("WEBP", "GIF", "BMP", "TIFF", "AVIF"):
        options = {"lossless": True} if image_format == "WEBP" else {}
        yield _case(
            f"{image_format} named mask.png",
            save(PIL.Image.fromarray(plain).convert("RGB"), image_format, **options),
            exact,
        )
    yield _case("in a field of no extension", png(plain), exact, "mask")
    yield _case("in a field with a prefix", png(plain), exact, "other.mask.png")
    yield _case("missing", None, error("missing_mask"))
    yield _case("in a field of another name", png(plain), error("missing_mask"), "hole.gif")
    yield _case("empty", b"", error("mask_empty"))
    yield _case("text", b"0 0 0 1 1 1", error("mask_undecodable"))
    for share in (0.1, 0.5, 0.9):
        cut = save(soft, "PNG")
        yield _case(f"cut at {share}", cut[: int(share * len(cut))], error(*_BAD))
        cut = save(soft, "JPEG")
        yield _case(f"JPEG cut at {share}", cut[: int(share * len(cut))], error(*_BAD), "mask.jpg")
    floats = save(PIL.Image.fromarray(plain.astype(np.float32) / 255), "TIFF")
    yield _case("a TIFF of floats", floats, error("mask_unsupported"))
    yield _case("2001x1000, more than max_pixels", png(hole(None, 1000, 2001)), error("mask_too_large"))
    broken = {"png": png(photo())[:200], "mask.png": b"broken too"}
    yield SampleCase("masks", "broken, and the image too", broken, error("image_truncated"))
    for name, mask, expects in (
        ("white is known", png(255 - plain), exact),
        ("all 255: no hole", png(hole(_ALL)), result(photo())),
        ("transparent is hole", png(np.dstack([opaque, opaque, opaque, 255 - plain])), exact),
        ("all 0: all hole", png(hole(None)), result(photo(), box=_ALL)),
        ("half-size", png((255 - plain)[::2, ::2]), exact),
    ):
        yield SampleCase("masks inverted", name, _fields(mask), expects, job="inverted")


def _sizes() -> Iterator[Case]:
    """The same aspect ratio is resized to the image, another is an error."""
    plain = PIL.Image.fromarray(hole())
    for width, height in ((24, 16), (12, 8), (96, 64), (480, 320), (47, 31), (49, 33)):
        # a pixel of a reduced mask stands for several: the hole may come out larger by as much
        mask = np.asarray(plain.resize((width, height), PIL.Image.Resampling.NEAREST))
        grown = -(-WIDTH // width)
        box = (HOLE[0] - grown, HOLE[1] - grown, HOLE[2] + grown, HOLE[3] + grown) if width != WIDTH else HOLE
        yield _case(f"{width}x{height}, the same aspect", png(mask), _resized(box))
    # at one pixel's size every aspect ratio agrees within a pixel
    yield _case("1x1, black", png(hole(None, 1, 1)), result(photo()))
    yield _case("1x1, white", png(hole(None, 1, 1) + 255), result(photo(), box=_ALL))
    for width, height in ((48, 48), (32, 48), (48, 30), (48, 16), (1000, 1), (96, 60)):
        yield _case(f"{width}x{height}, another aspect", png(hole(None, height, width)), error("mask_aspect"))


def _resized(box: Box) -> Expects:
    return result(photo(), box=box)


def _faint(most: int) -> Expects:
    """Less than half is no hole, and what there is of it blends: by so much, and only there."""

    def check(came: Came) -> str:
        if len(came.results) != 1 or came.errors:
            return f"not one result: {came}"
        off = np.abs(pixels_of(came.results[0]).astype(np.int16) - photo()).max(axis=2)
        top, left, bottom, right = HOLE
        inside = off[top:bottom, left:right].max()
        off[top:bottom, left:right] = 0
        return "" if inside <= most and not off.any() else f"off by {inside} inside, {off.max()} outside"

    return check


def _corners() -> NDArray[np.uint8]:
    mask = hole(None)
    mask[[0, 0, -1, -1], [0, -1, 0, -1]] = 255
    return mask


def _outside(mask: NDArray[np.uint8]) -> Expects:
    """Everything but the middle is hole: the whole picture but what is further in than the reach, which is nothing."""
    assert mask[0, 0] == 255
    return result(photo(), box=_ALL)


def _corners_changed(came: Came) -> str:
    if len(came.results) != 1:
        return f"not one result: {came}"
    off = (pixels_of(came.results[0]) != photo()).any(axis=2)
    middle = off[10:-10, 10:-10]
    changed = off[[0, 0, -1, -1], [0, -1, 0, -1]]
    return "" if changed.all() and not middle.any() else f"corners changed: {changed}, middle: {middle.any()}"
