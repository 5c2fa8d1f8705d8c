"""Winograd's way against the plain convolution in float64, in every form, at every edge."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asymvae.model.convolution import Conv, Upsample, convolve_normalised, double
from asymvae.model.norm import GroupNorm
from asymvae.model.winograd_forms import WinogradConv, WinogradDown, WinogradForm, WinogradUp

# of the tile's side 4: its multiples, one more, one less; a strip of one tile row; several maps a group
SIZES = [(1, 16, 16), (1, 17, 31), (3, 12, 20), (2, 6, 530), (20, 8, 4)]


def _direct(form: type[WinogradForm], x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if form is WinogradUp:
        x = double(x)
    return F.conv2d(x, weight, bias, stride=2 if form is WinogradDown else 1, padding=1)


def _case(form: type[WinogradForm], batch: int, height: int, width: int) -> tuple[WinogradForm, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    taken, made = 24, 16
    side = 4 if form is WinogradDown else 3
    if form is WinogradDown:
        height, width = 2 * height, 2 * width
    weight = torch.randn(made, taken, side, side) / (taken * side * side) ** 0.5
    x = torch.randn(batch, taken, height, width).to(memory_format=torch.channels_last)
    return form(weight), x, weight, torch.randn(made)


def _off(out: Tensor, expected: Tensor) -> float:
    return float((out.double() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("form", [WinogradConv, WinogradDown, WinogradUp])
@torch.no_grad()
def test_equals_the_direct_convolution(form: type[WinogradForm], size: tuple[int, int, int]) -> None:
    layer, x, weight, bias = _case(form, *size)
    assert layer.suits(x)
    expected = _direct(form, x.double(), weight.double(), bias.double())
    out = layer(x, bias)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert _off(out, expected) < 4e-6
    assert _off(layer(x, None), expected - bias.double()[:, None, None]) < 4e-6


@pytest.mark.parametrize("form", [WinogradConv, WinogradDown, WinogradUp])
@torch.no_grad()
def test_rows_that_come_with_their_neighbours(form: type[WinogradForm]) -> None:
    layer, x, weight, bias = _case(form, 2, 17, 21)
    whole = _direct(form, x.double(), weight.double(), bias.double())
    per_row = whole.shape[2] / x.shape[2]
    top, bottom = 4, 24 if form is WinogradDown else 13
    rows = x[:, :, top - 1 : bottom + 1].contiguous(memory_format=torch.channels_last)
    expected = whole[:, :, round(top * per_row) : round(bottom * per_row)]
    assert _off(layer(rows, bias, halo=True), expected) < 4e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("act", [F.silu, F.gelu])
@torch.no_grad()
def test_norm_activation_and_residual_in_one_pass(act: object, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm, conv = GroupNorm(4, 24), Conv(24, 24, 3, padding=1)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    norm, conv = norm.to(dtype), conv.to(dtype)
    x = (torch.randn(2, 24, 30, 33) + 3).to(dtype).to(memory_format=torch.channels_last)
    residual = torch.randn(2, 24, 30, 33).to(dtype).to(memory_format=torch.channels_last)
    double_norm, double_conv = GroupNorm(4, 24).double(), Conv(24, 24, 3, padding=1).double()
    double_norm.load_state_dict(norm.state_dict())
    double_conv.load_state_dict(conv.state_dict())
    expected = convolve_normalised(double_conv, double_norm, act, x.double(), residual.double())  # type: ignore[arg-type]
    before = x.clone()
    conv.form = WinogradConv(conv.weight)
    out = convolve_normalised(conv, norm, act, x, residual)  # type: ignore[arg-type]
    assert out.dtype == dtype
    assert torch.equal(x, before)
    assert _off(out, expected) < (4e-6 if dtype == torch.float32 else 4e-3)  # bfloat16: rounded once, at the end


@torch.no_grad()
def test_a_map_that_is_not_meant_for_it_takes_the_plain_way() -> None:
    form = WinogradConv(torch.randn(8, 8, 3, 3))
    last = torch.randn(1, 8, 64, 64).to(memory_format=torch.channels_last)
    assert form.suits(last)
    assert not form.suits(last.contiguous())
    assert not form.suits(last.double())
    assert not form.suits(last[:, :, :8, :8])  # four tiles: reading the kernels would take longer
    with torch.enable_grad():
        assert not form.suits(last)  # there is no backward pass
    with torch.autocast("cpu", torch.bfloat16):
        assert not form.suits(last)


@pytest.mark.parametrize("halo", [False, True])
@torch.no_grad()
def test_a_folded_upsampling_is_exact(halo: bool) -> None:
    torch.manual_seed(0)
    upsample = Upsample(6).double()
    x = torch.randn(2, 6, 9, 7, dtype=torch.float64)
    expected = upsample(x)
    upsample.fold()
    out = upsample(F.pad(x, (0, 0, 1, 1)), halo=True) if halo else upsample(x)
    assert _off(out, expected) < 1e-14
