from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from asymvae.model import PUBLISHED, AsymmetricAutoencoderKL
from tests.model.small import GELU, SMALL, holes, picture, randomise


@pytest.fixture(scope="module")
def model() -> AsymmetricAutoencoderKL:
    made = AsymmetricAutoencoderKL(**SMALL).eval().requires_grad_(False)
    randomise(made, 0)
    return made


@pytest.fixture(scope="module")
def z() -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "parameters", "tensors"), [("x-1-5", 194300519, 290), ("x-2", 406130151, 354)])
def test_published_configurations_have_the_published_counts(name: str, parameters: int, tensors: int) -> None:
    with torch.device("meta"):
        model = AsymmetricAutoencoderKL(**PUBLISHED[name])
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == tensors
    assert model.config.encoder_factor == model.config.decoder_factor == 8


def test_config_reads_as_attributes_and_as_a_mapping(model: AsymmetricAutoencoderKL) -> None:
    assert model.config.latent_channels == model.config["latent_channels"] == 4
    assert model.config.block_out_channels == model.config.up_block_out_channels == (16, 32, 64, 64)
    assert dict(model.config)["scaling_factor"] == 0.18215
    assert model.config.get("shift_factor") is None
    with pytest.raises(KeyError):
        model.config["encoder_factor"]


def test_results_have_names_and_are_tuples(model: AsymmetricAutoencoderKL) -> None:
    image = picture(2, 1, 64)
    (posterior,) = model.encode(image, return_dict=False)
    (sample,) = model.decode(posterior.mode(), return_dict=False)
    assert sample.shape == (1, 3, 64, 64)
    assert torch.equal(sample, model(image).sample)
    assert torch.equal(model(image, return_dict=False)[0], sample)


def test_the_hole_is_where_the_mask_is_one(model: AsymmetricAutoencoderKL, z: Tensor) -> None:
    image, mask = picture(2, 2, 64), holes(3, 2, 64)
    out = model.decode(z, image=image, mask=mask).sample
    other = torch.where(mask == 1, torch.full_like(image, 0.9), image)
    assert torch.equal(model.decode(z, image=other, mask=mask).sample, out)
    known = torch.where(mask == 0, torch.full_like(image, 0.9), image)
    assert not torch.allclose(model.decode(z, image=known, mask=mask).sample, out, atol=1e-2)


def test_a_mask_of_ones_is_the_decode_without_one(model: AsymmetricAutoencoderKL, z: Tensor) -> None:
    out = model.decode(z, image=picture(2, 2, 64), mask=torch.ones(2, 1, 64, 64)).sample
    torch.testing.assert_close(out, model.decode(z).sample)


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(lambda m: m.bool(), id="bool"),
        pytest.param(lambda m: m.to(torch.uint8), id="uint8"),
        pytest.param(lambda m: m.long(), id="int64"),
        pytest.param(lambda m: m.double(), id="float64"),
        pytest.param(lambda m: m.half(), id="float16"),
        pytest.param(lambda m: m[:, 0], id="no channel"),
        pytest.param(lambda m: m.expand(-1, 3, -1, -1), id="three equal channels"),
        pytest.param(lambda m: m[:, 0].bool(), id="bool, no channel"),
    ],
)
def test_a_mask_in_another_form_gives_the_same_result(model: AsymmetricAutoencoderKL, z: Tensor, form: Any) -> None:
    image, mask = picture(2, 2, 64), holes(3, 2, 64)
    expected = model.decode(z, image=image, mask=mask).sample
    assert torch.equal(model.decode(z, image=image, mask=form(mask)).sample, expected)


@pytest.mark.parametrize(("images", "masks"), [(1, 2), (2, 1), (1, 1)])
def test_one_image_or_mask_serves_every_latent(
    model: AsymmetricAutoencoderKL, z: Tensor, images: int, masks: int
) -> None:
    image, mask = picture(2, images, 64), holes(3, masks, 64)
    expected = model.decode(z, image=image.expand(2, -1, -1, -1), mask=mask.expand(2, -1, -1, -1)).sample
    torch.testing.assert_close(model.decode(z, image=image, mask=mask).sample, expected)


def test_inputs_of_another_floating_dtype_are_cast(model: AsymmetricAutoencoderKL, z: Tensor) -> None:
    image, mask = picture(2, 2, 64), holes(3, 2, 64)
    expected = model.decode(z, image=image, mask=mask).sample
    assert torch.equal(model.decode(z.double(), image=image.double(), mask=mask).sample, expected)
    assert torch.equal(model.encode(image.double()).latent_dist.mean, model.encode(image).latent_dist.mean)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_and_stays_near(dtype: torch.dtype) -> None:
    model = AsymmetricAutoencoderKL(**SMALL).eval().requires_grad_(False)
    randomise(model, 0)
    image, mask = picture(2, 1, 64), holes(3, 1, 64).bool()
    expected = model(image, mask).sample
    out = model.to(dtype)(image, mask).sample
    assert out.dtype == model.dtype == dtype
    assert (out.float() - expected).abs().max() < 0.1 * expected.abs().max()


IMAGE, MASK = picture(2, 2, 64), holes(3, 2, 64)


@pytest.mark.parametrize(
    ("image", "mask", "says"),
    [
        pytest.param(IMAGE, None, "an image without a mask", id="image alone"),
        pytest.param(None, MASK, "a mask without an image", id="mask alone"),
        pytest.param(IMAGE[..., :32], MASK[..., :32], "must be 8 times the latent, 64x64", id="image's size"),
        pytest.param(IMAGE, MASK[:, :, :32], "mask is 32x64 and image 64x64", id="mask's size"),
        pytest.param(IMAGE, (MASK * 255).to(torch.uint8), r"outside \[0, 1\].*mask > 127", id="mask of 0..255"),
        pytest.param(IMAGE, MASK * 255, r"float32 with values outside \[0, 1\]", id="float mask of 0..255"),
        pytest.param(IMAGE, MASK * float("nan"), r"outside \[0, 1\]", id="mask of NaN"),
        pytest.param(IMAGE, MASK * 2 - 1, r"outside \[0, 1\]", id="mask of -1..1"),
        pytest.param(IMAGE, torch.rand(2, 3, 64, 64), "3 channels that differ", id="three masks"),
        pytest.param(IMAGE, MASK.expand(-1, 2, -1, -1), r"must be \(N, 1, H, W\)", id="two channels"),
        pytest.param(IMAGE, MASK[0, 0], r"must be \(N, 1, H, W\)", id="mask without a batch"),
        pytest.param(IMAGE.repeat(2, 1, 1, 1), MASK, "image has batch 4 and the latent 2", id="image's batch"),
        pytest.param(IMAGE, MASK.repeat(2, 1, 1, 1), "mask has batch 4 and the latent 2", id="mask's batch"),
        pytest.param(IMAGE[:, :1], MASK, r"must be \(N, 3, H, W\)", id="grey image"),
        pytest.param((IMAGE * 255).to(torch.uint8), MASK, "image / 127.5 - 1", id="image of bytes"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_remedy(
    model: AsymmetricAutoencoderKL, z: Tensor, image: Tensor | None, mask: Tensor | None, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        model.decode(z, image=image, mask=mask)


def test_a_size_that_is_no_multiple_of_the_factor_is_refused(model: AsymmetricAutoencoderKL) -> None:
    with pytest.raises(ValueError, match="x is 64x60; both must be multiples of 8"):
        model(picture(2, 1, 64)[..., :60], holes(3, 1, 64)[..., :60])
    factor_four = AsymmetricAutoencoderKL(**GELU)
    assert factor_four.encode(picture(2, 1, 64)[..., :60]).latent_dist.mean.shape == (1, 6, 16, 15)


def test_pixels_as_bytes_and_latents_of_other_channels_are_refused(model: AsymmetricAutoencoderKL) -> None:
    with pytest.raises(ValueError, match=r"pixels / 127.5 - 1"):
        model.encode(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"x has shape \(3, 64, 64\); it must be \(N, 3, height, width\)"):
        model.encode(torch.zeros(3, 64, 64))
    with pytest.raises(ValueError, match=r"z has shape \(1, 3, 8, 8\); it must be \(N, 4, height, width\)"):
        model.decode(torch.zeros(1, 3, 8, 8))


def test_a_configuration_without_condition_features_decodes_without_image_and_mask_only() -> None:
    uneven = SMALL | {"up_block_out_channels": (16, 24, 64, 64)}
    model = AsymmetricAutoencoderKL(**uneven)
    latent = torch.zeros(1, 4, 2, 2)
    assert model.decode(latent).sample.shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match="24 channels at 1/1 of the size"):
        model.decode(latent, image=torch.zeros(1, 3, 16, 16), mask=torch.zeros(1, 1, 16, 16))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"down_block_types": ("AttnDownEncoderBlock2D",) * 4}, "only 'DownEncoderBlock2D' is known"),
        ({"up_block_types": ("UpDecoderBlock2D",)}, "up_block_types has 1 entries and up_block_out_channels 4"),
        ({"act_fn": "tanh"}, "act_fn is 'tanh'"),
    ],
)
def test_a_configuration_that_cannot_be_built_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        AsymmetricAutoencoderKL(**(SMALL | change))


def test_the_smallest_image_that_the_factor_allows(model: AsymmetricAutoencoderKL) -> None:
    assert model(picture(2, 1, 8), torch.ones(1, 1, 8, 8)).sample.shape == (1, 3, 8, 8)
