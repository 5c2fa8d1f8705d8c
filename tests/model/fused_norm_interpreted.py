"""Runs the kernels of fused_norm on CPU tensors and prints what came out as JSON: ``python -m`` this, alone in its
process, since TRITON_INTERPRET=1 must be there before triton is imported and holds for all that is imported after."""

from __future__ import annotations

import json
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from asymvae.model import fused_norm

EPS = 1e-6


class Case(NamedTuple):
    shape: tuple[int, int, int, int]
    groups: int
    mean: float = 0.0  # in deviations
    dtype: str = "float32"
    silu: bool = True
    conv_bias: bool = False


CASES = {
    "one pixel, one channel a group": Case((1, 4, 1, 1), 4),
    "one channel, odd size": Case((1, 1, 5, 7), 1),
    "no SiLU": Case((1, 12, 9, 11), 3, silu=False),
    "channels that fill no tile": Case((2, 6, 33, 37), 6),
    "24 channels a group, several tiles": Case((1, 768, 9, 11), 32),
    "6 channels a group, mean 100": Case((2, 192, 25, 19), 32, mean=100.0),
    "one group, more chunks than one merge holds": Case((1, 24, 91, 92), 1, mean=100.0),
    "a convolution's bias": Case((2, 48, 20, 21), 2, conv_bias=True),
    "a convolution's bias, mean -100": Case((3, 32, 24, 23), 4, mean=-100.0, conv_bias=True),
    "float16": Case((2, 96, 14, 15), 32, dtype="float16", conv_bias=True),
    "float16, mean 100": Case((1, 36, 31, 17), 3, mean=100.0, dtype="float16"),
}


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def inputs(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    channels = case.shape[1]
    x = torch.randn(case.shape, generator=generator) + case.mean
    weight, bias, conv_bias = torch.randn((3, channels), generator=generator).unbind()
    return channels_last(x.to(getattr(torch, case.dtype))), weight, bias, conv_bias if case.conv_bias else None


def exact(x: Tensor, groups: int, weight: Tensor, bias: Tensor, silu: bool, conv_bias: Tensor | None) -> Tensor:
    x = x.double() if conv_bias is None else x.double() + conv_bias.double()[:, None, None]
    grouped = x.unflatten(1, (groups, -1)).flatten(2)
    deviation = (grouped.var(dim=2, correction=0, keepdim=True) + EPS).sqrt()
    normed = ((grouped - grouped.mean(dim=2, keepdim=True)) / deviation).view(x.shape)
    out = normed * weight.double()[:, None, None] + bias.double()[:, None, None]
    return F.silu(out) if silu else out


def error(out: Tensor, expected: Tensor) -> float:
    return float(((out.double() - expected).abs() / (1 + expected.abs())).max())


def run_case(case: Case) -> dict[str, object]:
    x, weight, bias, conv_bias = inputs(case)
    out = fused_norm.group_norm(x, case.groups, weight, bias, EPS, silu=case.silu, conv_bias=conv_bias)
    return {
        "error": error(out, exact(x, case.groups, weight, bias, case.silu, conv_bias)),
        "like_x": out.dtype == x.dtype and out.stride() == x.stride(),
        "again": torch.equal(out, fused_norm.group_norm(x, case.groups, weight, bias, EPS, silu=case.silu,
                                                        conv_bias=conv_bias)),
    }  # fmt: skip


def alone_and_in_a_batch() -> bool:
    x, weight, bias, _ = inputs(Case((3, 24, 21, 20), 4))
    together = fused_norm.group_norm(x, 4, weight, bias, EPS, silu=True)
    alone = [fused_norm.group_norm(channels_last(one[None]), 4, weight, bias, EPS, silu=True) for one in x]
    return torch.equal(together, torch.cat(alone))


def constant_map() -> float:
    _, weight, bias, _ = inputs(Case((1, 8, 1, 1), 2))
    x = channels_last(torch.full((1, 8, 30, 30), 7.3))
    return error(fused_norm.group_norm(x, 2, weight, bias, EPS, silu=False), bias[None, :, None, None].double())


def nan_reaches() -> list[list[bool]]:
    """Which (sample, group) is NaN, of 2 and 2, where a NaN is in sample 1, group 0."""
    x, weight, bias, _ = inputs(Case((2, 8, 6, 5), 2))
    x[1, 3, 2, 2] = float("nan")
    out = fused_norm.group_norm(x, 2, weight, bias, EPS, silu=True)
    return [[bool(out[n, 4 * g : 4 * g + 4].isnan().all()) for g in range(2)] for n in range(2)]


def residual(dtype: torch.dtype, shape: tuple[int, int, int, int]) -> float:
    generator = torch.Generator().manual_seed(1)
    x, other = (channels_last(torch.randn(shape, generator=generator).to(dtype)) for _ in range(2))
    bias = torch.randn(shape[1], generator=generator)
    expected = x.double() + other.double() + bias.double()[:, None, None]
    return error(fused_norm.add_residual_bias(x, other, bias), expected)


def empty_batch() -> list[int]:
    x, weight, bias, _ = inputs(Case((0, 8, 6, 5), 2))
    out = fused_norm.add_residual_bias(fused_norm.group_norm(x, 2, weight, bias, EPS, silu=True), x, bias)
    return list(out.shape)


def compiled() -> bool:
    """Whether a graph without breaks gives what eager gives, strides included."""
    x, weight, bias, conv_bias = inputs(Case((2, 12, 9, 7), 3, conv_bias=True))

    def block(x: Tensor) -> Tensor:
        if fused_norm.available(x):
            return x
        out = fused_norm.group_norm(x, 3, weight, bias, EPS, silu=True, conv_bias=conv_bias)
        return fused_norm.add_residual_bias(out, x, bias)

    with torch.no_grad():
        out = torch.compile(block, backend="aot_eager", fullgraph=True)(x)
        return torch.equal(out, block(x)) and out.stride() == x.stride()


def main() -> None:
    x, weight, bias, conv_bias = inputs(Case((2, 12, 9, 7), 3, conv_bias=True))
    torch.library.opcheck(torch.ops.asymvae.group_norm.default, (x, 3, weight, bias, EPS, True, conv_bias))
    torch.library.opcheck(torch.ops.asymvae.add_residual_bias.default, (x, x, bias))
    found = {
        "cases": {name: run_case(case) for name, case in CASES.items()},
        "alone_and_in_a_batch": alone_and_in_a_batch(),
        "constant_map": constant_map(),
        "nan_reaches": nan_reaches(),
        "residual_float32": residual(torch.float32, (2, 24, 31, 33)),
        "residual_float16": residual(torch.float16, (1, 6, 7, 5)),
        "empty_batch": empty_batch(),
        "compiled": compiled(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
