"""Rows -> one batch of tensors: the posterior's samples, scaled."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asymvae.latents.order import Pick
from asymvae.latents.rows import Found, Held, Slice

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

    def __call__(self, pick: Pick, held: Held) -> Batch:
        """``latents`` (B, C, h, w), ``is_padding`` (B,) bool, and the columns: a tensor of numbers, a list of texts.

        Padding repeats the rows of its own batch.
        """
        found, count = held.find(pick.places), len(pick.places)
        latents = self._latents(found)
        repeat = torch.arange(self.batch_size) % count
        latents[count:] = latents[repeat[count:]]
        batch: Batch = {
            "latents": latents.view(self.batch_size, *found[0][0].shape),
            "is_padding": torch.arange(self.batch_size) >= pick.real,
        }
        for name in self.columns:
            cells = [part.columns[name] for part, _, _ in found]
            if isinstance(cells[0], list):
                texts = _gather_texts(found, count, cells)
                batch[name] = [texts[number] for number in repeat.tolist()]
            else:
                batch[name] = torch.from_numpy(_gather(found, count, cells))[repeat]
        return batch

    def _latents(self, found: Sequence[Found]) -> Tensor:
        """(B, C * h * w): (mean + std * eps) * scaling_factor, or the mean alone; of repeats nothing yet."""
        length = found[0][0].latents["mean"].shape[1]
        latents, generator = torch.empty(self.batch_size, length, dtype=self.dtype), torch.Generator()
        # Row by row, in float32: what a row takes stays in the cache.
        latent, std, noise = (torch.empty(length) for _ in range(3))
        for part, numbers, rows in found:
            mean, logvar = part.latents["mean"], part.latents.get("logvar")
            seeds = self._seeds(part)[rows].tolist()
            for number, row, seed in zip(numbers.tolist(), rows.tolist(), seeds, strict=True):
                latent.copy_(mean[row])
                if logvar is not None:
                    noise.normal_(generator=generator.manual_seed(seed))
                    latent.addcmul_(std.copy_(logvar[row]).mul_(0.5).exp_(), noise)
                latents[number].copy_(latent.mul_(self.scaling_factor))
        return latents

    def _seeds(self, part: Slice) -> NDArray[np.uint64]:
        """Of each row's noise: from the epoch and the row's place in its part, never from who reads it when."""
        content = f"{self.seed}\n{self.epoch}\n{part.part}".encode()
        base = np.frombuffer(hashlib.blake2b(content, digest_size=8).digest(), np.uint64)
        rows = np.arange(part.part_row, part.part_row + part.rows, dtype=np.uint64)
        mixed = base + rows * np.uint64(0x9E3779B97F4A7C15)  # splitmix64: torch's generators heed the low half alone
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        seeds: NDArray[np.uint64] = (mixed ^ (mixed >> np.uint64(31))) >> np.uint64(1)
        return seeds


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
