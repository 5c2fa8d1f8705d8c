"""Colours of a file, by its ICC profile, as sRGB."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Literal

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageCms

from asymvae.media.raster import Space

_Mode = Literal["L", "RGB", "CMYK"]


def to_srgb(channels: NDArray[np.uint8], space: Space, icc: bytes | None) -> NDArray[np.uint8]:
    """(H, W, 1 | 3 | 4) of ``space`` -> (H, W, 3) sRGB, perceptual intent.

    A profile that is broken, or is one of another colour space than the pixels', is ignored, as browsers do.
    What has no profile is taken as sRGB; CMYK without one as (255 - ink) * (255 - black) / 255. A profile that
    is sRGB's own (within one level) changes nothing, so that plain photographs stay what they are, bit by bit.
    """
    if space == "L" and icc and _profile_space(icc) == "RGB":
        channels, space = np.repeat(channels, 3, axis=2), "RGB"
    transform = _transform(icc, space) if icc else None
    if transform is None and space == "RGB":
        return channels
    if transform is None and space == "L":
        return np.repeat(channels, 3, axis=2)
    picture = PIL.Image.fromarray(channels[..., 0] if space == "L" else channels, space)
    return np.asarray(picture.convert("RGB") if transform is None else transform.apply(picture))


def _open(icc: bytes) -> ImageCms.ImageCmsProfile | None:
    try:
        return ImageCms.ImageCmsProfile(io.BytesIO(icc))
    except (OSError, ImageCms.PyCMSError):
        return None


@lru_cache(maxsize=16)
def _profile_space(icc: bytes) -> str:
    profile = _open(icc)
    try:
        return profile.profile.xcolor_space.strip() if profile else ""
    except UnicodeDecodeError:  # a signature that is no text
        return ""


@lru_cache(maxsize=16)
def _transform(icc: bytes, space: _Mode) -> ImageCms.ImageCmsTransform | None:
    """None: there is nothing to convert, or no way to. Kept, since building one costs more than using it."""
    profile = _open(icc)
    if profile is None or _profile_space(icc) != ("GRAY" if space == "L" else space):
        return None
    try:
        transform = ImageCms.buildTransform(
            profile,
            ImageCms.createProfile("sRGB"),
            space,
            "RGB",
            flags=ImageCms.Flags.NOCACHE,  # lcms: a transform used by several threads must not cache
        )
        if space != "CMYK" and _is_identity(transform, space):
            return None
    except (OSError, ImageCms.PyCMSError):
        return None
    return transform


def _is_identity(transform: ImageCms.ImageCmsTransform, space: _Mode) -> bool:
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(1, -1, 3)
    if space == "L":
        grid = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    picture = PIL.Image.fromarray(grid if space == "RGB" else grid[..., 0], space)
    moved = np.asarray(transform.apply(picture)).astype(np.int16) - grid
    return bool(np.abs(moved).max() <= 1)
