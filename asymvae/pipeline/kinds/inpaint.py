"""Inpainting: images and masks in; results and metrics out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import torch

from asymvae.batch import Item, collate
from asymvae.config import InpaintJob
from asymvae.faults import Fault
from asymvae.inpaint.base import Inpainter, load_inpainter
from asymvae.media.image import encode_image, probe_size
from asymvae.model.autoencoder import AsymmetricAutoencoderKL
from asymvae.pipeline.kinds.base import Done, Kind, Made
from asymvae.pipeline.rows import EXTENSION, Rows
from asymvae.stages.composite import composite, max_abs_known, seam
from asymvae.stages.decode import Decode
from asymvae.stages.encode import Encode
from asymvae.stages.inpaint import Inpaint
from asymvae.stages.levels import levels
from asymvae.stages.measure import Measure
from asymvae.stages.prepare import BYTES_A_PIXEL, BYTES_A_PIXEL_A_VARIANT, Planned, Prepare
from asymvae.storage.samples import BadSample, FieldNames, Sample, read_shard
from asymvae.storage.schemas import METRICS, RESULTS
from asymvae.storage.shards import Shard

DEVICE_METRICS = ("mae_known", "mse_known", "psnr_known", "ssim_known", "latent_mean", "latent_std")
_LIKELY_POLARITY = 0.5


class InpaintKind(Kind[InpaintJob]):
    """Args:
    inpainter: by default the one that the settings name.
    """

    name = "inpaint"

    def __init__(self, job: InpaintJob, model_name: str = "", inpainter: Inpainter | None = None) -> None:
        super().__init__(job, model_name)
        self.inpainter = inpainter or load_inpainter(job.inpaint)

    @property
    def variants(self) -> int:
        return self.job.inpaint.variants

    @property
    def brings(self) -> str:
        return "inpaint.diffusion.path" if self.job.inpaint.method == "diffusion" else "inpaint.method"

    @classmethod
    def blamed(cls, job: InpaintJob) -> tuple[str, str]:
        return "inpaint.method", job.inpaint.method

    @classmethod
    def resolved(cls, job: InpaintJob) -> InpaintJob:
        folder = Path(job.inpaint.diffusion.path)
        if job.inpaint.method != "diffusion" or not folder.is_dir():
            return job
        diffusion = job.inpaint.diffusion.model_copy(update={"path": str(folder.resolve())})
        return job.model_copy(update={"inpaint": job.inpaint.model_copy(update={"diffusion": diffusion})})

    def columns(self) -> Mapping[str, tuple[str, ...]]:
        names = self.job.input
        wanted = {"input.image": names.image, "input.mask": names.mask}
        if self.inpainter.needs_given:
            wanted["input.given"] = names.given
        return wanted | ({"input.key": (names.key,)} if names.key is not None else {})

    def check_model(self, model: AsymmetricAutoencoderKL) -> None:
        model.decoder.condition_encoder.wanted()  # refuses what can't be shown image and mask
        self.inpainter.check_vae(model)

    def digest(self) -> str | None:
        return self.inpainter.digest()

    def doubt(self, mean_hole_fraction: float | None) -> str | None:
        if mean_hole_fraction is None or mean_hole_fraction <= _LIKELY_POLARITY:
            return None
        return (
            f"holes cover {mean_hole_fraction:.0%} of its images; "
            f"is input.mask_polarity ({self.job.input.mask_polarity}) the right way round?"
        )

    def load(self, model: AsymmetricAutoencoderKL, device: torch.device, dtype: torch.dtype) -> None:
        self.inpainter.load(model, device, dtype)
        self.device, self.dtype = device, dtype
        self.stages = (Encode(model, self.inpainter), Inpaint(model, self.inpainter), Decode(model), Measure())
        self._prepare = Prepare(self.job, self.inpainter, model.config.encoder_factor)

    def read(self, shard: Shard, scratch: Path) -> Iterator[Sample | BadSample]:
        names = self.job.input
        return read_shard(
            shard, FieldNames(names.image, names.mask, names.prompt, names.given, names.overrides, names.key)
        )

    def cost(self, row: Sample) -> int:
        stored = sum(map(len, row.fields.values()))
        size = probe_size(row.fields["image"]) if "image" in row.fields else None
        a_pixel = BYTES_A_PIXEL + BYTES_A_PIXEL_A_VARIANT * (self.variants - 1)
        return stored + (a_pixel * size[0] * size[1] if isinstance(size, tuple) else 0)

    def prepare(self, row: Sample) -> Planned | Fault:
        return self._prepare(row.index, row.key, row.fields)

    def run(self, items: Sequence[Item], size: int) -> Made:
        batch = collate(list(items), size, self.device, self.dtype)
        for stage in self.stages:
            batch = stage(batch)
        assert batch.decoded is not None
        metrics = torch.stack([batch.metrics[name] for name in DEVICE_METRICS], dim=1)
        return Made({"pixels": levels(batch.decoded), "metrics": metrics}, batch.failed)

    def finish(self, planned: Planned, variant: int, done: Done | None) -> Rows | Fault:
        """Composite, encode and describe one variant."""
        prepared, output = planned.prepared, self.job.output
        original = prepared.original
        height, width = original.pixels.shape[:2]
        out = composite(prepared, done.arrays["pixels"] if done else None, self.job.composite)
        encoded = encode_image(out, original.alpha, image_format=output.image_format, quality=output.quality)
        if isinstance(encoded, Fault):
            return encoded

        place = prepared.placement
        identity = {"key": prepared.key, "variant": variant, "index": prepared.index}
        result = identity | {
            "image": {"bytes": encoded, "path": f"{prepared.key}.{EXTENSION[output.image_format]}"},
            "width": width,
            "height": height,
            "seed": planned.seeds[variant],
            "prompt": prepared.prompt,
            "negative_prompt": prepared.negative_prompt,
            "crop": list(place.box) if place else [0, 0, height, width],
            "work_width": place.resized[1] if place else width,
            "work_height": place.resized[0] if place else height,
            "passed_through": place is None,
            "bit_depth_reduced": original.bit_depth_reduced,
        }
        numbers = done.numbers("metrics") if done else [None] * len(DEVICE_METRICS)
        measured = identity | dict(zip(DEVICE_METRICS, numbers, strict=True))
        measured |= {
            "hole_fraction": prepared.hole_fraction,
            "max_abs_known": max_abs_known(prepared, out),
            "seam": seam(prepared, out),
        }
        return {"results": result, "metrics": measured}

    def schema(self, folder: str) -> pa.Schema:
        return {"results": RESULTS, "metrics": METRICS}[folder]
