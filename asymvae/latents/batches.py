"""Rows -> one batch of tensors: the posterior's samples, scaled."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from asymvae.latents.order import Pick
from asymvae.latents.rows import Found, Held

Batch = dict[str, Any]


@dataclass(frozen=True, slots=True)
class BatchMaker:
    """What becomes of rows. ``dtype``: of the batch's latents."""

    batch_size: int
    latents: Sequence[str]  # of the columns mean and logvar
    columns: Sequence[str]
    scaling_factor: float
    dtype: torch.dtype
    seed: int
    epoch: int
    _buffers: dict[tuple[str, int, torch.dtype], Tensor] = field(default_factory=dict)

    def __call__(self, pick: Pick, held: Held) -> Batch:
        """``latents`` (B, C, h, w), ``is_padding`` (B,) bool, and the columns: a tensor of numbers, a list of texts.

        Padding repeats the rows of its own batch.
        """
        found, count = held.find(pick.places), len(pick.places)
        latents = self._latents(found, count)
        numbers = torch.arange(self.batch_size)
        repeat = numbers % count
        batch: Batch = {
            "latents": latents.view(self.batch_size, *found[0][0].shape),
            "is_padding": numbers >= pick.real,
        }
        for name in self.columns:
            cells = [part.columns[name] for part, _, _ in found]
            if isinstance(cells[0], list):
                texts = _gather_texts(found, count, cells)
                batch[name] = [texts[number] for number in repeat.tolist()]
            else:
                batch[name] = torch.from_numpy(_gather(found, count, cells))[repeat]
        return batch

    def _latents(self, found: Sequence[Found], count: int) -> Tensor:
        """(B, C * h * w): (mean + std * eps) * scaling_factor, or the mean alone; from row ``count`` on, repeats."""
        length = found[0][0].latents["mean"].shape[1]
        out = _empty(self.batch_size, length, self.dtype)
        # Computed in float32, in the place of the result where that is float32.
        latents = out if self.dtype == torch.float32 else self._buffer("latents", length, torch.float32)
        latents[:count].copy_(self._gathered("mean", found, count))
        if "logvar" in self.latents:
            # exp(x / 2), as the power of two that torch computes fastest. Row by row, since the end of a vector may be
            # rounded otherwise than its middle, and a row mustn't hang on its neighbours.
            std = self._buffer("std", length, torch.float32)[:count]
            std.copy_(self._gathered("logvar", found, count)).mul_(0.5 / math.log(2))
            noise, generator = torch.empty(length), torch.Generator()
            for mean, scale, seed in zip(latents[:count], std, self._seeds(found, count), strict=True):
                noise.normal_(generator=generator.manual_seed(seed))
                mean.addcmul_(scale.exp2_(), noise)
        latents[:count].mul_(self.scaling_factor)
        for first in range(count, self.batch_size, count):
            latents[first : first + count] = latents[: min(count, self.batch_size - first)]
        return out if out is latents else out.copy_(latents)

    def _gathered(self, name: str, found: Sequence[Found], count: int) -> Tensor:
        """(count, C * h * w) as stored, in a buffer that the next call overwrites."""
        first = found[0][0].latents[name]
        buffer = self._buffer("stored", first.shape[1], first.dtype)[:count]
        for part, numbers, rows in found:
            for number, row in zip(numbers.tolist(), rows.tolist(), strict=True):
                buffer[number] = part.latents[name][row]
        return buffer

    def _buffer(self, use: str, length: int, dtype: torch.dtype) -> Tensor:
        """(B, length), the same one each time: memory that is there already costs no page faults."""
        key = (use, length, dtype)
        if key not in self._buffers:
            self._buffers[key] = torch.empty(self.batch_size, length, dtype=dtype)
        return self._buffers[key]

    def _seeds(self, found: Sequence[Found], count: int) -> list[int]:
        """Of each row's noise: from the epoch and the row's place in its part, never from who reads it when."""
        bases, rows = np.empty(count, np.uint64), np.empty(count, np.uint64)
        for part, numbers, wanted in found:
            bases[numbers], rows[numbers] = _base(self.seed, self.epoch, part.part), wanted + part.part_row
        mixed = bases + rows * np.uint64(0x9E3779B97F4A7C15)  # splitmix64: torch's generators heed the low half alone
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        seeds: list[int] = ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(1)).tolist()
        return seeds


@lru_cache(4096)
def _base(seed: int, epoch: int, part: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}\n{epoch}\n{part}".encode(), digest_size=8).digest(), sys.byteorder)


def _empty(rows: int, length: int, dtype: torch.dtype) -> Tensor:
    """(rows, length); in a DataLoader worker it lies in shared memory, or the loader would copy it there."""
    if get_worker_info() is None:
        return torch.empty(rows, length, dtype=dtype)
    storage = torch.UntypedStorage._new_shared(rows * length * dtype.itemsize)  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=dtype).set_(storage).view(rows, length)


def _gather(found: Sequence[Found], count: int, cells: Sequence[Any]) -> NDArray[Any]:
    """(count, ...): of the arrays of each slice, the rows that were found in it."""
    out = np.empty((count, *cells[0].shape[1:]), cells[0].dtype)
    for (_, numbers, rows), of_slice in zip(found, cells, strict=True):
        out[numbers] = of_slice[rows]
    return out


def _gather_texts(found: Sequence[Found], count: int, cells: Sequence[Any]) -> list[str | None]:
    texts: list[str | None] = [None] * count
    for (_, numbers, rows), of_slice in zip(found, cells, strict=True):
        for number, row in zip(numbers.tolist(), rows.tolist(), strict=True):
            texts[number] = of_slice[row]
    return texts
