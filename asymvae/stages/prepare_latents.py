"""Prepare, for latents: one sample's bytes to the window of its image that is encoded; on the CPU, in a thread."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asymvae.config_latents import CropSettings, PrecomputeJob, size_in
from asymvae.faults import Fault
from asymvae.fingerprint import sample_seed
from asymvae.media.buckets import SDXL, Box, Size, bucket_sizes, choose_bucket, cover, cut, times_reducible, window
from asymvae.media.image import decode_image, probe_shown

# A JPEG that is decoded at a fraction of its size keeps twice the pixels a side that are needed, since libjpeg's own
# reduction is an average of blocks. Against full decoding: at least 42 dB, see tests/media/test_reduced_jpeg.py.
_REDUCED_KEEPS = 2.0


@dataclass(slots=True)
class LatentItem:
    """One planned row: ``pixels``, (H, W, 3) uint8 sRGB, the window that is encoded for one variant."""

    variant: int
    pixels: NDArray[np.uint8]
    box: Box  # in the resized image
    hflip: bool
    owner: Any = None

    @property
    def size(self) -> tuple[int, int]:
        height, width = self.pixels.shape[:2]
        return height, width

    @property
    def shape_key(self) -> Hashable:
        return self.size


@dataclass(slots=True)
class LatentsPlanned:
    """A sample and its windows. ``original`` and ``resized`` are (height, width); ``carried`` is a JSON object."""

    index: int
    key: str
    original: Size
    resized: Size
    caption: str | None
    carried: str | None
    source_sha256: str
    items: Sequence[LatentItem]


class PrepareLatents:
    """Sample -> LatentsPlanned, or the fault that makes it error rows."""

    def __init__(self, job: PrecomputeJob) -> None:
        self.job = job
        self.flips = (False, True) if job.crop.hflip == "both" else (False,)

    @cached_property
    def tiers(self) -> list[list[Size]]:
        """The buckets (height, width): those to try first, then those of smaller bases."""
        return bucket_tiers(self.job.crop)

    def __call__(self, index: int, key: str, fields: Mapping[Any, bytes]) -> LatentsPlanned | Fault:
        """``fields``: bytes by role (image, prompt, json), as far as the sample has them."""
        if "image" not in fields:
            return Fault("missing_image")
        carried = self._carried(fields.get("json"))
        if isinstance(carried, Fault):
            return carried
        shown = probe_shown(fields["image"])
        if isinstance(shown, Fault):
            return shown
        times = self.times(*shown)
        image = decode_image(fields["image"], max_pixels=self.job.input.max_pixels, times=times)
        if isinstance(image, Fault):
            return image
        height, width = image.size
        bucket = self.bucket(height, width)
        if bucket is None:
            return Fault("image_too_small", {"width": width, "height": height})
        resized = cover(height, width, bucket)
        items = []
        for variant, hflip in enumerate(self.flips):
            number = sample_seed(self.job.seed, key, variant) if self.job.crop.where == "random" else None
            box = window(resized, bucket, number)
            items.append(LatentItem(variant, cut(image, resized, box, hflip=hflip), box, hflip))
        return LatentsPlanned(
            index,
            key,
            image.size,
            resized,
            fields["prompt"].decode(errors="replace") if "prompt" in fields else None,
            carried,
            hashlib.sha256(fields["image"]).hexdigest(),
            items,
        )

    def bucket(self, height: int, width: int) -> Size | None:
        return choose_bucket(height, width, self.tiers, enlarge=self.job.crop.enlarge)

    def times(self, size: Size, reducible: bool) -> int:
        """How many times smaller than its ``size`` (height, width) an image is decoded."""
        if not reducible or not self.job.crop.reduced_jpeg or (bucket := self.bucket(*size)) is None:
            return 1
        return times_reducible(size, cover(*size, bucket), _REDUCED_KEEPS)

    def _carried(self, content: bytes | None) -> str | Fault | None:
        """The chosen fields of the sample's json, as text; those that it lacks are left out."""
        names = self.job.input.carry
        if content is None or not names:
            return None
        try:
            sample = json.loads(content, parse_constant=_refuse)
        except (ValueError, RecursionError):  # no JSON; NaN; no UTF; brackets without end
            return Fault("json_invalid")
        if not isinstance(sample, dict):
            return Fault("json_invalid")
        chosen = json.dumps({name: sample[name] for name in names if name in sample}, ensure_ascii=False)
        return chosen.encode(errors="replace").decode()  # halves of surrogate pairs, which UTF-8 can't hold


def bucket_tiers(crop: CropSettings) -> list[list[Size]]:
    """Every bucket of a job, (height, width): those to try first, then those of smaller bases."""
    if crop.mode == "fixed":
        return [[crop.size]]
    if crop.table:
        named = [SDXL if text == "sdxl" else (size_in(text),) for text in crop.table]
        return [sorted({size for sizes in named for size in sizes})]
    least = crop.base if crop.least is None else crop.least
    bases = [*range(crop.base, least, -crop.step), least]
    return [bucket_sizes(base, crop.step, crop.max_ratio) for base in bases]


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
