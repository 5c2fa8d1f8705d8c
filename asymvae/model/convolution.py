"""Convolutions that may be carried out another way than torch's: the weights and their names stay, a form is added."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import fused_norm
from .norm import GroupNorm, Moments
from .winograd_forms import Rows, WinogradForm

Activation = Callable[[Tensor], Tensor]

# A norm's statistics are summed over pieces of so many numbers: each is read twice, the second time from the cache.
_PIECE = 2**21


class Conv(nn.Conv2d):
    """A convolution with, perhaps, a ``form`` that ``model.optimize()`` made of its weights; it has no state."""

    form: WinogradForm | None

    def __init__(self, taken: int, made: int, kernel: int, *, stride: int = 1, padding: int = 0) -> None:
        super().__init__(taken, made, kernel, stride=stride, padding=padding)
        self.register_module("form", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.form is not None and self.form.suits(x):
            out: Tensor = self.form(x, self.bias)
            return out
        return super().forward(x)


class Upsample(nn.Module):
    """Doubles the size: nearest, then a 3x3 convolution.

    Of nine pixels that the convolution sees four are different: as one transposed 4x4 convolution of stride 2
    (``fold``) it is 4/9 of the work, exactly the same sums but for their order. A ``form`` is of both steps, so it is
    this module's and not the convolution's, which sees the doubled map.
    """

    folded: Tensor | None
    form: WinogradForm | None

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv(channels, channels, 3, padding=1)
        self.register_buffer("folded", None, persistent=False)
        self.register_module("form", None)

    def fold(self) -> None:
        weight = self.conv.weight.detach()
        taps = torch.tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=torch.float64, device=weight.device)
        folded = torch.einsum("yk,xl,oikl->ioyx", taps, taps, weight.double()).to(weight.dtype)
        self.folded = folded.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor, *, halo: bool = False) -> Tensor:
        """``x``: (N, C, H, W) -> (N, C, 2 * H, 2 * W). ``halo``: ``x`` brings the rows above and below the map."""
        if self.form is not None and self.form.suits(x):
            out: Tensor = self.form(x, self.conv.bias, halo=halo)
        elif self.folded is not None:
            out = F.conv_transpose2d(x, self.folded, self.conv.bias, stride=2, padding=(3 if halo else 1, 1))
        elif halo:
            out = convolve_rows(self.conv, double(x)[:, :, 1:-1])  # a row of each neighbour's two
        else:
            out = self.conv(double(x))
        return out


def double(x: Tensor) -> Tensor:
    """Each pixel four times: (N, C, H, W) -> (N, C, 2 * H, 2 * W)."""
    if x.numel() * 4 >= 2**31:
        x = x.contiguous()  # CUDA's channels_last kernel counts in 32 bits (pytorch issue 141831)
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def convolve_rows(conv: Conv, rows: Tensor) -> Tensor:
    """``conv`` over rows that come with their neighbours (or zeros): only the sides are padded."""
    if conv.form is not None and conv.form.suits(rows):
        out: Tensor = conv.form(rows, conv.bias, halo=True)
        return out
    return F.conv2d(rows, conv.weight, conv.bias, stride=conv.stride, padding=(0, 1))


def convolve_normalised(
    conv: Conv,
    norm: GroupNorm,
    act: Activation,
    x: Tensor,
    residual: Tensor | None = None,
    rows: Rows | None = None,
) -> Tensor:
    """``conv(act(norm(x)))``, a 3x3 convolution, plus ``residual``: in one pass over the map where the convolution's
    form can. ``rows``: only those rows of it are made, and ``residual`` is of those rows; the norm is of the whole map.
    """
    form = conv.form
    if form is not None and form.suits(x):
        affine = _moments(norm, x).affine(norm)
        fused: Tensor = form(x, conv.bias, affine=affine, act=act, residual=residual, rows=rows)
        return fused
    if rows is not None:
        scale, shift = _moments(norm, x).affine(norm)
        seen = act(torch.addcmul(shift, x[:, :, max(rows[0] - 1, 0) : rows[1] + 1].to(scale.dtype), scale)).to(x.dtype)
        made = convolve_rows(conv, F.pad(seen, (0, 0, int(rows[0] == 0), int(rows[1] == x.shape[2]))))
        return made if residual is None else add(made, residual)
    out: Tensor = conv(norm(x, silu=True) if act is F.silu else act(norm(x)))
    return out if residual is None else add(out, residual)


def _moments(norm: GroupNorm, x: Tensor) -> Moments:
    moments = Moments(norm.num_groups)
    for piece in torch.split(x, max(1, _PIECE // (x.shape[0] * x.shape[1] * x.shape[3])), dim=2):
        moments.add(piece)
    return moments


def add(x: Tensor, other: Tensor) -> Tensor:
    """Their sum, in the place of ``x`` where nobody needs that any more."""
    return x + other if x.requires_grad or x.dtype != other.dtype else x.add_(other)


def resnet_on_cuda(
    first: tuple[GroupNorm, Conv], second: tuple[GroupNorm, Conv], shortcut: Conv | None, x: Tensor
) -> Tensor:
    """A resnet with SiLU by the kernels of ``fused_norm``: no convolution adds its own bias, which would be a pass."""
    (norm1, conv1), (norm2, conv2) = first, second
    hidden = F.conv2d(norm1(x, silu=True), conv1.weight, padding=1)
    hidden = norm2(hidden, silu=True, conv_bias=conv1.bias)
    hidden = F.conv2d(hidden, conv2.weight, padding=1)
    assert conv2.bias is not None
    bias = conv2.bias
    if shortcut is not None:
        assert shortcut.bias is not None
        x, bias = F.conv2d(x, shortcut.weight), bias + shortcut.bias
    return fused_norm.add_residual_bias(hidden, x, bias)
