"""The best linear autoencoder of pixel blocks: where training starts, and what its result is measured against."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Self

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from asymvae.storage.filesystem import read_bytes, replace

FILE: Final = "block_transform.safetensors"


class BlockTransform:
    """Principal components of ``factor`` x ``factor`` x 3 pixels in [-1, 1]: of all linear maps from a block to
    ``k`` numbers and back, the one of least squared error on the pictures that it was fitted to.

    components  (k, 3 * factor * factor) float32, orthonormal rows, the one of most variance first
    mean        (3 * factor * factor,), of blocks
    scale       (k,), the standard deviation of each coefficient
    """

    def __init__(self, components: Tensor, mean: Tensor, scale: Tensor) -> None:
        self.components, self.mean, self.scale = components, mean, scale

    @property
    def factor(self) -> int:
        return math.isqrt(self.mean.numel() // 3)

    @classmethod
    def fit(cls, pictures: Iterable[NDArray[np.uint8]], *, components: int = 4, factor: int = 8) -> Self:
        """``pictures``: (N, H, W, 3) uint8 each, H and W multiples of ``factor``."""
        size = 3 * factor * factor
        count, total, squares = 0, np.zeros(size), np.zeros((size, size))
        for picture in pictures:
            pixels = torch.from_numpy(picture).permute(0, 3, 1, 2).double() / 127.5 - 1
            blocks = F.pixel_unshuffle(pixels, factor).permute(0, 2, 3, 1).reshape(-1, size).numpy()
            count += len(blocks)
            total += blocks.sum(0)
            squares += blocks.T @ blocks
        mean = total / count
        variances, vectors = np.linalg.eigh(squares / count - np.outer(mean, mean))
        best = vectors[:, : -components - 1 : -1].T
        # an eigenvector's sign is the library's whim: the largest entry is made positive
        best = best * np.sign(np.take_along_axis(best, np.abs(best).argmax(1)[:, None], 1))
        scale = np.sqrt(variances[: -components - 1 : -1])
        return cls(*(torch.from_numpy(np.ascontiguousarray(part)).float() for part in (best, mean, scale)))

    @classmethod
    def load(cls, file: str | Path) -> Self:
        """Of a file or fsspec URL. Raises FileNotFoundError, SafetensorError, or TypeError for other tensors."""
        return cls(**safetensors.torch.load(read_bytes(str(file))))

    def tensors(self) -> dict[str, Tensor]:
        return {"components": self.components, "mean": self.mean, "scale": self.scale}

    def save(self, file: str | Path) -> None:
        replace(str(file), safetensors.torch.save(self.tensors()))

    def encode(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] -> (N, k, H / factor, W / factor), of unit variance on what it was fitted to."""
        components, mean, scale = (part.to(image) for part in (self.components, self.mean, self.scale))
        blocks = F.pixel_unshuffle(image, self.factor) - mean[:, None, None]
        return F.conv2d(blocks, (components / scale[:, None])[:, :, None, None])

    def decode(self, latent: Tensor) -> Tensor:
        """(N, k, h, w) -> (N, 3, h * factor, w * factor)."""
        components, mean, scale = (part.to(latent) for part in (self.components, self.mean, self.scale))
        blocks = F.conv2d(latent, (components * scale[:, None]).T[:, :, None, None])
        return F.pixel_shuffle(blocks + mean[:, None, None], self.factor)
