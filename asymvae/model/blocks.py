"""What encoder and decoder are made of. Module names are those of diffusers' state dicts.

All tensors are (N, C, H, W), in either memory format.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Callable[[Tensor], Tensor]

_ACTIVATIONS: dict[str, Activation] = {
    "silu": F.silu,
    "swish": F.silu,
    "mish": F.mish,
    "gelu": F.gelu,
    "relu": F.relu,
}


def activation(name: str) -> Activation:
    """The function that ``act_fn`` of a configuration names. Raises ValueError for an unknown one."""
    try:
        return _ACTIVATIONS[name.lower()]
    except KeyError:
        raise ValueError(f"act_fn is {name!r}; known are {sorted(_ACTIVATIONS)}") from None


class GroupNorm(nn.GroupNorm):
    """Group normalisation with eps 1e-6, accurate in both memory formats."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__(groups, channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.dtype == torch.float32 and not x.is_contiguous():
            return self._two_passes(x)
        return super().forward(x)

    def _two_passes(self, x: Tensor) -> Tensor:
        # ATen's CPU kernel for channels_last sums x and x*x naively in float32: its error grows with the area
        # (at 512x512 2e-5 of the output, 6e-2 where the mean is 100 times the deviation; here 6e-8 and 1e-6).
        # Sums over rows are short enough for float32; across rows they are added in float64. It takes 2.3 times
        # ATen's time, a quarter of what going through a contiguous copy takes.
        batch, channels, height, width = x.shape
        grouped = (batch, height, self.num_groups, channels // self.num_groups)
        pixels = x.permute(0, 2, 3, 1)
        mean = pixels.sum(dim=2).double().reshape(grouped).mean(dim=(1, 3)) / width  # (N, groups)
        centred = pixels - self._per_channel(mean).to(x.dtype).view(batch, 1, 1, channels)
        squares = centred.square() if centred.requires_grad else centred.mul_(centred)  # in place: a fifth faster
        var = squares.sum(dim=2).double().reshape(grouped).mean(dim=(1, 3)) / width
        scale = self._per_channel(torch.rsqrt(var + self.eps)) * self.weight.double()
        shift = self.bias.double() - self._per_channel(mean) * scale
        return torch.addcmul(shift.to(x.dtype)[:, :, None, None], x, scale.to(x.dtype)[:, :, None, None])

    def _per_channel(self, by_group: Tensor) -> Tensor:
        return by_group.repeat_interleave(self.num_channels // self.num_groups, dim=1)  # (N, C)


class ResnetBlock(nn.Module):
    """norm, act, 3x3, norm, act, 3x3, and the input (through a 1x1 where the channels differ) added."""

    def __init__(self, in_channels: int, out_channels: int, *, groups: int, act: Activation) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(groups, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(self.act(self.norm1(x)))
        hidden = self.conv2(self.act(self.norm2(hidden)))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        out: Tensor = x + hidden
        return out


class Attention(nn.Module):
    """Self-attention over all positions with one head as wide as the channels, the input added."""

    def __init__(self, channels: int, *, groups: int) -> None:
        super().__init__()
        self.group_norm = GroupNorm(groups, channels)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        hidden = self.group_norm(x).flatten(2).transpose(1, 2)[:, None]  # (N, 1, H*W, C)
        hidden = F.scaled_dot_product_attention(self.to_q(hidden), self.to_k(hidden), self.to_v(hidden))
        hidden = self.to_out[0](hidden)[:, 0].transpose(1, 2)
        out: Tensor = x + hidden.reshape(batch, channels, height, width)
        return out


class MiddleBlock(nn.Module):
    """Resnet, attention, resnet; the size stays."""

    def __init__(self, channels: int, *, groups: int, act: Activation) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([Attention(channels, groups=groups)])
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups=groups, act=act) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.attentions[0](self.resnets[0](x))
        out: Tensor = self.resnets[1](x)
        return out


class Downsample(nn.Module):
    """Halves the size with a 3x3 convolution of stride 2; the padding is at the bottom and right only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class Upsample(nn.Module):
    """Doubles the size: nearest, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(double(x))
        return out


def double(x: Tensor) -> Tensor:
    """Each pixel four times: (N, C, H, W) -> (N, C, 2 * H, 2 * W)."""
    if x.numel() * 4 >= 2**31:
        x = x.contiguous()  # CUDA's channels_last kernel counts in 32 bits (pytorch issue 141831)
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class DownBlock(nn.Module):
    """``layers`` resnets, then half the size unless it is the last block."""

    def __init__(
        self, in_channels: int, out_channels: int, *, layers: int, last: bool, groups: int, act: Activation
    ) -> None:
        super().__init__()
        self.resnets = _resnets(in_channels, out_channels, layers, groups, act)
        self.downsamplers = None if last else nn.ModuleList([Downsample(out_channels)])

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.downsamplers is None else self.downsamplers[0](x)


class UpBlock(nn.Module):
    """``layers`` resnets, then double the size unless it is the last block."""

    def __init__(
        self, in_channels: int, out_channels: int, *, layers: int, last: bool, groups: int, act: Activation
    ) -> None:
        super().__init__()
        self.resnets = _resnets(in_channels, out_channels, layers, groups, act)
        self.upsamplers = None if last else nn.ModuleList([Upsample(out_channels)])

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.upsamplers is None else self.upsamplers[0](x)


def _resnets(in_channels: int, out_channels: int, layers: int, groups: int, act: Activation) -> nn.ModuleList:
    return nn.ModuleList(
        ResnetBlock(in_channels if layer == 0 else out_channels, out_channels, groups=groups, act=act)
        for layer in range(layers)
    )
