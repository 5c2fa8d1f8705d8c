from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from asymvae.model.blocks import GroupNorm

# The more threads share the sums, the shorter they are: ATen's error is seen where there is one.
pytestmark = pytest.mark.usefixtures("one_thread")


def _input(offset: float) -> tuple[GroupNorm, Tensor]:
    torch.manual_seed(0)
    norm = GroupNorm(8, 32).requires_grad_(False)
    norm.weight.uniform_(0.5, 1.5)
    norm.bias.normal_()
    x = torch.randn(2, 32, 256, 256) * torch.rand(2, 32, 1, 1) + offset
    return norm, x.contiguous(memory_format=torch.channels_last)


def _off(out: Tensor, norm: GroupNorm, x: Tensor) -> float:
    exact = F.group_norm(x.double().contiguous(), 8, norm.weight.double(), norm.bias.double(), norm.eps)
    return ((out.double() - exact).abs().max() / exact.abs().max()).item()


@pytest.mark.parametrize(("offset", "ours", "atens"), [(0.0, 5e-7, 2e-6), (1.0, 5e-7, 5e-6), (50.0, 5e-6, 1e-3)])
def test_channels_last_float32_is_as_accurate_as_contiguous(offset: float, ours: float, atens: float) -> None:
    norm, x = _input(offset)
    out = norm(x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert _off(out, norm, x) < ours
    # what this guards against: if ATen's kernel has become accurate, ours can go
    assert _off(F.group_norm(x, 8, norm.weight, norm.bias, norm.eps), norm, x) > atens


def test_channels_last_gradients_are_those_of_the_contiguous_norm() -> None:
    norm, x = _input(1.0)
    norm.requires_grad_(True)
    small = x[:, :, :16, :24].contiguous(memory_format=torch.channels_last)
    plain, ours = small.clone().contiguous().requires_grad_(), small.clone().requires_grad_()
    target = torch.randn(small.shape)
    expected = torch.autograd.grad((norm(plain) * target).sum(), [plain, norm.weight, norm.bias])
    actual = torch.autograd.grad((norm(ours) * target).sum(), [ours, norm.weight, norm.bias])
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
