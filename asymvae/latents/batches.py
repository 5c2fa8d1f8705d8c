"""Rows -> one batch of tensors: the posterior's samples, scaled."""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from asymvae.latents.handing import Batch, Handed, stacked
from asymvae.latents.order import Pick
from asymvae.latents.rows import Found, Held


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
        numbers = np.arange(self.batch_size)
        found = held.find(pick.places[numbers % len(pick.places)])
        shape = found[0].of.shape
        latents = stacked(self._latents(found), self.batch_size, math.prod(shape), self.dtype)
        batch: Batch = {
            "latents": latents.view(self.batch_size, *shape),
            "is_padding": torch.from_numpy(numbers >= pick.real),
        }
        for name in self.columns:
            cells = [place.of.columns[name][place.row] for place in found]
            is_text = isinstance(found[0].of.columns[name], list)
            batch[name] = cells if is_text else torch.from_numpy(np.array(cells))
        return batch if get_worker_info() is None else Handed(batch)

    def _latents(self, found: Sequence[Found]) -> Iterator[Tensor]:
        """(C * h * w,) float32, each in place of the last: (mean + std * eps) * scaling_factor, or of the mean alone.

        A row at a time: it stays in the core's cache, and can't hang on its neighbours, as it would where the end of a
        vector is rounded otherwise than its middle.
        """
        stored = np.empty_like(found[0].of.latents["mean"][0])
        values = torch.from_numpy(stored)
        if values.dtype == torch.uint16:
            values = values.view(torch.bfloat16)
        latent, std, noise = torch.empty(3, len(stored)).unbind()
        generator = torch.Generator()
        for place, seed in zip(found, self._seeds(found), strict=True):
            stored[:] = place.of.latents["mean"][place.row]
            latent.copy_(values)
            if "logvar" in self.latents:
                stored[:] = place.of.latents["logvar"][place.row]
                # exp(x / 2), as the power of two that torch computes fastest.
                std.copy_(values).mul_(0.5 / math.log(2)).exp2_()
                latent.addcmul_(std, noise.normal_(generator=generator.manual_seed(seed)))
            yield latent.mul_(self.scaling_factor)

    def _seeds(self, found: Sequence[Found]) -> list[int]:
        """Of each row's noise: from the epoch and the row's place in its part, never from who reads it when."""
        bases = np.array([_base(self.seed, self.epoch, place.of.part) for place in found], np.uint64)
        rows = np.array([place.of.part_row + place.row for place in found], np.uint64)
        mixed = bases + rows * np.uint64(0x9E3779B97F4A7C15)  # splitmix64: torch's generators heed the low half alone
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        seeds: list[int] = ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(1)).tolist()
        return seeds


@lru_cache(4096)
def _base(seed: int, epoch: int, part: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}\n{epoch}\n{part}".encode(), digest_size=8).digest(), sys.byteorder)
