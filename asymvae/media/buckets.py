"""Sizes that images are brought to so that they fill batches: by aspect ratio, by covering and cropping."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from asymvae.media.image import Image

Size = tuple[int, int]  # height, width
Box = tuple[int, int, int, int]  # top, left, bottom, right; exclusive at the end

# Podell et al. 2023, arXiv 2307.01952, appendix I: what SDXL was trained with.
SDXL: Final[tuple[Size, ...]] = (
    *((512, 2048), (512, 1984), (512, 1920), (512, 1856), (576, 1792), (576, 1728), (576, 1664), (640, 1600)),
    *((640, 1536), (704, 1472), (704, 1408), (704, 1344), (768, 1344), (768, 1280), (832, 1216), (832, 1152)),
    *((896, 1152), (896, 1088), (960, 1088), (960, 1024), (1024, 1024), (1024, 960), (1088, 960), (1088, 896)),
    *((1152, 896), (1152, 832), (1216, 832), (1280, 768), (1344, 768), (1408, 704), (1472, 704), (1536, 640)),
    *((1600, 640), (1664, 576), (1728, 576), (1792, 576), (1856, 512), (1920, 512), (1984, 512), (2048, 512)),
)


def bucket_sizes(base: int, step: int, max_ratio: float) -> list[Size]:
    """For every height in steps of ``step`` the widest size whose area is at most ``base`` squared, as far as the
    ratio of the sides is at most ``max_ratio``."""
    area = max(base, step) ** 2
    sizes = []
    for height in range(step, area // step + 1, step):
        width = area // height // step * step
        if width and max(height, width) <= max_ratio * min(height, width):
            sizes.append((height, width))
    return sizes


def choose_bucket(height: int, width: int, tiers: Iterable[Sequence[Size]], *, enlarge: bool = False) -> Size | None:
    """The bucket of an image: of those that it covers without being enlarged the one of the nearest aspect ratio, and
    of these the largest. The first tier that has one decides. None: the image is too small for all.

    ``enlarge``: every image is taken to cover the buckets of the first tier.
    """
    ratio = math.log(height / width)

    def distance(size: Size) -> tuple[float, int, Size]:
        return abs(math.log(size[0] / size[1]) - ratio), -size[0] * size[1], size

    for tier in tiers:
        fitting = [size for size in tier if enlarge or (size[0] <= height and size[1] <= width)]
        if fitting:
            return min(fitting, key=distance)
    return None


def cover(height: int, width: int, bucket: Size) -> Size:
    """The size to which an image is resized so that it just covers ``bucket``; its aspect ratio is kept to a pixel."""
    if height * bucket[1] <= width * bucket[0]:  # the height decides
        return bucket[0], max(bucket[1], (2 * width * bucket[0] + height) // (2 * height))
    return max(bucket[0], (2 * height * bucket[1] + width) // (2 * width)), bucket[1]


def window(resized: Size, bucket: Size, number: int | None) -> Box:
    """Where ``bucket`` is cut out of ``resized``: drawn by ``number`` (>= 0, of many bits), None: in the centre."""
    free = resized[0] - bucket[0], resized[1] - bucket[1]
    if number is None:
        top, left = free[0] // 2, free[1] // 2
    else:
        rest, top = divmod(number, free[0] + 1)
        left = rest % (free[1] + 1)
    return top, left, top + bucket[0], left + bucket[1]


def cut(image: Image, resized: Size, box: Box, *, hflip: bool) -> NDArray[np.uint8]:
    """``box`` of the image as it is when it is resized to ``resized``: (H, W, 3). Bicubic, antialiased, by Pillow.

    Only what the box shows is computed. An image that was decoded at reduced scale is placed as the whole one is.
    """
    top, left, bottom, right = box
    if resized == image.pixels.shape[:2] == image.size:
        pixels = image.pixels[top:bottom, left:right]
    else:
        # A last column that stands for less than a whole block of the original's doesn't shift the others.
        down, across = (side / image.reduced / new for side, new in zip(image.size, resized, strict=True))
        stored = image.pixels.shape[:2]
        source = (
            *(left * across, top * down),
            *(min(right * across, stored[1]), min(bottom * down, stored[0])),
        )
        picture = PIL.Image.fromarray(image.pixels)
        pixels = np.asarray(picture.resize((right - left, bottom - top), PIL.Image.Resampling.BICUBIC, box=source))
    return np.ascontiguousarray(pixels[:, ::-1] if hflip else pixels)


def times_reducible(size: Size, needed: Size, at_least: float) -> int:
    """How many times (1, 2, 4, 8) a JPEG of ``size`` may be smaller when it is decoded, so that each side still has
    ``at_least`` times the pixels that are ``needed``."""
    fitting = (t for t in (8, 4, 2) if all(side >= t * at_least * new for side, new in zip(size, needed, strict=True)))
    return next(fitting, 1)
