"""What a worker says of a shard. Without torch, so that the news of many can be read where there is none."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Report:
    """What became of one shard. ``reason`` says why where it isn't committed."""

    shard: str
    committed: bool
    reason: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    errors_by_code: dict[str, int] = field(default_factory=dict)
    mean_hole_fraction: float | None = None
    degraded: bool = False
    worker: str = ""  # host and process
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)  # seconds
    bytes_written: int = 0
