from __future__ import annotations

import sys

import diffusers
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from asymvae.model import AsymmetricAutoencoderKL, DiagonalGaussian
from tests.model.small import CONFIGS, SMALL, holes, picture, randomise
from tests.peers import parity


@pytest.mark.parametrize("name", CONFIGS)
def test_every_part_equals_diffusers_within_float32_rounding(name: str) -> None:
    rows = parity.compare(CONFIGS[name], size=64, batch=2)
    assert len(rows) == 13
    for row in rows:
        assert row.largest > 0.1, row
        assert row.to_float32 <= 1e-5, row
        assert not row.to_float64 > 1e-5, row  # NaN where there is no float64


def test_a_large_area_is_accurate_in_either_memory_format() -> None:
    rows = parity.compare(CONFIGS["gelu"], size=256, batch=1)
    assert max(row.to_float64 for row in rows[:-1]) <= 1e-5
    assert max(row.to_float32 for row in rows) <= 1e-5


def test_the_table_prints(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["parity", "--config", "tied", "--size", "32"])
    threads = torch.get_num_threads()
    try:
        parity.main()
    finally:
        torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("tied, 1 of 32 px, diffusers 0.")
    assert len(lines) == 2 + 13


def test_odd_cells_see_the_corner_that_nearest_takes() -> None:
    """A speck of one pixel reaches the levels whose grid samples it, and no other: as in diffusers."""
    peer = diffusers.AsymmetricAutoencoderKL(**SMALL).eval()
    randomise(peer, 1)
    ours = AsymmetricAutoencoderKL(**SMALL).eval()
    ours.load_state_dict(peer.state_dict())
    latent, image = torch.randn(1, 4, 4, 4), picture(0, 1, 32)
    for row, column in ((0, 0), (8, 16), (7, 7), (4, 4), (31, 31)):
        mask = torch.zeros(1, 1, 32, 32)
        mask[..., row, column] = 1
        with torch.no_grad():
            theirs = peer.decode(latent, image=image, mask=mask).sample
            torch.testing.assert_close(ours.decode(latent, image=image, mask=mask).sample, theirs, atol=2e-5, rtol=0)


def test_gradients_equal_diffusers() -> None:
    peer = diffusers.AsymmetricAutoencoderKL(**SMALL)
    randomise(peer, 1)
    ours = AsymmetricAutoencoderKL(**SMALL)
    ours.load_state_dict(peer.state_dict())
    image, mask = picture(2, 1, 32).double(), holes(3, 1, 32).double()
    for model in (peer.double(), ours.double()):
        model(image, mask).sample.square().mean().backward()
    theirs = dict(peer.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_posteriors_are_the_same_to_the_bit(dtype: torch.dtype) -> None:
    moments = (torch.randn(3, 8, 4, 5, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    other = (torch.randn(3, 8, 4, 5, generator=torch.Generator().manual_seed(1))).to(dtype)
    ours, theirs = DiagonalGaussian(moments), DiagonalGaussianDistribution(moments)
    for name in ("mean", "logvar", "std", "var"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
    for generators in (
        lambda: torch.Generator().manual_seed(2),
        lambda: [torch.Generator().manual_seed(s) for s in (1, 2, 3)],
    ):
        assert torch.equal(ours.sample(generators()), theirs.sample(generators()))
    torch.manual_seed(3)
    drawn = ours.sample()
    torch.manual_seed(3)
    assert torch.equal(drawn, theirs.sample())
    assert torch.equal(ours.mode(), theirs.mode())
    assert torch.equal(ours.kl(), theirs.kl())
    assert torch.equal(ours.kl(DiagonalGaussian(other)), theirs.kl(DiagonalGaussianDistribution(other)))
    assert torch.equal(ours.nll(drawn), theirs.nll(drawn))
    assert torch.equal(ours.nll(drawn, dims=[2, 3]), theirs.nll(drawn, dims=[2, 3]))
