"""What is measured on: drawn pictures that compress about as photographs do, or the images of shards."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from asymvae.config import InputSettings
from asymvae.faults import Fault
from asymvae.media.image import decode_image, encode_image
from asymvae.storage.samples import FieldNames, Sample, read_shard
from asymvae.storage.shards import list_shards

Pixels = NDArray[np.uint8]

_DRAWN = 8  # different pictures in a set of shards
_QUALITY = 90


def draw_picture(size: int, seed: int) -> Pixels:
    """(size, size, 3): noise of every scale, the finer the fainter, as in photographs."""
    generator = np.random.default_rng(seed)
    picture = np.full((size, size, 3), 128, np.float32)
    cells, strength = 4, 55.0
    while cells <= size:
        noise = generator.standard_normal((cells, cells, 3), dtype=np.float32)
        picture += strength * cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC)
        cells, strength = 2 * cells, strength / 2
    return picture.clip(0, 255).round().astype(np.uint8)


def draw_hole(size: int, seed: int) -> Pixels:
    """(size, size, 3): black, and white where the hole is: a box of a quarter of the area."""
    top, left = np.random.default_rng(seed).integers(0, size // 2, 2)
    mask = np.zeros((size, size, 3), np.uint8)
    mask[top : top + size // 2, left : left + size // 2] = 255
    return mask


def write_shards(folder: Path, *, shards: int, samples: int, size: int) -> str:
    """Tars of ``samples`` drawn samples each, fields ``jpg`` and ``mask.png``. Returns the URL pattern of all."""
    pairs = [
        {
            "jpg": _file(encode_image(draw_picture(size, seed), image_format="jpeg", quality=_QUALITY)),
            "mask.png": _file(encode_image(draw_hole(size, seed), image_format="png")),
        }
        for seed in range(min(samples, _DRAWN))
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as archive:
            for number in range(samples):
                for name, content in pairs[number % len(pairs)].items():
                    member = tarfile.TarInfo(f"{shard:05d}-{number:06d}.{name}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return str(folder / "*.tar")


def pictures(source: InputSettings, *, size: int, count: int) -> list[Pixels]:
    """``count`` square pictures (size, size, 3): drawn, or the middle of the shards' first images, resized."""
    if not source.urls:
        return [draw_picture(size, seed) for seed in range(count)]
    found: list[Pixels] = []
    for image in _images(source):
        side = min(image.shape[:2])
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        middle = np.ascontiguousarray(image[top : top + side, left : left + side])
        how = cv2.INTER_AREA if side > size else cv2.INTER_CUBIC
        found.append(cv2.resize(middle, (size, size), interpolation=how).astype(np.uint8))
        if len(found) == count:
            break
    if not found:
        raise ValueError("no image of input.urls can be read: look at input.image")
    return found


def _images(source: InputSettings) -> Iterator[Pixels]:
    names = FieldNames(source.image, (), (), (), (), source.key)
    for shard in list_shards(source.urls, root=source.root, format=source.format):
        for sample in read_shard(shard, names):
            if isinstance(sample, Sample) and "image" in sample.fields:
                image = decode_image(sample.fields["image"], max_pixels=source.max_pixels)
                if not isinstance(image, Fault):
                    yield image.pixels


def _file(content: bytes | Fault) -> bytes:
    if isinstance(content, Fault):
        raise ValueError(f"a picture can't be encoded: {content.message}")
    return content


def encode_all(images: Sequence[Pixels], image_format: str, quality: int = 95) -> list[bytes]:
    """The files of several pictures. Raises ValueError where the format can't hold them."""
    return [_file(encode_image(image, image_format=image_format, quality=quality)) for image in images]  # type: ignore[arg-type]
