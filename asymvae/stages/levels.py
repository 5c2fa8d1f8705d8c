"""The decoder's output as an image's 8-bit levels."""

from __future__ import annotations

import torch
from torch import Tensor


def levels(decoded: Tensor) -> Tensor:
    """(N, 3, H, W) on [-1, 1] to (N, H, W, 3) uint8. What isn't a number is 0, mid-grey.

    Clamped, then rounded, as diffusers' image processor does (denormalize, then (x * 255).round()).
    """
    pixels = decoded.float().nan_to_num().add(1).mul(127.5).clamp(0, 255).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous()
