"""A network whose encoder comes from a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from asymvae.model.checkpoint import CheckpointError
from asymvae.training.config import NetworkSettings
from asymvae.training.start import new_model
from tests.tiny import tiny_model

WEIGHTS = "diffusion_pytorch_model.safetensors"


def plain_vae(**settings: Any) -> Any:
    """A tiny autoencoder of the kind that Stable Diffusion has, with random weights; f8."""
    from diffusers import AutoencoderKL

    torch.manual_seed(1)
    values: dict[str, Any] = {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4, "latent_channels": 4}
    values |= {"layers_per_block": 1, "scaling_factor": 0.3} | settings
    blocks = len(values["block_out_channels"])
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks, **values
    ).eval()


def network(encoder: Path, **settings: Any) -> NetworkSettings:
    values = {"up_block_out_channels": (8, 16, 32, 32), "layers_per_up_block": 1, "norm_num_groups": 4} | settings
    return NetworkSettings(encoder=str(encoder), **values)


@pytest.fixture
def image() -> Tensor:
    return torch.rand(2, 3, 40, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
@pytest.mark.parametrize("names", ["today's", "before 0.15"])
def test_a_stable_diffusion_encoder_is_taken_as_it_is(names: str, image: Tensor, tmp_path: Path) -> None:
    theirs = plain_vae()
    theirs.save_pretrained(tmp_path)
    if names != "today's":  # as stabilityai/sd-vae-ft-mse is published
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        state = load_file(tmp_path / WEIGHTS)
        for today, then in old.items():
            state = {name.replace(f"attentions.0.{today}.", f"attentions.0.{then}."): t for name, t in state.items()}
        assert any(".query." in name for name in state)
        save_file(state, tmp_path / WEIGHTS)
    model = new_model(network(tmp_path), sample_size=64, seed=0).eval()
    assert model.config.scaling_factor == 0.3
    assert model.config.down_block_out_channels == (8, 8, 16, 16)
    assert model.config.up_block_out_channels == (8, 16, 32, 32)
    expected = theirs.encode(image).latent_dist.parameters
    torch.testing.assert_close(model.encode(image).latent_dist.parameters, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.post_quant_conv.weight, theirs.post_quant_conv.weight)
    assert not model.decoder.up_blocks[0].resnets[0].conv2.weight.any()  # the decoder is new


@torch.no_grad()
def test_the_encoder_of_an_asymmetric_checkpoint(image: Tensor, tmp_path: Path) -> None:
    theirs = tiny_model(seed=5)
    theirs.half().save_pretrained(tmp_path)
    model = new_model(network(tmp_path), sample_size=64, seed=0).eval()
    assert model.dtype == torch.float32
    expected = theirs.float().encode(image).latent_dist.parameters
    assert torch.equal(model.encode(image).latent_dist.parameters, expected)
    assert model.config.scaling_factor == theirs.config.scaling_factor


@pytest.mark.parametrize(
    ("settings", "wrong", "said"),
    [
        ({"use_quant_conv": False}, {}, r"network\.encoder .* lacks quant_conv\.bias, quant_conv\.weight"),
        ({"block_out_channels": (8, 8, 16)}, {}, r"network\.encoder .* 1/4 .*f8"),
        ({"norm_num_groups": 8}, {"up_block_out_channels": (4, 8, 16, 16)}, r"8 groups.*network\.up_block_out"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(
    settings: dict[str, Any], wrong: dict[str, Any], said: str, tmp_path: Path
) -> None:
    plain_vae(**settings).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=said):
        new_model(network(tmp_path, **wrong), sample_size=64, seed=0)


def test_an_encoder_with_more_than_there_is_place_for_is_refused(tmp_path: Path) -> None:
    plain_vae().save_pretrained(tmp_path)
    more = {"encoder.down_blocks.3.attentions.0.to_q.weight": torch.zeros(16, 16)}
    save_file(load_file(tmp_path / WEIGHTS) | more, tmp_path / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"network\.encoder .* has no place here for .*attentions\.0\.to_q"):
        new_model(network(tmp_path), sample_size=64, seed=0)


def test_what_is_no_autoencoder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DConditionModel"}))
    with pytest.raises(CheckpointError, match="UNet2DConditionModel"):
        new_model(network(tmp_path), sample_size=64, seed=0)
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        new_model(network(tmp_path.parent), sample_size=64, seed=0)
