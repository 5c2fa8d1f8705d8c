"""Group normalisation that is accurate in both memory formats, and its statistics taken piece by piece."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import fused_norm


class GroupNorm(nn.GroupNorm):
    """Group normalisation with eps 1e-6, then SiLU where ``silu`` is set."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__(groups, channels, eps=1e-6)
        self.fused = False  # whether to use the CUDA kernels of fused_norm; model.optimize() decides

    def forward(self, x: Tensor, *, silu: bool = False, conv_bias: Tensor | None = None) -> Tensor:
        """``x``: (N, C, H, W). ``conv_bias``, (C,), is added to it first: that of a convolution that was run without,
        for which it would be a pass of its own on a GPU."""
        if self.fused and fused_norm.takes(x):
            return fused_norm.group_norm(
                x, self.num_groups, self.weight, self.bias, self.eps, silu=silu, conv_bias=conv_bias
            )
        if conv_bias is not None:
            x = x + conv_bias[:, None, None]
        if x.device.type == "cpu" and x.dtype == torch.float32 and not x.is_contiguous():
            out = self._two_passes(x)
        else:
            out = super().forward(x)
        return F.silu(out, inplace=not out.requires_grad) if silu else out

    def _two_passes(self, x: Tensor) -> Tensor:
        # ATen's CPU kernel for channels_last sums x and x*x naively in float32: its error grows with the area
        # (at 512x512 2e-5 of the output, 6e-2 where the mean is 100 times the deviation; here 6e-8 and 1e-6).
        # Sums over rows are short enough for float32; across rows they are added in float64. It takes 2.3 times
        # ATen's time, a quarter of what going through a contiguous copy takes.
        batch, channels, height, width = x.shape
        grouped = (batch, height, self.num_groups, channels // self.num_groups)
        pixels = x.permute(0, 2, 3, 1)
        mean = pixels.sum(dim=2).double().reshape(grouped).mean(dim=(1, 3)) / width  # (N, groups)
        centred = pixels - per_channel(mean, channels).to(x.dtype).view(batch, 1, 1, channels)
        squares = centred.square() if centred.requires_grad else centred.mul_(centred)  # in place: a fifth faster
        var = squares.sum(dim=2).double().reshape(grouped).mean(dim=(1, 3)) / width
        scale = per_channel(torch.rsqrt(var + self.eps), channels) * self.weight.double()
        shift = self.bias.double() - per_channel(mean, channels) * scale
        return torch.addcmul(shift.to(x.dtype)[:, :, None, None], x, scale.to(x.dtype)[:, :, None, None])


class Moments:
    """Mean and variance of each group over all strips, in float64, as exact as a norm of the whole map in two passes.

    A strip is centred on its own mean before its squares are summed; strips are merged by the formula of Chan, Golub
    and LeVeque (1979). Rows are summed in float32 (float64 for float64), as :class:`GroupNorm` does.
    """

    def __init__(self, groups: int) -> None:
        self.groups = groups
        self._count = 0
        self._mean: Tensor | None = None  # (N, groups)
        self._squares: Tensor | None = None  # (N, groups): summed squares of the distance from the mean

    def add(self, strip: Tensor) -> None:
        for chunk in chunks(strip):
            self._add(chunk)

    def _add(self, strip: Tensor) -> None:
        batch, channels, height, width = strip.shape
        grouped = (batch, height, self.groups, channels // self.groups)
        pixels = strip.to(accurate(strip.dtype)).permute(0, 2, 3, 1)
        count = height * width * grouped[-1]
        mean = pixels.sum(dim=2).double().reshape(grouped).sum(dim=(1, 3)) / count
        centred = pixels - per_channel(mean, channels).to(pixels.dtype).view(batch, 1, 1, channels)
        squares = centred.mul_(centred).sum(dim=2).double().reshape(grouped).sum(dim=(1, 3))
        if self._mean is None or self._squares is None:
            self._count, self._mean, self._squares = count, mean, squares
            return
        total = self._count + count
        step = mean - self._mean
        self._squares = self._squares + squares + step.square() * (self._count * count / total)
        self._mean = self._mean + step * (count / total)
        self._count = total

    def affine(self, norm: GroupNorm) -> tuple[Tensor, Tensor]:
        """Scale and shift, (N, C, 1, 1), that normalise and apply the norm's weight and bias: float32 or float64."""
        if self._mean is None or self._squares is None:
            raise ValueError("no strip came in")
        deviation = torch.rsqrt(self._squares / self._count + norm.eps)
        scale = per_channel(deviation, norm.num_channels) * norm.weight.double()
        shift = norm.bias.double() - per_channel(self._mean, norm.num_channels) * scale
        dtype = accurate(norm.weight.dtype)
        return scale.to(dtype)[:, :, None, None], shift.to(dtype)[:, :, None, None]


def chunks(strip: Tensor) -> tuple[Tensor, ...]:
    """Of half precision a quarter at a time, so that what is made of it in float32 is no larger than the strip."""
    parts = 1 if strip.dtype == accurate(strip.dtype) else 4
    return torch.split(strip, -(-strip.shape[2] // parts), dim=2)


def accurate(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype == torch.float64 else torch.float32


def per_channel(by_group: Tensor, channels: int) -> Tensor:
    return by_group.repeat_interleave(channels // by_group.shape[1], dim=1)  # (N, C)
