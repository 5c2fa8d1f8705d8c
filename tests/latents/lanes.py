"""A data set as all its ranks and workers see it, without processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from asymvae.latents import dataset
from asymvae.latents.dataset import LatentDataset


@contextmanager
def as_worker(worker: int, workers: int) -> Iterator[None]:
    """As in worker ``worker`` of a DataLoader with ``num_workers=workers``; 0: in none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset, "worker_and_workers", lambda: (worker, max(1, workers)))
        yield


def epoch_of_rank(data: LatentDataset, workers: int) -> list[dict[str, Any]]:
    """The batches of one rank as a DataLoader gives them: from its workers in turn."""
    made = []
    for worker in range(max(1, workers)):
        with as_worker(worker, workers):
            made.append(list(data))
    longest = max(len(batches) for batches in made)
    return [batches[turn] for turn in range(longest) for batches in made if turn < len(batches)]


def epoch_of_all(make: Callable[[int], LatentDataset], world_size: int, workers: int) -> list[list[dict[str, Any]]]:
    """By rank; ``make`` gives the data set of a rank."""
    return [epoch_of_rank(make(rank), workers) for rank in range(world_size)]


def real_keys(batches: list[dict[str, Any]]) -> list[str]:
    """Without padding."""
    return [key for batch in batches for key, pad in zip(batch["key"], batch["is_padding"], strict=True) if not pad]
