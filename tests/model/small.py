"""Small configurations, each with a corner of the architecture, and weights that hide nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def _levels(down: tuple[int, ...], up: tuple[int, ...]) -> dict[str, Any]:
    return {
        "down_block_types": ("DownEncoderBlock2D",) * len(down),
        "down_block_out_channels": down,
        "up_block_types": ("UpDecoderBlock2D",) * len(up),
        "up_block_out_channels": up,
    }


# shaped as the published ones are: factor 8, a decoder wider and deeper than the encoder
SMALL: dict[str, Any] = _levels((8, 8, 16, 16), (16, 32, 64, 64)) | {
    "layers_per_down_block": 1,
    "layers_per_up_block": 2,
    "norm_num_groups": 8,
}

# factor 4, another activation, more latent channels, a deeper encoder
GELU: dict[str, Any] = _levels((8, 24, 32), (4, 8, 16)) | {
    "layers_per_down_block": 2,
    "layers_per_up_block": 1,
    "norm_num_groups": 4,
    "act_fn": "gelu",
    "latent_channels": 6,
}

# equal widths: two condition layers have the shape that one level asks for
TIED: dict[str, Any] = _levels((4, 8), (8, 8)) | {"norm_num_groups": 2}

CONFIGS = {"small": SMALL, "gelu": GELU, "tied": TIED}


def randomise(model: nn.Module, seed: int) -> None:
    """Norms and biases too: those that start at 1 and 0 would hide a swapped or a missing one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            if parameter.ndim == 1:
                parameter.copy_(0.2 * noise + ("norm" in name and name.endswith("weight")))
            else:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)


def picture(seed: int, batch: int, size: int, channels: int = 3) -> Tensor:
    """(batch, channels, size, size), in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, channels, size, size, generator=generator) * 2 - 1


def holes(seed: int, batch: int, size: int) -> Tensor:
    """(batch, 1, size, size) of 0 and 1: a box that no grid fits, and specks of one pixel."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(batch, 1, size, size, generator=generator) < 0.05).float()
    mask[:, :, size // 5 : size // 2 + 1, size // 3 : size - 3] = 1
    return mask
