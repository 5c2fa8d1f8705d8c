"""How many batches of each bucket an epoch has, and who gets them: the same on every rank, without a word between them.

A *step* is what all ranks do at once: one batch each. All batches of a step are of one bucket, but for the few steps
that take up what the world size leaves over of each bucket. Of a rank's steps, worker k of K makes every K-th, from
the k-th on, which is the order in which torch's DataLoader asks for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Remainder = Literal["pad", "drop"]


def count_batches(rows: Sequence[int], batch_size: int, world_size: int, remainder: Remainder) -> NDArray[np.int64]:
    """Batches of each bucket, by the rows of each; in sum a multiple of ``world_size``.

    ``pad``: enough for all rows, and at most ``world_size - 1`` more. ``drop``: all of them full, so up to
    ``batch_size - 1`` rows of a bucket and ``world_size - 1`` batches are left out.
    """
    held = np.asarray(rows, np.int64)
    if remainder == "pad":
        counts = -(-held // batch_size)
        for _ in range(-int(counts.sum()) % world_size):
            counts[np.argmax(held / (counts + 1))] += 1  # where the new batch gets the most rows
    else:
        counts = held // batch_size
        for _ in range(int(counts.sum()) % world_size):
            counts[np.argmax(counts)] -= 1  # where it is missed the least
    return counts


@dataclass(frozen=True, slots=True)
class Steps:
    """``bucket`` (steps,): the bucket of all ranks in that step, or -1 - m: those of ``mixed[m]`` (world_size,)."""

    bucket: NDArray[np.int64]
    mixed: NDArray[np.int64]

    @classmethod
    def plan(cls, counts: NDArray[np.int64], world_size: int, rng: np.random.Generator | None) -> Steps:
        """Each bucket's steps spread over the epoch, by chance, or evenly where ``rng`` is None."""
        alike = counts // world_size
        left = np.repeat(np.arange(len(counts)), counts % world_size)
        if rng is not None:
            rng.shuffle(left)
        mixed = left.reshape(-1, world_size)
        kinds = np.concatenate([np.arange(len(counts)), -1 - np.arange(len(mixed))])
        repeats = np.concatenate([alike, np.ones(len(mixed), np.int64)])
        steps = np.repeat(kinds, repeats)
        if rng is not None:
            return cls(rng.permutation(steps), mixed)
        # The j-th of n stands at (j + 1/2) / n of the epoch; of a mixed step, at its end.
        places = [(np.arange(count) + 0.5) / count for count in alike if count]
        place = np.concatenate([*places, np.ones(len(mixed))])
        return cls(steps[np.argsort(place, kind="stable")], mixed)

    def of_rank(self, rank: int) -> NDArray[np.int64]:
        """(steps,): the bucket of each of the rank's batches."""
        if not len(self.mixed):
            return self.bucket
        alone = self.mixed[np.maximum(-1 - self.bucket, 0), rank]
        return np.where(self.bucket >= 0, self.bucket, alone)

    def by_worker(self, buckets: int, world_size: int, workers: int) -> NDArray[np.int64]:
        """(buckets, world_size, workers): how many batches of a bucket each worker of each rank makes."""
        counts = np.zeros((buckets, world_size, workers), np.int64)
        worker = np.arange(len(self.bucket)) % workers
        alike = self.bucket >= 0
        of_all = np.zeros((buckets, workers), np.int64)
        np.add.at(of_all, (self.bucket[alike], worker[alike]), 1)
        counts += of_all[:, None, :]
        for step in np.flatnonzero(~alike):
            np.add.at(counts, (self.mixed[-1 - self.bucket[step]], np.arange(world_size), worker[step]), 1)
        return counts
