"""From a job's settings to its kind."""

from __future__ import annotations

from typing import Any

from asymvae.config import InpaintJob, ShardJob
from asymvae.config_latents import DecodeJob, PrecomputeJob
from asymvae.pipeline.kinds.base import Kind
from asymvae.pipeline.kinds.decode import DecodeKind
from asymvae.pipeline.kinds.inpaint import InpaintKind
from asymvae.pipeline.kinds.precompute import PrecomputeKind

_KINDS: dict[type[ShardJob], type[Kind[Any]]] = {
    InpaintJob: InpaintKind,
    PrecomputeJob: PrecomputeKind,
    DecodeJob: DecodeKind,
}


def kind_class(job: ShardJob) -> type[Kind[Any]]:
    return _KINDS[type(job)]


def kind_of(job: ShardJob, model_name: str = "") -> Kind[Any]:
    """The kind of job that these settings are of. Raises what its constructor raises."""
    return kind_class(job)(job, model_name)
