"""The block transform against principal components by hand, and the network that begins as it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from asymvae.batch import normalised
from asymvae.model.autoencoder import AsymmetricAutoencoderKL
from asymvae.training.config import NetworkSettings
from asymvae.training.linear import FILE, BlockTransform
from asymvae.training.linear_start import start_linear
from asymvae.training.start import new_model
from tests.tiny import picture

SMALL = NetworkSettings(
    down_block_out_channels=(16, 32, 64, 64),
    layers_per_down_block=1,
    up_block_out_channels=(16, 32, 64, 64),
    layers_per_up_block=1,
    norm_num_groups=4,
)


@pytest.fixture(scope="module")
def pictures() -> list[NDArray[np.uint8]]:
    return [np.stack([picture(64, 96, 10 * k + i) for i in range(3)]) for k in range(4)]


@pytest.fixture(scope="module")
def images(pictures: list[NDArray[np.uint8]]) -> Tensor:
    """(12, 3, 64, 96) in [-1, 1]."""
    return normalised(torch.from_numpy(np.concatenate(pictures)))


@pytest.fixture(scope="module")
def transform(pictures: list[NDArray[np.uint8]]) -> BlockTransform:
    return BlockTransform.fit(pictures)


@pytest.fixture(scope="module")
def started(transform: BlockTransform) -> AsymmetricAutoencoderKL:
    model = new_model(SMALL, sample_size=64, seed=0)
    start_linear(model, transform)
    return model.eval()


def psnr(a: Tensor, b: Tensor) -> float:
    return float(10 * torch.log10(4 / (a - b).square().mean()))


def test_it_is_the_principal_components_of_blocks(transform: BlockTransform, images: Tensor) -> None:
    n, _, height, width = images.shape
    blocks = images.double().view(n, 3, height // 8, 8, width // 8, 8).permute(0, 2, 4, 1, 3, 5).reshape(-1, 192)
    variances = torch.linalg.svdvals(blocks - blocks.mean(0)).square() / len(blocks)
    torch.testing.assert_close(transform.scale.double(), variances[:4].sqrt(), rtol=1e-4, atol=0)
    torch.testing.assert_close(transform.components @ transform.components.T, torch.eye(4), rtol=0, atol=1e-5)
    latent = transform.encode(images)
    assert latent.shape == (n, 4, height // 8, width // 8)
    flat = latent.transpose(0, 1).flatten(1)
    torch.testing.assert_close(flat @ flat.T / flat.shape[1], torch.eye(4), rtol=0, atol=1e-3)
    torch.testing.assert_close(flat.mean(1), torch.zeros(4), rtol=0, atol=1e-4)
    decoded = transform.decode(latent)
    lost = (decoded - images).double().square().sum() / len(blocks)
    assert lost.item() == pytest.approx(variances[4:].sum().item(), rel=1e-4)
    # a projection: what has been through it stays
    torch.testing.assert_close(transform.decode(transform.encode(decoded)), decoded, rtol=0, atol=1e-5)


def test_one_fit_and_another_are_the_same(
    transform: BlockTransform, pictures: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    """Signs too: the largest entry of a component is positive."""
    largest = transform.components.gather(1, transform.components.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()
    other = BlockTransform.fit(reversed(pictures))
    torch.testing.assert_close(other.components, transform.components, rtol=0, atol=1e-5)
    transform.save(tmp_path / FILE)
    loaded = BlockTransform.load(tmp_path / FILE)
    assert all(torch.equal(value, loaded.tensors()[name]) for name, value in transform.tensors().items())


@torch.no_grad()
def test_the_encoder_begins_as_the_transform(
    started: AsymmetricAutoencoderKL, transform: BlockTransform, images: Tensor
) -> None:
    posterior = started.encode(images).latent_dist
    expected = transform.encode(images)
    assert ((posterior.mode() - expected).std() / expected.std()).item() < 0.02
    assert posterior.std.max().item() < 0.02  # a draw is no worse than the mode


@torch.no_grad()
def test_the_decoder_begins_as_interpolation(
    started: AsymmetricAutoencoderKL, transform: BlockTransform, images: Tensor
) -> None:
    decoded = started.decode(transform.encode(images)).sample
    means = F.avg_pool2d(transform.decode(transform.encode(images)), 8)
    smooth = F.interpolate(means, scale_factor=8, mode="bilinear")
    decoded, smooth, images = (picture[..., 8:-8, 8:-8] for picture in (decoded, smooth, images))  # zeros beyond
    assert psnr(decoded, smooth) > 30
    assert psnr(decoded, images) > psnr(smooth, images) - 1.5


@torch.no_grad()
def test_known_pixels_come_through_from_the_start(started: AsymmetricAutoencoderKL, images: Tensor) -> None:
    mask = torch.zeros(len(images), 1, 64, 96, dtype=torch.bool)
    mask[:, :, 20:50, 30:60] = True
    decoded = started(images, mask=mask).sample
    known = ~mask.expand_as(images)
    known[..., 19:51, 29:61] = False  # the output layer is 3x3
    assert psnr(decoded[known], images[known]) > 45


@pytest.mark.parametrize(
    ("widths", "named"),
    [
        ({"down_block_out_channels": (8, 32, 64, 64)}, r"down_block_out_channels\[0\] is 8 and must be at least 12"),
        ({"down_block_out_channels": (16, 8, 64, 64)}, r"down_block_out_channels\[1\] is 8 and must be at least 16"),
        ({"up_block_out_channels": (8, 16, 32, 32)}, r"up_block_out_channels\[0\] / norm_num_groups is 2"),
        ({"norm_num_groups": 2}, r"network\.norm_num_groups is 2 and must be at least 3"),
        ({"down_block_out_channels": (16, 32, 32, 64)}, "to be equal"),
    ],
)
def test_widths_that_can_not_hold_it_are_named(
    widths: dict[str, tuple[int, ...]], named: str, transform: BlockTransform
) -> None:
    model = new_model(NetworkSettings(**(SMALL.model_dump() | widths)), sample_size=64, seed=0)
    with pytest.raises(ValueError, match=named):
        start_linear(model, transform)
