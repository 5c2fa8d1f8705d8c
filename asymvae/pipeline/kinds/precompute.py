"""Precomputing latents: images in; posteriors out, a folder a bucket."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from asymvae.batch import normalised, to_device
from asymvae.config_latents import PrecomputeJob
from asymvae.faults import Fault
from asymvae.media.image import probe_shown
from asymvae.model.autoencoder import AsymmetricAutoencoderKL
from asymvae.pipeline.capacity import Pass
from asymvae.pipeline.kinds.base import Done, Kind, Made
from asymvae.pipeline.rows import Rows
from asymvae.stages.encode_posterior import EncodePosterior, stored_array
from asymvae.stages.prepare_latents import LatentItem, LatentsPlanned, PrepareLatents
from asymvae.storage.samples import BadSample, FieldNames, Sample, read_shard
from asymvae.storage.schemas import latents_schema
from asymvae.storage.shards import Shard

# What an image holds while it is decoded and resized, in bytes a pixel of what is decoded: libjpeg's pixels, Pillow's,
# and those of a colour conversion. Generously; it bounds the samples in flight.
_BYTES_A_PIXEL = 14
# Of a window, in bytes a pixel: its own, and its latents in any dtype, on the host and in a row.
_BYTES_A_PIXEL_OF_A_WINDOW = 6


class PrecomputeKind(Kind[PrecomputeJob]):
    name = "precompute_latents"
    # A part a bucket, and so a writer: one holds a row group of its bucket. Readers shuffle by row groups.
    row_group_bytes = 8 * 2**20
    growth = 4

    @property
    def variants(self) -> int:
        return len(self._prepare.flips)

    @cached_property
    def _prepare(self) -> PrepareLatents:
        return PrepareLatents(self.job)

    @property
    def passes(self) -> frozenset[Pass]:
        return frozenset({"encode"})

    @property
    def brings(self) -> str:
        crop = self.job.crop
        return "crop.size" if crop.mode == "fixed" else "crop.table" if crop.table else "crop.step"

    def columns(self) -> Mapping[str, tuple[str, ...]]:
        names = self.job.input
        return {"input.image": names.image} | ({"input.key": (names.key,)} if names.key is not None else {})

    def check_model(self, model: AsymmetricAutoencoderKL) -> None:
        factor = model.config.encoder_factor
        sizes = [size for tier in self._prepare.tiers for size in tier]
        odd = [size for size in sizes if size[0] % factor or size[1] % factor]
        if odd:
            raise ValueError(
                f"{self.brings} gives {odd[0][0]}x{odd[0][1]}, and the model takes multiples of {factor} pixels"
            )

    def load(self, model: AsymmetricAutoencoderKL, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._encode = EncodePosterior(model, self.job.output.dtype)
        weights = model.weights_sha256 or ""
        self._schema = latents_schema(
            self.job.output.dtype,
            scaling_factor=model.config.scaling_factor,
            model=self.model_name,
            weights_sha256=weights,
        )

    def read(self, shard: Shard, scratch: Path) -> Iterator[Sample | BadSample]:
        names = self.job.input
        json = names.metadata if names.carry else ()
        return read_shard(shard, FieldNames(names.image, (), names.prompt, (), json, names.key))

    def cost(self, row: Sample) -> int:
        stored = sum(map(len, row.fields.values()))
        shown = probe_shown(row.fields["image"]) if "image" in row.fields else None
        if shown is None or isinstance(shown, Fault):
            return stored
        (height, width), _ = shown
        decoded = _BYTES_A_PIXEL * height * width // self._prepare.times(*shown) ** 2
        bucket = self._prepare.bucket(height, width)
        windows = 0 if bucket is None else _BYTES_A_PIXEL_OF_A_WINDOW * self.variants * bucket[0] * bucket[1]
        return stored + decoded + windows

    def held(self, planned: LatentsPlanned, cost: int) -> int:
        return sum(_BYTES_A_PIXEL_OF_A_WINDOW * item.size[0] * item.size[1] for item in planned.items)

    def prepare(self, row: Sample) -> LatentsPlanned | Fault:
        return self._prepare(row.index, row.key, row.fields)

    def run(self, items: Sequence[LatentItem], size: int) -> Made:
        padded = [*items, *[items[-1]] * (size - len(items))]
        pixels = to_device(np.stack([item.pixels for item in padded]), self.device)
        mean, logvar, failed = self._encode(normalised(pixels).to(self.dtype))
        return Made({"mean": mean, "logvar": logvar}, failed)

    def finish(self, planned: LatentsPlanned, variant: int, done: Done | None) -> Rows | Fault:
        assert done is not None
        item: LatentItem = done.item
        row = {
            "key": planned.key,
            "variant": variant,
            "index": planned.index,
            "mean": stored_array(done.arrays["mean"], self.job.output.dtype),
            "logvar": stored_array(done.arrays["logvar"], self.job.output.dtype),
            "shape": list(done.arrays["mean"].shape),
            "original_height": planned.original[0],
            "original_width": planned.original[1],
            "resized_height": planned.resized[0],
            "resized_width": planned.resized[1],
            "crop": list(item.box),
            "hflip": item.hflip,
            "caption": planned.caption,
            "json": planned.carried,
            "source_sha256": planned.source_sha256,
        }
        return {f"latents/bucket={item.size[0]}x{item.size[1]}": row}

    def schema(self, folder: str) -> pa.Schema:
        return self._schema
