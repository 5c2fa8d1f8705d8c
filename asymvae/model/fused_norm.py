"""GroupNorm with SiLU for channels_last maps on CUDA, and the sum of a residual block: Triton kernels.

Bytes, of a map of M bytes: ``group_norm`` reads it twice and writes it once, 3 M (and writes the moments of chunks
between: in bfloat16 1.6% of M at 512x512x128, 6% for small maps); ``add_residual_bias`` reads two maps and writes one,
3 M. A convolution's bias costs nothing in either, so the convolution before can do without its own pass, 2 M.

The statistics are float32, as exact as two passes over the map, and the same bits from run to run: running means a
lane, merged by Chan's formula (Chan, Golub, LeVeque 1979), no atomics, no tuning by timing; block sizes follow from a
sample's size alone, so that a sample's result doesn't depend on its batch either.

Compiled for sm_80, sm_90 and sm_100 and run in Triton's interpreter; not measured on a GPU.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

_HAS_TRITON = find_spec("triton") is not None  # torch's CUDA builds bring it, its CPU builds don't
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_TILE = 2048  # numbers a program holds at once: 16 a thread of 4 warps
_PROGRAMS = 1024  # a sample at least, where it is large: a GPU has about 150 multiprocessors, each room for several
_LEAST_TILES = 4  # in a chunk: its moments are 8 bytes a channel, the chunk is 4 * 16 * 2 bytes a channel or more


class Plan(NamedTuple):
    """How a sample's (pixels, channels) is cut: ``rows`` pixels a chunk, read ``block_rows`` at a time."""

    block_rows: int
    block_channels: int
    rows: int
    chunks: int  # of pixels
    programs: int  # chunks times tiles of channels


def plan(pixels: int, channels: int) -> Plan:
    """The cut of one sample; both counts are 1 or more. Depends on nothing else."""
    even = min(channels & -channels, 128)  # the largest power of two that divides the channels
    block_channels = even if even >= 32 else min(_power_of_two(channels), 128)
    block_rows = _TILE // block_channels
    tiles = _ceil(channels, block_channels)
    rows = block_rows * max(_LEAST_TILES, _ceil(_ceil(pixels, block_rows) * tiles, _PROGRAMS))
    chunks = _ceil(pixels, rows)
    return Plan(block_rows, block_channels, rows, chunks, chunks * tiles)


def available(x: Tensor) -> bool:
    """Whether these kernels can take ``x`` now: (N, C, H, W) channels_last, of one of the three dtypes, on a CUDA
    device of compute capability 8.0 or more, with triton there and gradients off (there is no backward pass)."""
    return takes(x) and has_kernels(x.device, x.dtype)


def takes(x: Tensor) -> bool:
    """What ``available`` asks of one map, where ``has_kernels`` said yes to its device and dtype."""
    return (
        x.is_cuda and not torch.is_grad_enabled() and x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    )


def has_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there are kernels for maps of ``dtype`` on ``device``."""
    return (
        _HAS_TRITON
        and device.type == "cuda"
        and dtype in _DTYPES
        and torch.cuda.get_device_properties(device).major >= 8
    )


def group_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, *, silu: bool, conv_bias: Tensor | None = None
) -> Tensor:
    """GroupNorm of ``x + conv_bias``, then SiLU if ``silu``: a new map, of x's dtype and memory format.

    ``x`` is (N, C, H, W), float32, float16 or bfloat16, channels_last; ``weight``, ``bias`` and ``conv_bias`` are
    (C,) of any float dtype. Raises ValueError for anything else. ``available`` says where it runs.
    """
    out: Tensor = _group_norm(x, groups, weight, bias, eps, silu, conv_bias)
    return out


def add_residual_bias(x: Tensor, residual: Tensor, bias: Tensor) -> Tensor:
    """``x + residual + bias``, summed in float32 and rounded once: a new map, of x's dtype and memory format.

    ``x`` as in ``group_norm``, ``residual`` of its shape, dtype and memory format, ``bias`` (C,) of any float dtype.
    Raises ValueError for anything else.
    """
    out: Tensor = _add_residual_bias(x, residual, bias)
    return out


@torch.library.custom_op("asymvae::group_norm", mutates_args=())
def _group_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool, conv_bias: Tensor | None
) -> Tensor:
    _check(x, weight, bias, *([] if conv_bias is None else [conv_bias]))
    batch, channels, height, width = x.shape
    if groups < 1 or channels % groups:
        raise ValueError(f"{channels} channels can't be split into {groups} groups")
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    from asymvae.model import fused_norm_kernels as kernels

    pixels = height * width
    cut = plan(pixels, channels)
    blocks = {"BLOCK_ROWS": cut.block_rows, "BLOCK_CHANNELS": cut.block_channels, "num_warps": 4}
    block_width = _power_of_two(channels // groups)
    partial = torch.empty((2, batch, cut.chunks, channels), dtype=torch.float32, device=x.device)
    affine = torch.empty((3, batch, channels), dtype=torch.float32, device=x.device)
    with torch.cuda.device(x.get_device()):  # Triton launches on the current one; -1, a CPU, is left alone
        kernels.moments[(batch * cut.programs,)](x, partial[0], partial[1], pixels, channels, cut.rows, **blocks)
        kernels.merge[(batch * groups,)](
            partial[0], partial[1], weight, bias, weight if conv_bias is None else conv_bias, *affine.unbind(),
            pixels, channels, cut.rows, groups, eps,
            HAS_CONV_BIAS=conv_bias is not None, BLOCK_CHUNKS=max(1, 1024 // block_width), BLOCK_WIDTH=block_width,
            num_warps=4,
        )  # fmt: skip
        kernels.apply[(batch * cut.programs,)](
            x, out, *affine.unbind(), pixels, channels, cut.rows, SILU=silu, **blocks
        )
    return out


@torch.library.custom_op("asymvae::add_residual_bias", mutates_args=())
def _add_residual_bias(x: Tensor, residual: Tensor, bias: Tensor) -> Tensor:
    _check(x, bias)
    if (residual.shape, residual.dtype) != (x.shape, x.dtype) or not _is_channels_last(residual):
        raise ValueError(f"residual is {residual.dtype} {tuple(residual.shape)}; it must be as x, {x.dtype} {x.shape}")
    out = torch.empty_like(x)
    if x.numel() == 0:
        return out
    from asymvae.model import fused_norm_kernels as kernels

    batch, channels, height, width = x.shape
    cut = plan(height * width, channels)
    with torch.cuda.device(x.get_device()):
        kernels.add[(batch * cut.programs,)](
            x, residual, bias, out, height * width, channels, cut.rows,
            BLOCK_ROWS=cut.block_rows, BLOCK_CHANNELS=cut.block_channels, num_warps=4,
        )  # fmt: skip
    return out


@_group_norm.register_fake
def _(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool, conv_bias: Tensor | None) -> Tensor:
    return torch.empty_like(x)


@_add_residual_bias.register_fake
def _(x: Tensor, residual: Tensor, bias: Tensor) -> Tensor:
    return torch.empty_like(x)


def _check(x: Tensor, *by_channel: Tensor) -> None:
    if x.ndim != 4 or x.dtype not in _DTYPES or not _is_channels_last(x):
        raise ValueError(f"a map must be channels_last (N, C, H, W), float32 or shorter; this is {x.dtype} {x.shape}")
    for vector in by_channel:
        if vector.shape != (x.shape[1],) or not vector.is_floating_point() or vector.device != x.device:
            raise ValueError(f"{tuple(vector.shape)} {vector.dtype} on {vector.device} for {x.shape[1]} channels")
        if not vector.is_contiguous():
            raise ValueError("weights by channel must be contiguous")


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def _ceil(number: int, divisor: int) -> int:
    return -(-number // divisor)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
