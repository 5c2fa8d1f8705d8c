"""Image to the moments of its latent."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import DownBlock, MiddleBlock, activation
from .config import AutoencoderConfig
from .convolution import Conv, convolve_normalised
from .norm import GroupNorm


class Encoder(nn.Module):
    """(N, in_channels, H, W) -> (N, 2 * latent_channels, H / factor, W / factor): mean and log variance."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        channels = config.down_block_out_channels
        groups, act = config.norm_num_groups, activation(config.act_fn)
        self.conv_in = Conv(config.in_channels, channels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            DownBlock(
                channels[max(i - 1, 0)],
                channels[i],
                layers=config.layers_per_down_block,
                last=i == len(channels) - 1,
                groups=groups,
                act=act,
            )
            for i in range(len(channels))
        )
        self.mid_block = MiddleBlock(channels[-1], groups=groups, act=act)
        self.conv_norm_out = GroupNorm(groups, channels[-1])
        self.conv_out = Conv(channels[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        # the last activation is SiLU whatever act_fn says, as in diffusers
        return convolve_normalised(self.conv_out, self.conv_norm_out, F.silu, self.mid_block(x))
