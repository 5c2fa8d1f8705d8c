"""Inpainters that run out of memory, by torch's own error, where a chosen condition holds."""

from __future__ import annotations

import torch
from torch import Tensor

from asymvae.batch import Batch
from asymvae.inpaint.harmonic import HarmonicFill
from asymvae.model.autoencoder import AsymmetricAutoencoderKL


def out_of_memory() -> torch.OutOfMemoryError:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.1 GiB")


class HungryAbove(HarmonicFill):
    """Above ``batch`` rows; and for ``key`` always, whatever the batch."""

    def __init__(self, batch: int, key: str = "") -> None:
        super().__init__()
        self.batch, self.key = batch, key

    def fill(self, batch: Batch, vae: AsymmetricAutoencoderKL) -> Tensor:
        if len(batch.image) > self.batch or any(item.key == self.key for item in batch.items):
            raise out_of_memory()
        return super().fill(batch, vae)


class HungryWhole(HarmonicFill):
    """Unless the model runs in strips."""

    def fill(self, batch: Batch, vae: AsymmetricAutoencoderKL) -> Tensor:
        if not vae.use_tiling:
            raise out_of_memory()
        return super().fill(batch, vae)
