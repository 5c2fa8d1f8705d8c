"""The configurations that come with the project are good ones, also the one that no test can afford to run."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch
import yaml

from asymvae.model.checkpoint import Checkpoint
from asymvae.model.published import X_1_5
from asymvae.training.config import TrainJob
from asymvae.training.evaluation_config import EvaluateJob
from asymvae.training.start import new_model

CONFIGS = Path(__file__).parents[2] / "configs"


def _job(name: str) -> TrainJob:
    return TrainJob(**yaml.safe_load((CONFIGS / name).read_text()))


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("train-*.yaml")), ids=lambda file: file.name)
def test_it_is_a_training_run(file: Path) -> None:
    job = _job(file.name)
    for stage in (job.autoencoder, job.decoder):
        assert stage.steps == 0 or stage.steps > 2 * job.warmup_steps


def test_the_evaluation_s_is_an_evaluation() -> None:
    EvaluateJob(**yaml.safe_load((CONFIGS / "evaluate-demo.yaml").read_text()))


def test_x_1_5_is_the_published_network_over_stable_diffusion_s_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.device("meta"):  # names and shapes, and no memory
        stable_diffusion = diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=256, **blocks
        )
    stable_diffusion.save_config(tmp_path / "vae")
    weights = stable_diffusion.state_dict()
    monkeypatch.setattr(Checkpoint, "read_weights", lambda self, variant: weights)
    network = _job("train-x-1-5.yaml").network.model_copy(update={"encoder": str(tmp_path)})
    with torch.device("meta"):
        model = new_model(network, sample_size=64, seed=0)
    made = dict(model.config)
    sizes = {"sample_size"}  # says nothing about the network
    assert {name: made[name] for name in X_1_5.keys() - sizes} == {name: X_1_5[name] for name in X_1_5.keys() - sizes}
    assert sum(weight.numel() for weight in model.parameters()) == 194_300_519
