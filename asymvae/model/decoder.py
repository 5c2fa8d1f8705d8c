"""Latent to image, with the known pixels blended in at every level."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import MiddleBlock, UpBlock, activation
from .condition import Condition, ConditionEncoder
from .config import AutoencoderConfig
from .convolution import Conv, convolve_normalised
from .norm import GroupNorm


class Decoder(nn.Module):
    """(N, latent_channels, h, w) -> (N, out_channels, h * factor, w * factor).

    With ``image`` (M, out_channels, H, W) and ``mask`` (M, 1, H, W; 1 is the hole), both at the output's size, the
    features outside the hole are replaced by those of ``(1 - mask) * image`` before each up block and before the
    output layers. M is N or 1, or any number where ``condition_index``, (N,) int64, says which row serves each latent.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        channels = config.up_block_out_channels[::-1]  # from the latent's size to the image's
        groups, act = config.norm_num_groups, activation(config.act_fn)
        # modules are made in diffusers' order: optimisers number parameters by it
        last = len(channels) - 1
        self.conv_in = Conv(config.latent_channels, channels[0], 3, padding=1)
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
        self.conv_out = Conv(channels[-1], config.out_channels, 3, padding=1)

    def forward(
        self,
        z: Tensor,
        image: Tensor | None = None,
        mask: Tensor | None = None,
        condition_index: Tensor | None = None,
    ) -> Tensor:
        condition = None
        if image is not None and mask is not None:
            condition = Condition(self.condition_encoder, image, mask, condition_index)
        x = self.mid_block(self.conv_in(z))
        block: Any
        if condition is None:
            for block in self.up_blocks:
                x = block(x)
        else:
            x = condition.blend(0, x)
            for level, block in enumerate(self.up_blocks, start=1):
                # What a block makes outside the hole is replaced at once: where it costs nothing to know the hole's
                # rows, only they are made.
                rows = condition.hole_rows(level, x)
                x, rows = (block(x), None) if rows is None else block.forward_rows(x, rows)
                x = condition.blend(level, x, rows)
        # the last activation is SiLU whatever act_fn says, as in diffusers
        return convolve_normalised(self.conv_out, self.conv_norm_out, F.silu, x)
