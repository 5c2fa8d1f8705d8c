"""What one worker of one rank does in one epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from asymvae.latents.epoch import Steps
from asymvae.latents.order import Pick, Stretch, picks, stretch
from asymvae.latents.parts import BucketGroups

_STEPS, _GROUPS, _PLACES = range(3)  # what random numbers are for


@dataclass(frozen=True, slots=True)
class Order:
    """What decides the order, beside the epoch and the data. ``buffer_bytes``: of means, in the shuffle buffers of one
    worker."""

    batch_size: int
    shuffle: bool
    seed: int
    buffer_bytes: int


@dataclass(frozen=True, slots=True)
class Who:
    rank: int
    world_size: int
    worker: int
    num_workers: int

    @property
    def number(self) -> int:
        """Among all workers of all ranks."""
        return self.rank * self.num_workers + self.worker


class Share:
    """``steps`` (batches,): the bucket of each of the worker's batches; ``stretches``: what it reads of a bucket.

    A function of the arguments, so that all workers have shares that fit together.
    """

    def __init__(
        self, groups: Sequence[BucketGroups], counts: NDArray[np.int64], order: Order, epoch: int, who: Who
    ) -> None:
        self._order, self._epoch, self._who = order, epoch, who
        steps = Steps.plan(counts, who.world_size, self._rng(_STEPS) if order.shuffle else None)
        self.steps: Final = steps.of_rank(who.rank)[who.worker :: who.num_workers]
        batches = steps.by_worker(len(groups), who.world_size, who.num_workers).reshape(len(groups), -1)
        rows_a_byte = order.buffer_bytes / sum(of.total * of.row_bytes for of in groups)
        self.stretches: Final[dict[int, Stretch]] = {}
        for bucket, of in enumerate(groups):
            if not batches[bucket, who.number]:
                continue
            window = max(order.batch_size, int(rows_a_byte * of.total)) if order.shuffle else 0
            rng = self._rng(_GROUPS, bucket) if order.shuffle else None
            self.stretches[bucket] = stretch(of, batches[bucket], who.number, order.batch_size, window, rng)

    def picks(self) -> Iterator[Pick]:
        """The worker's batches, in order."""
        rngs = {bucket: self._rng(_PLACES, bucket, self._who.number) for bucket in self.stretches}
        return picks(self.steps, self.stretches, rngs)

    def _rng(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([self._order.seed, self._epoch, *purpose])
