"""Measure: what the decoder kept of the known region, at work resolution, on floats, before any compositing.

The known region is where the model mask is 0 and no padding lies. The paper (arXiv 2306.04632) reports a
"preservation error" over it without its formula; ``mse_known`` is ours: the mean squared error over known pixels and
channels, on [-1, 1], of the decoder's output clamped to that range.
"""

from __future__ import annotations

import math
from functools import reduce

import torch
from torch import Tensor

from asymvae.batch import Batch, normalised

_WINDOW, _SIGMA = 11, 1.5  # SSIM's own window: Wang et al. 2004, section III-B
_RANGE = 2.0


class Measure:
    def __call__(self, batch: Batch) -> Batch:
        """Add the metrics of :func:`measure_known`."""
        assert batch.decoded is not None
        known = batch.valid.float() * (1 - batch.mask.float())
        # Not batch.image: bfloat16 alone would be an error of 1e-6, and the decoder's own is near 1e-5.
        batch.metrics |= measure_known(batch.decoded, normalised(batch.pixels), known)
        return batch


def measure_known(decoded: Tensor, image: Tensor, known: Tensor) -> dict[str, Tensor]:
    """``mae_known``, ``mse_known``, ``psnr_known`` (dB), ``ssim_known``: (N,) float32, NaN where undefined.

    PSNR is undefined where the error is 0; all of them where nothing is known, SSIM where no window is.

    Args:
        decoded: (N, 3, H, W), the decoder's output before it is clamped.
        image: (N, 3, H, W) float32 in [-1, 1].
        known: (N, 1, H, W) float32 of {0, 1}.
    """
    decoded = decoded.float().clamp(-1, 1)
    count = known.sum(dim=(1, 2, 3)) * image.shape[1]
    error = (decoded - image) * known
    mse = _mean(error.square().sum(dim=(1, 2, 3)), count)
    psnr = 10 * torch.log10(_RANGE**2 / mse)
    return {
        "mae_known": _mean(error.abs().sum(dim=(1, 2, 3)), count),
        "mse_known": mse,
        "psnr_known": torch.where(torch.isfinite(psnr), psnr, torch.nan),
        "ssim_known": ssim_known(decoded, image, known),
    }


def _mean(total: Tensor, count: Tensor) -> Tensor:
    return torch.where(count > 0, total / count.clamp_min(1), torch.nan)


def ssim_known(a: Tensor, b: Tensor, known: Tensor) -> Tensor:
    """Mean of the SSIM map over windows that are wholly known.

    Args:
        a, b: (N, C, H, W) float32 in [-1, 1].
        known: (N, 1, H, W) of {0, 1}.

    Returns:
        (N,) float32, NaN where no window is wholly known. Gaussian window 11x11, sigma 1.5, population covariance,
        as scikit-image's ``structural_similarity(gaussian_weights=True, use_sample_covariance=False)``.
    """
    if min(a.shape[-2:]) < _WINDOW:
        return torch.full((len(a),), torch.nan, device=a.device)
    # What is unknown is zeroed, so that no window, counted or not, overflows on it.
    a, b = a * known, b * known
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a, variance_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * _RANGE) ** 2, (0.03 * _RANGE) ** 2
    ssim = ((2 * mean_a * mean_b + c1) * (2 * covariance + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2)
    )
    whole = _least(known)
    return _mean((ssim.mean(dim=1, keepdim=True) * whole).sum(dim=(1, 2, 3)), whole.sum(dim=(1, 2, 3)))


_GAUSSIAN = [math.exp(-((k - _WINDOW // 2) ** 2) / (2 * _SIGMA**2)) for k in range(_WINDOW)]


def _blur(x: Tensor) -> Tensor:
    """The Gaussian window wherever it fits: (N, C, H, W) to (N, C, H - 10, W - 10).

    A convolution says the same, and on a CPU takes 25 times as long on planes of one channel (12 of 512x512: 163 ms
    against 6 on two cores).
    """
    for dim in (-1, -2):
        first, *others = _shifted(x, dim)
        x = first * (_GAUSSIAN[0] / sum(_GAUSSIAN))
        for shifted, weight in zip(others, _GAUSSIAN[1:], strict=True):
            x.add_(shifted, alpha=weight / sum(_GAUSSIAN))
    return x


def _least(x: Tensor) -> Tensor:
    """The smallest value in the window, wherever it fits."""
    for dim in (-1, -2):
        x = reduce(torch.minimum, _shifted(x, dim))
    return x


def _shifted(x: Tensor, dim: int) -> list[Tensor]:
    """Views of ``x``: for each place in the window the elements that stand there."""
    return [x.narrow(dim, k, x.shape[dim] - _WINDOW + 1) for k in range(_WINDOW)]
