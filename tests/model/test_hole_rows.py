"""Of what the decoder replaces outside the hole only the hole's rows are made: the result is that of whole maps."""

from __future__ import annotations

import copy

import pytest
import torch

from asymvae.model import AsymmetricAutoencoderKL
from asymvae.model.condition import Condition
from tests.model.live_bytes import LiveBytes
from tests.model.small import CONFIGS, SMALL, picture, randomise

# rows of 64 with a hole, one pair a sample
HOLES = {
    "top": [(0, 3), (0, 9)],
    "bottom": [(61, 64), (40, 64)],
    "middle": [(17, 18), (23, 41)],
    "none": [(0, 0), (0, 0)],
    "one of two": [(0, 0), (30, 33)],
    "all": [(0, 64), (5, 6)],
}


@pytest.mark.parametrize("holes", HOLES)
@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_rows_of_the_hole_give_what_whole_maps_give(name: str, holes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = AsymmetricAutoencoderKL(**CONFIGS[name]).eval()
    randomise(model, 1)
    factor = model.config.decoder_factor
    z = torch.randn(2, model.config.latent_channels, 64 // factor, 64 // factor, dtype=torch.float64)
    image, mask = picture(2, 2, 64).double(), torch.zeros(2, 1, 64, 64)
    for row, (top, bottom) in enumerate(HOLES[holes]):
        mask[row, :, top:bottom, 5:30] = 0.5 if row else 1.0
    for optimized in (False, True):
        fast = copy.deepcopy(model).double()
        if optimized:
            fast.optimize()
        out = fast.decode(z, image=image, mask=mask).sample
        single = fast.decode(z[:1], image=image[:1], mask=mask[:1]).sample
        shared = fast.decode(z, image=image[:1], mask=mask[:1]).sample
        with monkeypatch.context() as whole:
            whole.setattr(Condition, "hole_rows", lambda *_: None)
            expected = fast.decode(z, image=image, mask=mask).sample
            expected_shared = fast.decode(z, image=image[:1], mask=mask[:1]).sample
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-11)
        torch.testing.assert_close(single, expected[:1], rtol=0, atol=1e-11)
        torch.testing.assert_close(shared, expected_shared, rtol=0, atol=1e-11)


def test_a_small_hole_takes_less_memory() -> None:
    model = AsymmetricAutoencoderKL(**SMALL).eval().requires_grad_(False)
    z, image = torch.randn(1, 4, 16, 16), picture(2, 1, 128)
    peaks = []
    for bottom in (8, 128):
        mask = torch.zeros(1, 1, 128, 128)
        mask[:, :, :bottom] = 1
        with LiveBytes() as live:
            model.decode(z, image=image, mask=mask)
        peaks.append(live.peak)
    assert peaks[0] < peaks[1]
