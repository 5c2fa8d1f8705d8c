"""How evenly a run's shards kept its workers busy: shards of very different sizes leave some of them without work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from asymvae.storage.shard_table import ShardTable
from asymvae.storage.shards import Shard

WORTH_SPLITTING: Final = 1.25  # the run is then a quarter longer than its work asks for


@dataclass(slots=True)
class _Worker:
    first: float  # when its first shard began
    last: float  # when its latest ended
    busy: float


class Tail:
    """Sums up, worker by worker, when shards ran; times are of one clock, in seconds."""

    def __init__(self) -> None:
        self._workers: dict[str, _Worker] = {}

    def add(self, worker: str, seconds: float, ended: float) -> None:
        """A shard that took ``seconds`` until ``ended``. Those of one worker come in the order of their ends; they
        may overlap, which counts once."""
        known = self._workers.get(worker)
        if known is None:
            self._workers[worker] = _Worker(ended - seconds, ended, seconds)
            return
        known.busy += min(seconds, ended - known.last)
        known.first = min(known.first, ended - seconds)
        known.last = ended

    @property
    def workers(self) -> int:
        return len(self._workers)

    @property
    def idle_seconds(self) -> float:
        """Worker-seconds without a shard, from each worker's first shard to the end of the run's last."""
        return sum(self._end - worker.first - worker.busy for worker in self._workers.values())

    @property
    def idle_share(self) -> float:
        """:attr:`idle_seconds` of all worker-seconds, 0 to 1."""
        return self.idle_seconds / max(1e-9, sum(self._end - worker.first for worker in self._workers.values()))

    @property
    def _end(self) -> float:
        return max((worker.last for worker in self._workers.values()), default=0.0)


def largest_first(shards: Sequence[Shard]) -> ShardTable:
    """In the order in which they leave the fewest workers idle at the end (Graham's rule: the longest first).

    The run then takes at most a share of 1/3 longer than the best order would, and, more to the point here, at most
    one shard's time longer than all work divided by the workers.
    """
    return ShardTable.of(shards).by_size()


def oversized(shards: Sequence[Shard], workers: int) -> list[Shard]:
    """The shards that are worth splitting where they are made: those of more than :data:`WORTH_SPLITTING` workers'
    shares of all bytes. The run takes as long as the largest of them, whatever the order. [] with one worker."""
    if workers <= 1:
        return []
    table = ShardTable.of(shards)
    share = int(table.sizes.sum()) / workers
    return list(table.take(np.flatnonzero(table.sizes > WORTH_SPLITTING * share)))
