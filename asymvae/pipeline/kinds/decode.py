"""Decoding latents: latents in, with the originals' pixels and masks where there are any; images and metrics out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from asymvae.batch import normalised, to_device
from asymvae.config_latents import DecodeJob
from asymvae.faults import Fault
from asymvae.media.geometry import Placement
from asymvae.media.image import encode_image, probe_size
from asymvae.media.paste import paste
from asymvae.model.autoencoder import AsymmetricAutoencoderKL
from asymvae.pipeline.capacity import Pass
from asymvae.pipeline.kinds.base import Done, Kind, Made
from asymvae.pipeline.rows import EXTENSION, Rows
from asymvae.stages.levels import levels
from asymvae.stages.measure import measure_known
from asymvae.stages.prepare_decode import DecodeItem, DecodePlanned, PrepareDecode
from asymvae.storage.latent_shards import list_latents, with_originals
from asymvae.storage.latents import LatentColumns, LatentRow, read_latents
from asymvae.storage.samples import BadSample, FieldNames
from asymvae.storage.schemas import METRICS, RESULTS
from asymvae.storage.shards import Format, Shard, format_of, list_shards

_KNOWN = ("mae_known", "mse_known", "psnr_known", "ssim_known")
_STATISTICS = ("latent_mean", "latent_std")
# As in stages/prepare.py, of the original; and of the image that the latents become.
_BYTES_A_PIXEL_OF_AN_ORIGINAL = 24
_BYTES_A_PIXEL = 24


class DecodeKind(Kind[DecodeJob]):
    name = "decode_latents"
    growth = 16  # float16 latents of f8 with 4 channels, a mean and a logvar, take a quarter of a byte a pixel

    @property
    def joined(self) -> bool:
        return bool(self.job.originals.urls)

    @property
    def passes(self) -> frozenset[Pass]:
        return frozenset({"decode", "condition", "measure"}) if self.joined else frozenset({"decode"})

    @cached_property
    def _columns(self) -> LatentColumns:
        names = self.job.latents
        return LatentColumns(names.column, names.key, names.shape, names.scaling)

    def shards(self, root: str | None) -> tuple[str, Sequence[Shard]]:
        names, originals = self.job.input, self.job.originals
        root, shards = list_latents(names.urls, root=names.root or root, format=names.format)
        if self.joined:
            found = list_shards(originals.urls, root=originals.root, format=originals.format)
            shards = with_originals(shards, found)
        return root, shards

    def check_model(self, model: AsymmetricAutoencoderKL) -> None:
        if self.joined:
            try:
                model.decoder.condition_encoder.wanted()
            except ValueError as error:
                raise ValueError(f"originals.urls is set, and {error}") from error

    def doubt(self, mean_hole_fraction: float | None) -> str | None:
        if mean_hole_fraction is None or mean_hole_fraction <= 0.5:
            return None
        polarity = self.job.originals.mask_polarity
        return f"holes cover {mean_hole_fraction:.0%} of its images; is originals.mask_polarity ({polarity}) right?"

    def load(self, model: AsymmetricAutoencoderKL, device: torch.device, dtype: torch.dtype) -> None:
        self.model, self.device, self.dtype = model, device, dtype
        config = model.config
        self._prepare = PrepareDecode(self.job, config.decoder_factor, config.latent_channels)

    def read(self, shard: Shard, scratch: Path) -> Iterator[LatentRow | BadSample]:
        originals: tuple[Format, FieldNames] | None = None
        if shard.beside is not None:
            names = self.job.originals
            fields = FieldNames(names.image, names.mask, (), (), (), names.key)
            originals = format_of(shard.beside, names.format), fields
        return read_latents(shard, self._columns, originals, scratch)

    def numbers(self, row: LatentRow | BadSample) -> Sequence[int]:  # type: ignore[override]
        return [row.variant] if isinstance(row, LatentRow) else [0]

    def cost(self, row: LatentRow) -> int:
        _, height, width = row.values.shape
        area: int = height * width * self._prepare.factor**2
        stored = row.values.nbytes + sum(map(len, row.fields.values()))
        size = probe_size(row.fields["image"]) if "image" in row.fields else None
        original = _BYTES_A_PIXEL_OF_AN_ORIGINAL * size[0] * size[1] if isinstance(size, tuple) else 0
        return stored + original + _BYTES_A_PIXEL * area

    def held(self, planned: DecodePlanned, cost: int) -> int:
        return sum(_BYTES_A_PIXEL * item.size[0] * item.size[1] for item in planned.items)

    def prepare(self, row: LatentRow) -> DecodePlanned | Fault:
        if row.fault is not None:
            return row.fault
        return self._prepare(row.index, row.key, row.variant, row.values, row.placed, row.caption, row.fields)

    def run(self, items: Sequence[DecodeItem], size: int) -> Made:
        padded = [*items, *[items[-1]] * (size - len(items))]
        z = to_device(np.stack([item.values for item in padded]), self.device).to(self.dtype)
        shown = [item.shown for item in padded if item.shown is not None]
        metrics = {}
        if shown:
            pixels = to_device(np.stack([one.pixels for one in shown]), self.device)
            mask = to_device(np.stack([one.mask for one in shown])[:, None], self.device)
            image = normalised(pixels)
            # The hole's old pixels must not reach the network by any path.
            masked = (image * mask.logical_not()).to(self.dtype)
            decoded = self.model.decode(z, image=masked, mask=mask).sample
            metrics = measure_known(decoded, image, mask.logical_not().float())
        else:
            decoded = self.model.decode(z).sample
        scaled = z.float() * self.model.config.scaling_factor
        statistics = torch.stack([scaled.mean(dim=(1, 2, 3)), scaled.std(dim=(1, 2, 3))], dim=1)
        arrays = {"pixels": levels(decoded), "statistics": statistics}
        if metrics:
            arrays["known"] = torch.stack([metrics[name] for name in _KNOWN], dim=1)
        finite = torch.isfinite(decoded).flatten(1).all(dim=1)
        return Made(arrays, [(Fault("non_finite"), torch.logical_not(finite))])

    def finish(self, planned: DecodePlanned, variant: int, done: Done | None) -> Rows | Fault:
        assert done is not None
        item: DecodeItem = done.item
        (height, width), shown, output = item.size, item.shown, self.job.output
        pixels = done.arrays["pixels"]
        max_abs: int | None = None
        if shown is not None:
            if self.job.composite == "paste":
                whole = Placement(height, width, (0, 0, height, width), (height, width), (height, width))
                pixels = paste(shown.pixels, pixels, shown.blend, whole)
            known = shown.blend == 0
            if known.any():
                max_abs = int(np.abs(pixels.astype(np.int16) - shown.pixels).max(axis=2)[known].max())
        encoded = encode_image(pixels, None, image_format=output.image_format, quality=output.quality)
        if isinstance(encoded, Fault):
            return encoded
        identity = {"key": planned.key, "variant": variant, "index": planned.index}
        result = identity | {
            "image": {"bytes": encoded, "path": f"{planned.key}.{EXTENSION[output.image_format]}"},
            "width": width,
            "height": height,
            "seed": None,
            "prompt": planned.caption,
            "negative_prompt": None,
            "crop": list(planned.crop),
            "work_width": width,
            "work_height": height,
            "passed_through": False,
            "bit_depth_reduced": shown is not None and shown.bit_depth_reduced,
        }
        numbers = done.numbers("known") if "known" in done.arrays else [None] * len(_KNOWN)
        measured = identity | dict(zip(_KNOWN, numbers, strict=True))
        measured |= dict(zip(_STATISTICS, done.numbers("statistics"), strict=True))
        measured |= {
            "hole_fraction": None if shown is None else shown.hole_fraction,
            "max_abs_known": max_abs,
            "seam": None,
        }
        return {"results": result, "metrics": measured}

    def schema(self, folder: str) -> pa.Schema:
        return {"results": RESULTS, "metrics": METRICS}[folder]
