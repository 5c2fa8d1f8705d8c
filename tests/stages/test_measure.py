"""The metrics against what they are defined by, and SSIM against scikit-image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from asymvae.batch import Batch
from asymvae.stages.measure import Measure, ssim_known


def batch(image: torch.Tensor, decoded: torch.Tensor, mask: torch.Tensor) -> Batch:
    """``image`` is made of 8-bit levels, and so is what ``decoded`` was made from it."""
    pixels = image.add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
    return Batch([], pixels, image, mask, torch.ones_like(mask), decoded=decoded)


def test_errors_count_known_pixels_alone_and_are_on_minus_one_to_one() -> None:
    image = torch.full((1, 3, 32, 32), -1.0)
    decoded = torch.full((1, 3, 32, 32), -0.5)
    mask = torch.zeros(1, 1, 32, 32)
    mask[..., :16] = 1
    decoded[..., :16] = 9.0
    metrics = Measure()(batch(image, decoded, mask)).metrics
    assert metrics["mae_known"].item() == pytest.approx(0.5)
    assert metrics["mse_known"].item() == pytest.approx(0.25)
    assert metrics["psnr_known"].item() == pytest.approx(10 * np.log10(4 / 0.25))


def test_what_is_undefined_is_nan() -> None:
    image = torch.randint(0, 256, (2, 3, 32, 32)).div(127.5).sub(1)
    mask = torch.stack([torch.zeros(1, 32, 32), torch.ones(1, 32, 32)])
    metrics = Measure()(batch(image, image.clone(), mask)).metrics
    assert torch.isnan(metrics["psnr_known"]).tolist() == [True, True]  # no error; nothing known
    assert metrics["mse_known"][0].item() == 0
    assert torch.isnan(metrics["mse_known"][1])
    assert metrics["ssim_known"][0].item() == pytest.approx(1)
    assert torch.isnan(metrics["ssim_known"][1])


def test_padding_is_not_known() -> None:
    image, decoded = torch.full((1, 3, 16, 16), -1.0), torch.full((1, 3, 16, 16), -1.0)
    decoded[..., 12:] = 1
    made = batch(image, decoded, torch.zeros(1, 1, 16, 16))
    made.valid[..., 12:] = 0
    assert Measure()(made).metrics["mse_known"].item() == 0


def test_ssim_equals_scikit_images_over_windows_that_are_wholly_known() -> None:
    rng = np.random.default_rng(0)
    a = rng.uniform(-1, 1, (3, 48, 40)).astype(np.float32)
    b = (a + rng.normal(0, 0.2, a.shape)).astype(np.float32)
    known = np.ones((48, 40), np.float32)
    known[20:26, 10:14] = 0
    maps = structural_similarity(
        a, b, channel_axis=0, data_range=2.0, gaussian_weights=True, use_sample_covariance=False, full=True
    )[1].mean(axis=0)
    # scikit-image's map has a value for every pixel; ours one for every window inside the image.
    windows = np.lib.stride_tricks.sliding_window_view(known, (11, 11)).all(axis=(2, 3))
    expected = maps[5:-5, 5:-5][windows].mean()
    ours = ssim_known(torch.tensor(a)[None], torch.tensor(b)[None], torch.tensor(known)[None, None])
    assert ours.item() == pytest.approx(expected, abs=2e-4)


def test_an_image_smaller_than_a_window_has_no_ssim() -> None:
    x = torch.rand(1, 3, 8, 32)
    assert torch.isnan(ssim_known(x, x, torch.ones(1, 1, 8, 32))).all()


def test_the_known_pixels_are_not_rounded_to_bfloat16_before_they_are_compared() -> None:
    image = torch.randint(0, 256, (1, 3, 32, 32)).div(127.5).sub(1)
    made = batch(image, image.clone(), torch.zeros(1, 1, 32, 32))
    made.image = made.image.to(torch.bfloat16)
    assert Measure()(made).metrics["mse_known"].item() < 1e-12
