"""The Triton kernels of ``asymvae.model.fused_norm``, each by itself, beside float64 on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from asymvae.model import fused_norm
from tests.model.fused_norm_interpreted import CASES, EPS, Case, channels_last, error, exact, inputs
from tests.peers.gpu_checks import Check

# Of 1 + the value's size; half precision rounds the result once.
BOUND = {"float32": 5e-6, "float16": 5e-4, "bfloat16": 2.5e-3}
HALF = ("24 channels a group, several tiles", "a convolution's bias", "channels that fill no tile")


def kernels(device: str, dtype: str, *, quick: bool) -> Iterator[Check]:
    """Every case of the tests in float32, three of them in half precision; ``quick``: two."""
    names = list(CASES) if dtype == "float32" else list(HALF)
    for name in names[:2] if quick else names:
        case = CASES[name]._replace(dtype=dtype)
        yield from _one_by_one(name, case, device)
        yield from _together(name, case, device)
    yield from _residual(device, dtype)


def _one_by_one(name: str, case: Case, device: str) -> Iterator[Check]:
    """Launched as ``fused_norm`` does; each is given what the one before made."""
    from asymvae.model import fused_norm_kernels as triton_kernels

    x, weight, bias, conv_bias = _on(device, inputs(case))
    batch, channels, height, width = x.shape
    pixels = height * width
    cut = fused_norm.plan(pixels, channels)
    blocks: dict[str, Any] = {"BLOCK_ROWS": cut.block_rows, "BLOCK_CHANNELS": cut.block_channels, "num_warps": 4}
    block_width = 1 << (channels // case.groups - 1).bit_length()
    means, squares = torch.empty((2, batch, cut.chunks, channels), device=device).unbind()
    affine = torch.empty((3, batch, channels), device=device)

    triton_kernels.moments[(batch * cut.programs,)](x, means, squares, pixels, channels, cut.rows, **blocks)
    flat = x.cpu().double().flatten(2).transpose(1, 2)  # (N, P, C)
    pieces = torch.split(flat, cut.rows, dim=1)
    expected = torch.stack([piece.mean(dim=1) for piece in pieces], dim=1)
    spread = torch.stack([(piece - piece.mean(dim=1, keepdim=True)).square().sum(dim=1) for piece in pieces], dim=1)
    found = max(error(means.cpu(), expected), error(squares.cpu(), spread))
    yield Check.within(f"kernel moments: {name}", case.dtype, found, BOUND["float32"])

    triton_kernels.merge[(batch * case.groups,)](
        means, squares, weight, bias, weight if conv_bias is None else conv_bias, *affine.unbind(),
        pixels, channels, cut.rows, case.groups, EPS,
        HAS_CONV_BIAS=conv_bias is not None, BLOCK_CHUNKS=max(1, 1024 // block_width), BLOCK_WIDTH=block_width,
        num_warps=4,
    )  # fmt: skip
    centre, scale, shift = (row.cpu().double()[:, :, None, None] for row in affine)
    plain = (x.cpu().double() - centre) * scale + shift
    x_, weight_, bias_, conv_bias_ = _on("cpu", (x, weight, bias, conv_bias))
    normed = exact(x_, case.groups, weight_, bias_, False, conv_bias_)
    yield Check.within(f"kernel merge: {name}", case.dtype, error(plain, normed), BOUND["float32"])

    out = torch.empty_like(x)
    triton_kernels.apply[(batch * cut.programs,)](
        x, out, *affine.unbind(), pixels, channels, cut.rows, SILU=case.silu, **blocks
    )
    applied = F.silu(plain) if case.silu else plain
    yield Check.within(f"kernel apply: {name}", case.dtype, error(out.cpu(), applied), BOUND[case.dtype])


def _together(name: str, case: Case, device: str) -> Iterator[Check]:
    x, weight, bias, conv_bias = _on(device, inputs(case))

    def norm(rows: Tensor) -> Tensor:
        return fused_norm.group_norm(rows, case.groups, weight, bias, EPS, silu=case.silu, conv_bias=conv_bias)

    out = norm(x)
    x_, weight_, bias_, conv_bias_ = _on("cpu", (x, weight, bias, conv_bias))
    expected = exact(x_, case.groups, weight_, bias_, case.silu, conv_bias_)
    yield Check.within(f"fused norm: {name}", case.dtype, error(out.cpu(), expected), BOUND[case.dtype])
    alone = torch.cat([norm(channels_last(row[None])) for row in x])
    same = torch.equal(out, norm(x)) and torch.equal(out, alone)
    yield Check(f"fused norm, again and sample by sample: {name}", case.dtype, same)


def _residual(device: str, dtype: str) -> Iterator[Check]:
    generator = torch.Generator().manual_seed(1)
    for shape in ((2, 24, 31, 33), (1, 6, 7, 5)):
        x, other = (channels_last(torch.randn(shape, generator=generator).to(getattr(torch, dtype))) for _ in range(2))
        bias = torch.randn(shape[1], generator=generator)
        expected = x.double() + other.double() + bias.double()[:, None, None]
        out = fused_norm.add_residual_bias(x.to(device), other.to(device), bias.to(device))
        yield Check.within(f"kernel add: {shape}", dtype, error(out.cpu(), expected), BOUND[dtype])


def _on(device: str, tensors: tuple[Tensor | None, ...]) -> list[Any]:
    return [tensor if tensor is None else tensor.to(device) for tensor in tensors]
