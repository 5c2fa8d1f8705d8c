"""What becomes of a sample: rows of results and metrics, or of errors. One column dictionary each, in one place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from asymvae.config import InpaintJob
from asymvae.faults import Fault
from asymvae.media.image import encode_image
from asymvae.pipeline.device import Done
from asymvae.stages.composite import composite, max_abs_known, seam
from asymvae.stages.prepare import Planned

_EXTENSION = {"png": "png", "jpeg": "jpg", "webp": "webp"}
_DEVICE_METRICS = ("mae_known", "mse_known", "psnr_known", "ssim_known", "latent_mean", "latent_std")


@dataclass(slots=True)
class Rows:
    """Rows of one planned (sample, variant), or of a bad sample, by the kind of part that they go to."""

    results: list[dict[str, Any]] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)


def error_rows(fault: Fault, *, key: str | None, index: int | None, variants: int) -> Rows:
    """A row for every variant that was planned of the sample; one, without a variant, for a fault of the shard."""
    numbers: list[int | None] = [None] if index is None else list(range(variants))
    return Rows(errors=[_error_row(fault, key, index, variant) for variant in numbers])


def _error_row(fault: Fault, key: str | None, index: int | None, variant: int | None) -> dict[str, Any]:
    return {
        "key": key,
        "variant": variant,
        "index": index,
        "stage": fault.stage,
        "code": fault.code,
        "message": fault.message,
    }


def finish(planned: Planned, variant: int, done: Done | None, job: InpaintJob) -> Rows:
    """Composite, encode and describe one variant; ``done`` is None where the sample passes through."""
    prepared = planned.prepared
    original = prepared.original
    height, width = original.pixels.shape[:2]
    if done is not None and done.fault is not None:
        return Rows(errors=[_error_row(done.fault, prepared.key, prepared.index, variant)])
    out = composite(prepared, done.pixels if done else None, job.composite)
    encoded = encode_image(out, original.alpha, image_format=job.output.image_format, quality=job.output.quality)
    if isinstance(encoded, Fault):
        return Rows(errors=[_error_row(encoded, prepared.key, prepared.index, variant)])

    place = prepared.placement
    identity = {"key": prepared.key, "variant": variant, "index": prepared.index}
    result = identity | {
        "image": {"bytes": encoded, "path": f"{prepared.key}.{_EXTENSION[job.output.image_format]}"},
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
    measured = identity | {name: (done.metrics[name] if done else None) for name in _DEVICE_METRICS}
    measured |= {
        "hole_fraction": prepared.hole_fraction,
        "max_abs_known": max_abs_known(prepared, out),
        "seam": seam(prepared, out),
    }
    return Rows(results=[result], metrics=[measured])
