"""What encoder and decoder are made of. Module names are those of diffusers' state dicts.

All tensors are (N, C, H, W), in either memory format.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from . import fused_norm
from .convolution import Activation, Conv, Upsample, convolve_normalised, resnet_on_cuda
from .norm import GroupNorm
from .winograd_forms import Rows

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


class ResnetBlock(nn.Module):
    """norm, act, 3x3, norm, act, 3x3, and the input (through a 1x1 where the channels differ) added."""

    def __init__(self, in_channels: int, out_channels: int, *, groups: int, act: Activation) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, in_channels)
        self.conv1 = Conv(in_channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(groups, out_channels)
        self.conv2 = Conv(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = Conv(in_channels, out_channels, 1) if in_channels != out_channels else None
        self.act = act

    def forward(self, x: Tensor, rows: Rows | None = None) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W), or only the ``rows`` of that."""
        if rows is None and self.norm1.fused and self.act is F.silu and fused_norm.takes(x):
            return resnet_on_cuda((self.norm1, self.conv1), (self.norm2, self.conv2), self.conv_shortcut, x)
        hidden = convolve_normalised(self.conv1, self.norm1, self.act, x)
        if rows is not None:
            x = x[:, :, slice(*rows)]
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        return convolve_normalised(self.conv2, self.norm2, self.act, hidden, residual=x, rows=rows)


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
        self.conv = Conv(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


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

    def forward_rows(self, x: Tensor, wanted: Rows) -> tuple[Tensor, Rows]:
        """Only the ``wanted`` rows of what the block makes, or a few more, and which: exactly those of the whole.

        Norms need all of what they see: only what follows the last of them is saved, a convolution, and the larger
        one of the upsampling.
        """
        *others, last = self.resnets
        for resnet in others:
            x = resnet(x)
        if self.upsamplers is None:
            return last(x, wanted), wanted
        height = x.shape[2]
        first, end = wanted[0] // 2, -(-wanted[1] // 2)
        x = last(x, (max(first - 1, 0), min(end + 1, height)))
        x = F.pad(x, (0, 0, int(first == 0), int(end == height)))  # each with its neighbours, zeros beyond the border
        return self.upsamplers[0](x, halo=True), (2 * first, 2 * end)


def _resnets(in_channels: int, out_channels: int, layers: int, groups: int, act: Activation) -> nn.ModuleList:
    return nn.ModuleList(
        ResnetBlock(in_channels if layer == 0 else out_channels, out_channels, groups=groups, act=act)
        for layer in range(layers)
    )
