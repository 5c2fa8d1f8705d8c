"""Latent to image, with the known pixels blended in at every level."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import GroupNorm, MiddleBlock, UpBlock, activation
from .condition import ConditionEncoder
from .config import AutoencoderConfig


class Decoder(nn.Module):
    """(N, latent_channels, h, w) -> (N, out_channels, h * factor, w * factor).

    With ``image`` (N or 1, out_channels, H, W) and ``mask`` (N or 1, 1, H, W; 1 is the hole), both at the output's
    size, the features outside the hole are replaced by those of ``(1 - mask) * image`` before each up block
    and before the output layers.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        channels = config.up_block_out_channels[::-1]  # from the latent's size to the image's
        groups, act = config.norm_num_groups, activation(config.act_fn)
        # modules are made in diffusers' order: optimisers number parameters by it
        last = len(channels) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.up_blocks = nn.ModuleList(
            UpBlock(
                channels[max(i - 1, 0)],
                channels[i],
                layers=config.layers_per_up_block + 1,
                last=i == last,
                groups=groups,
                act=act,
            )
            for i in range(len(channels))
        )
        self.mid_block = MiddleBlock(channels[0], groups=groups, act=act)
        # (channels, pixels a cell) of what enters each up block, and of what leaves the last
        levels = [(channels[max(i - 1, 0)], 1 << (last - i)) for i in range(len(channels))]
        levels.append((channels[-1], 1))
        self.condition_encoder = ConditionEncoder(
            config.out_channels, first_channels=channels[-1], most_channels=channels[0], levels=levels
        )
        self.conv_norm_out = GroupNorm(groups, channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], config.out_channels, 3, padding=1)

    def forward(self, z: Tensor, image: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        if image is None or mask is None:
            for block in self.up_blocks:
                x = block(x)
        else:
            features = self.condition_encoder((1 - mask) * image)
            for block in self.up_blocks:
                x = block(_blend(x, features.pop(0), mask))
            x = _blend(x, features.pop(0), mask)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(x)))
        return out


def _blend(x: Tensor, known: Tensor, mask: Tensor) -> Tensor:
    if mask.shape[-2:] != x.shape[-2:]:
        mask = F.interpolate(mask, size=x.shape[-2:], mode="nearest")
    return x * mask + known * (1 - mask)
