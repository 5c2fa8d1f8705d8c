from __future__ import annotations

import math

import pytest
import torch

from asymvae.model import DiagonalGaussian


@pytest.fixture
def posterior() -> DiagonalGaussian:
    return DiagonalGaussian(torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(0)))


def test_logvar_is_clamped() -> None:
    posterior = DiagonalGaussian(torch.tensor([0.0, 0.0, -1e3, 1e3]).reshape(1, 4, 1, 1))
    assert posterior.logvar.flatten().tolist() == [-30.0, 20.0]
    assert posterior.std.isfinite().all()
    torch.testing.assert_close(posterior.var, posterior.std**2)


def test_the_mode_is_the_mean_and_a_draw_follows_its_generator(posterior: DiagonalGaussian) -> None:
    first, second = (posterior.sample(torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, posterior.sample(torch.Generator().manual_seed(2)))
    assert torch.equal(posterior.mode(), posterior.mean)


def test_a_generator_a_sample_makes_the_draw_independent_of_the_batch(posterior: DiagonalGaussian) -> None:
    together = posterior.sample([torch.Generator().manual_seed(seed) for seed in (7, 8, 9)])
    alone = DiagonalGaussian(posterior.parameters[1:2]).sample(torch.Generator().manual_seed(8))
    assert torch.equal(together[1:2], alone)
    with pytest.raises(ValueError, match="2 generators for a batch of 3"):
        posterior.sample([torch.Generator(), torch.Generator()])


def test_a_cpu_generator_serves_another_device() -> None:
    posterior = DiagonalGaussian(torch.zeros(1, 8, 4, 4, device="meta"))
    assert posterior.sample(torch.Generator().manual_seed(0)).device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_draw_keeps_half_precision(posterior: DiagonalGaussian, dtype: torch.dtype) -> None:
    half = DiagonalGaussian(posterior.parameters.to(dtype))
    assert half.sample(torch.Generator().manual_seed(0)).dtype == dtype


def test_kl_is_zero_for_the_standard_normal_and_for_oneself(posterior: DiagonalGaussian) -> None:
    assert DiagonalGaussian(torch.zeros(2, 8, 4, 4)).kl().tolist() == [0.0, 0.0]
    torch.testing.assert_close(posterior.kl(posterior), torch.zeros(3), atol=1e-5, rtol=0)
    assert (posterior.kl() > 0).all()


def test_nll_of_the_mean_of_a_unit_gaussian() -> None:
    posterior = DiagonalGaussian(torch.zeros(2, 8, 4, 4))
    nll = posterior.nll(torch.zeros(2, 4, 4, 4))
    torch.testing.assert_close(nll, torch.full((2,), 0.5 * 64 * math.log(2 * math.pi)))
