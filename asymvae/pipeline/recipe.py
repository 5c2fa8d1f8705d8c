"""What every worker is given."""

from __future__ import annotations

from dataclasses import dataclass

from asymvae.config import ShardJob


@dataclass(frozen=True)
class Recipe:
    """How a shard becomes its parts, and under which commit."""

    job: ShardJob
    fingerprint: str
    weights_sha256: str
    inpainter_sha256: str | None = None  # of what the inpainter brings beside the model, see Inpainter.digest
    batch_budget: int | None = None  # bytes that a batch may take, see capacity; None: whatever it takes
    model_name: str = ""  # the path that the job's first run was given, without credentials; parts may say it
