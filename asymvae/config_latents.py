"""The settings of ``jobs.precompute_latents`` and ``jobs.decode_latents``."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, model_validator

from asymvae.config import (
    AS_TEXT,
    InputSettings,
    MaskSettings,
    Names,
    OutputFolder,
    OutputSettings,
    Section,
    ShardInput,
    ShardJob,
    Urls,
    setting,
)

_IMAGES = InputSettings.model_fields
_SIZE = re.compile(r"([1-9][0-9]*)x([1-9][0-9]*)")


def _sizes(texts: tuple[str, ...]) -> tuple[str, ...]:
    for text in texts:
        if text != "sdxl" and not _SIZE.fullmatch(text):
            raise ValueError(f"{text!r} is neither HEIGHTxWIDTH, such as 512x768, nor sdxl")
    return texts


def size_in(text: str) -> tuple[int, int]:
    """(height, width) in a text such as ``512x768``."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not HEIGHTxWIDTH, such as 512x768")
    return int(found[1]), int(found[2])


Sizes = Annotated[Names, AfterValidator(_sizes)]


class PrecomputeInput(ShardInput):
    key: str | None = setting(None, _IMAGES["key"].description or "", "yes")
    image: Names = setting(_IMAGES["image"].default, _IMAGES["image"].description or "", "yes")
    prompt: Names = setting(_IMAGES["prompt"].default, "the caption's field or column", "yes")
    metadata: Names = setting(("json",), "the json's field or column", "yes")
    carry: Names = setting((), "keys of that json's object that the rows carry", "yes")
    max_pixels: int = setting(_IMAGES["max_pixels"].default, _IMAGES["max_pixels"].description or "", "yes", ge=1)


class LatentOutput(OutputFolder):
    dtype: Literal["float16", "bfloat16", "float32"] = setting("float16", "of the stored mean and logvar", "yes")


class CropSettings(Section):
    """What of an image is encoded. It is resized to cover a bucket, and cropped to it."""

    mode: Literal["buckets", "fixed"] = setting("buckets", "buckets by aspect ratio, or one size for all", "yes")
    base: int = setting(512, "buckets: their area is at most this squared", "yes", ge=8, le=8192)
    step: int = setting(64, "buckets: sides are multiples of this", "yes", ge=8)
    max_ratio: float = setting(2.0, "buckets: the longer side over the shorter, at most", "yes", ge=1, le=16)
    least: int | None = setting(
        None,
        "buckets: images too small for `base` fall back to smaller bases, by steps of `step`, down to this; "
        "by default they are error rows",
        "yes",
        ge=8,
    )
    table: Sizes = setting(
        (), "buckets: these instead, HEIGHTxWIDTH each; sdxl is the table of arXiv 2307.01952", "yes"
    )
    size: Annotated[tuple[int, int], *AS_TEXT] = setting((512, 512), "fixed: height, width", "yes")
    where: Literal["centre", "random"] = setting(
        "centre", "random: a window drawn by blake2b(seed, key, variant)", "yes"
    )
    hflip: Literal["none", "both"] = setting("none", "both: a second variant, mirrored, of every image", "yes")
    enlarge: bool = setting(False, "enlarge images that are smaller than every bucket", "yes")
    reduced_jpeg: bool = setting(
        True, "decode JPEGs at 1/2, 1/4 or 1/8 where that leaves twice the pixels a side that are needed", "yes"
    )

    @model_validator(mode="after")
    def _consistent(self) -> CropSettings:
        if self.step > self.base:
            raise ValueError(f"step ({self.step}) is more than base ({self.base}): there would be no bucket")
        if self.least is not None and not self.step <= self.least <= self.base:
            raise ValueError(f"least is {self.least}; it lies between step ({self.step}) and base ({self.base})")
        return self


class PrecomputeJob(ShardJob):
    """Encode every image of the shards, and write the posteriors as Parquet, a folder a bucket."""

    input: PrecomputeInput
    output: LatentOutput
    crop: CropSettings = CropSettings()


class LatentInput(ShardInput):
    urls: Urls = setting(
        ..., "the output of jobs.precompute_latents (one folder), or Parquet files: a URL or a list, with globs", "no"
    )
    format: Literal["auto", "parquet"] = setting("auto", "auto: a folder with commits, else Parquet files", "yes")


class LatentSettings(Section):
    """Where in the Parquet files the latents are."""

    column: str = setting("mean", "the latents' column: lists of numbers", "yes")
    key: str = setting("key", "the key's column", "yes")
    shape: Annotated[tuple[int, int, int] | None, *AS_TEXT] = setting(
        None, "channels, height, width of every latent; by default the column `shape` says it", "yes"
    )
    scaling: float | None = setting(
        None, "what the numbers were multiplied by; must be set unless jobs.precompute_latents wrote them", "yes", gt=0
    )


class OriginalSettings(Section):
    """Shards of the images that the latents were made of, for the conditional decoder; joined by key."""

    urls: Urls = setting((), "shards; none: latents are decoded without image and mask", "no")
    root: str | None = setting(None, "folder that these shards' names are relative to", "no")
    format: Literal["auto", "webdataset", "parquet"] = setting("auto", "auto goes by the file's ending", "yes")
    key: str | None = setting(None, _IMAGES["key"].description or "", "yes")
    image: Names = setting(_IMAGES["image"].default, _IMAGES["image"].description or "", "yes")
    mask: Names = setting(_IMAGES["mask"].default, _IMAGES["mask"].description or "", "yes")
    mask_polarity: Literal["white_is_hole", "black_is_hole"] = setting(
        "white_is_hole", _IMAGES["mask_polarity"].description or "", "yes"
    )
    max_pixels: int = setting(_IMAGES["max_pixels"].default, _IMAGES["max_pixels"].description or "", "yes", ge=1)


class DecodeJob(ShardJob):
    """Decode latents to images, with the original images and masks where those are given."""

    input: LatentInput
    output: OutputSettings
    latents: LatentSettings = LatentSettings()
    originals: OriginalSettings = OriginalSettings()
    mask: MaskSettings = MaskSettings()
    composite: Literal["paste", "none"] = setting(
        "paste", "with originals: paste keeps their known pixels; none gives what the decoder made", "yes"
    )
