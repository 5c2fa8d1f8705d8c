"""Encode, for latents: pixels to the posterior, as it is stored."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asymvae.faults import Fault
from asymvae.model.autoencoder import AsymmetricAutoencoderKL


class EncodePosterior:
    """Args:
    dtype: of what is stored.
    """

    def __init__(self, model: AsymmetricAutoencoderKL, dtype: Literal["float16", "bfloat16", "float32"]) -> None:
        self.model = model
        self.name = dtype
        self.dtype: torch.dtype = getattr(torch, dtype)

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor, list[tuple[Fault, Tensor]]]:
        """(N, 3, H, W) in [-1, 1] to (mean, logvar, failed): unscaled, (N, C, H/f, W/f), bfloat16 as the int16 of the
        same bits; and the faults, (N,) bool each."""
        posterior = self.model.encode(image).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        finite = torch.isfinite(mean).flatten(1).all(dim=1) & torch.isfinite(logvar).flatten(1).all(dim=1)
        # Before the cast, which would make infinities of them. The log variance is clamped, far below.
        beyond = mean.abs().amax(dim=(1, 2, 3)) > torch.finfo(self.dtype).max
        failed = [
            (Fault("latents_non_finite"), torch.logical_not(finite)),
            (Fault("latents_overflow", {"dtype": self.name}), beyond & finite),
        ]
        return self._stored(mean), self._stored(logvar), failed

    def _stored(self, values: Tensor) -> Tensor:
        cast = values.to(self.dtype).contiguous()
        return cast.view(torch.int16) if self.dtype == torch.bfloat16 else cast


def stored_array(values: NDArray[np.generic], dtype: str) -> NDArray[np.generic]:
    """What came back to the host, flat, in the type of the column: bfloat16's bits as uint16."""
    flat = values.reshape(-1)
    return flat.view(np.uint16) if dtype == "bfloat16" else flat
