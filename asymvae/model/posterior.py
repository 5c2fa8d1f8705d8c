"""What the encoder believes of the latent: a Gaussian with a diagonal covariance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator]


class DiagonalGaussian:
    """``moments``: (N, 2C, h, w), the mean over the log variance; the latter is clamped to [-30, 20].

    ``mean``, ``logvar``, ``std`` and ``var`` are (N, C, h, w), unscaled (no ``scaling_factor``).
    """

    def __init__(self, moments: Tensor) -> None:
        self.parameters = moments
        self.mean, logvar = torch.chunk(moments, 2, dim=1)
        self.logvar = torch.clamp(logvar, -30.0, 20.0)

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.logvar)

    @property
    def var(self) -> Tensor:
        return torch.exp(self.logvar)

    def sample(self, generator: Generators | None = None) -> Tensor:
        """One latent a sample, (N, C, h, w). A list holds one generator a sample.

        A CPU generator serves any device: the noise is drawn on the CPU, in the moments' dtype, and moved.
        """
        return self.mean + self.std * _noise(self.mean, generator)

    def mode(self) -> Tensor:
        return self.mean

    def kl(self, other: DiagonalGaussian | None = None) -> Tensor:
        """(N,): divergence from ``other``, by default from the standard normal, in nats."""
        if other is None:
            return 0.5 * torch.sum(self.mean.pow(2) + self.var - 1.0 - self.logvar, dim=(1, 2, 3))
        distance = (self.mean - other.mean).pow(2) / other.var
        return 0.5 * torch.sum(distance + self.var / other.var - 1.0 - self.logvar + other.logvar, dim=(1, 2, 3))

    def nll(self, sample: Tensor, dims: Sequence[int] = (1, 2, 3)) -> Tensor:
        """Negative log likelihood of ``sample`` (N, C, h, w), summed over ``dims``, in nats."""
        distance = (sample - self.mean).pow(2) / self.var
        return 0.5 * torch.sum(math.log(2.0 * math.pi) + self.logvar + distance, dim=tuple(dims))


def _noise(like: Tensor, generator: Generators | None) -> Tensor:
    if isinstance(generator, torch.Generator) or generator is None:
        device = _noise_device(like, generator)
        return torch.randn(like.shape, generator=generator, device=device, dtype=like.dtype).to(like.device)
    if len(generator) != like.shape[0]:
        raise ValueError(
            f"{len(generator)} generators for a batch of {like.shape[0]}; give one a sample, or one for all"
        )
    return torch.cat([_noise(row, one) for row, one in zip(like.unsqueeze(1), generator, strict=True)])


def _noise_device(like: Tensor, generator: torch.Generator | None) -> torch.device:
    if generator is None or generator.device.type == like.device.type:
        return like.device
    if generator.device.type == "cpu":
        return generator.device
    raise ValueError(
        f"the generator is on {generator.device} and the latent on {like.device}; use a generator on the CPU"
    )
