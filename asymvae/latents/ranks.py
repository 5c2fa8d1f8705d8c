"""Which of how many processes, and of how many workers, this one is."""

from __future__ import annotations

import os

import torch.distributed
from torch.utils.data import get_worker_info


def rank_and_world_size(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """What is given; else torch.distributed's, if it runs; else RANK and WORLD_SIZE, as torchrun sets them; else 0, 1.

    Raises:
        ValueError: only one is given, or the rank is none of the world's.
    """
    if (rank is None) != (world_size is None):
        raise ValueError("give both rank and world_size, or neither")
    if rank is None or world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        else:
            rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is none of the {world_size} from 0 to {world_size - 1}")
    return rank, world_size


def worker_and_workers() -> tuple[int, int]:
    """Of the DataLoader worker that asks; (0, 1) outside of one."""
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)
