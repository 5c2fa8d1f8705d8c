"""What each stage trains, and on which loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from asymvae.training.adversary import Adversary
from asymvae.training.config import AutoencoderSettings, DecoderSettings
from asymvae.training.discriminator import adaptive_weight
from asymvae.training.lpips import LPIPS
from asymvae.training.stage import AutoencoderStage, DecoderStage
from tests.tiny import tiny_model

SEED = (0, 7, 3)


@pytest.fixture
def image() -> Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def decoder_stage(lpips: LPIPS | None = None, adversary: Adversary | None = None, **settings: Any) -> DecoderStage:
    model = tiny_model().requires_grad_(False)
    stage = DecoderStage(model, DecoderSettings(steps=9, **settings), lpips, adversary)
    for weight in stage.trained():
        weight.requires_grad_(True)
    return stage


def gradients(stage: DecoderStage) -> dict[str, Tensor]:
    return {name: w.grad.clone() for name, w in stage.model.named_parameters() if w.grad is not None}


def test_the_autoencoder_s_loss(image: Tensor) -> None:
    stage = AutoencoderStage(tiny_model(), AutoencoderSettings(steps=1, kl_weight=0.01))
    losses = stage.losses(image, 0, SEED)
    posterior = stage.model.encode(image).latent_dist
    # the divergence from a standard normal, by hand, against the sum of absolute errors
    mean, var = posterior.mean.double(), posterior.std.double() ** 2
    kl = 0.5 * (mean**2 + var - 1 - var.log()).sum() / image.numel()
    torch.testing.assert_close(losses["kl"].double(), kl, rtol=1e-4, atol=0)
    torch.testing.assert_close(losses["l1"], (stage.shown[1] - image).abs().mean())
    torch.testing.assert_close(losses["loss"], losses["l1"] + 0.01 * losses["kl"])
    losses["loss"].backward()
    without = {name.split(".")[1] for name, w in stage.model.named_parameters() if w.grad is None}
    assert without == {"condition_encoder"}
    assert len(stage.trained()) == sum(w.grad is not None for w in stage.model.parameters())


@torch.no_grad()
def test_half_of_the_masks_are_full_and_a_share_empty() -> None:
    image = torch.rand(16, 3, 32, 32) + 0.1
    stage = decoder_stage(full_masks=0.5, empty_masks=0.25)
    full = empty = 0
    for step in range(25):
        stage.losses(image, step, (0, 7, step))
        _, masked, _ = stage.shown
        full += int((masked == 0).flatten(1).all(1).sum())
        empty += int((masked == image).flatten(1).all(1).sum())
    assert full / 400 == pytest.approx(0.5, abs=0.07)
    assert empty / 400 == pytest.approx(0.25, abs=0.06)


def test_all_randomness_is_the_step_s_seed(image: Tensor) -> None:
    stage = decoder_stage()
    torch.manual_seed(1)
    first = stage.losses(image, 3, SEED)
    torch.manual_seed(2)
    assert torch.equal(stage.losses(image, 5, SEED)["loss"], first["loss"])
    assert not torch.equal(stage.losses(image, 3, (*SEED[:2], 4))["loss"], first["loss"])


def test_the_decoder_learns_and_its_condition_branch(image: Tensor) -> None:
    stage = decoder_stage(full_masks=0.0)
    losses = stage.losses(image, 0, SEED)
    losses["loss"].backward()
    assert losses.keys() == {"loss", "l1", "l1_known"}
    assert torch.equal(losses["loss"], losses["l1"])
    _, masked, decoded = stage.shown
    known = (masked == image).all(1, keepdim=True).expand_as(image)
    torch.testing.assert_close(losses["l1_known"], (decoded - image).abs()[known].mean())
    found = gradients(stage)
    assert found.keys() == {f"decoder.{name}" for name, _ in stage.model.decoder.named_parameters()}
    assert all(found[name].any() for name in found if "condition_encoder" in name and name.endswith("weight"))


def test_without_a_known_pixel_its_error_is_none(image: Tensor) -> None:
    assert decoder_stage(full_masks=1.0).losses(image, 0, SEED)["l1_known"].item() == 0


def test_lpips_takes_part(image: Tensor) -> None:
    torch.manual_seed(0)
    lpips = LPIPS().eval()
    with torch.no_grad():
        for name, weight in lpips.named_parameters():
            if name.startswith("lin"):
                weight.abs_()
    stage, without = decoder_stage(lpips, lpips_weight=0.5), decoder_stage()
    losses = stage.losses(image, 0, SEED)
    torch.testing.assert_close(losses["lpips"], lpips(stage.shown[2], image).mean())
    torch.testing.assert_close(losses["loss"], losses["l1"] + 0.5 * losses["lpips"])
    losses["loss"].backward()
    without.losses(image, 0, SEED)["loss"].backward()
    theirs = gradients(without)
    assert any(not torch.allclose(g, theirs[name]) for name, g in gradients(stage).items())


def test_the_adversary_takes_part_from_its_step_on(image: Tensor) -> None:
    torch.manual_seed(0)
    adversary = Adversary(1e-3, torch.device("cpu"))
    stage = decoder_stage(adversary=adversary, adversarial_from=4, adversarial_weight=0.5)
    before = {name: tensor.clone() for name, tensor in adversary.discriminator.state_dict().items()}
    early = stage.losses(image, 3, SEED)
    assert "adversarial" not in early
    assert stage.after_step() == {}
    assert all(torch.equal(t, before[name]) for name, t in adversary.discriminator.state_dict().items())

    losses = stage.losses(image, 4, SEED)
    weight = adaptive_weight(losses["l1"], losses["adversarial"], stage.model.decoder.conv_out.weight)
    torch.testing.assert_close(losses["loss"], losses["l1"] + 0.5 * weight * losses["adversarial"])
    losses["loss"].backward()
    pulled = gradients(stage)
    assert all(w.grad is None for w in adversary.discriminator.parameters())  # it isn't trained to be fooled
    assert stage.after_step().keys() == {"discriminator"}
    assert all(torch.equal(g, pulled[name]) for name, g in gradients(stage).items())  # nor the decoder to be caught
    after = adversary.discriminator.state_dict()
    assert all(not torch.equal(after[name], before[name]) for name in before if name.endswith("weight"))


def test_the_discriminator_learns_to_tell_and_goes_on_from_its_state(image: Tensor) -> None:
    torch.manual_seed(0)
    adversary = Adversary(1e-3, torch.device("cpu"))
    stage = decoder_stage(adversary=adversary, adversarial_from=0)

    def step(stage: DecoderStage) -> float:
        stage.losses(image, 0, SEED)
        return stage.after_step()["discriminator"].item()

    begun = [step(stage) for _ in range(6)]
    assert begun[-1] < 0.9 * begun[0]
    other = decoder_stage(adversary=Adversary(1e-3, torch.device("cpu")), adversarial_from=0)
    other.load_state_dict(stage.state_dict())
    # a copy: load_state_dict of an optimiser shares no tensor that both would move
    assert [step(stage) for _ in range(2)] == [step(other) for _ in range(2)]
