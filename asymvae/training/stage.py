"""The two stages of the paper's recipe: what each trains, and the loss that it trains on.

arXiv 2306.04632, section 3: the autoencoder is the latent diffusion model's own (reconstruction and a small KL
divergence); then its encoder is frozen, and the asymmetric decoder learns to keep known pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from asymvae.model.autoencoder import AsymmetricAutoencoderKL
from asymvae.model.posterior import DiagonalGaussian
from asymvae.training.adversary import Adversary
from asymvae.training.config import AutoencoderSettings, DecoderSettings
from asymvae.training.lpips import LPIPS
from asymvae.training.masks import training_mask

Losses = dict[str, Tensor]  # by name, scalars; "loss" is what is minimised


class Stage(ABC):
    """``shown`` holds the last step's pictures, (N, 3, H, W) in [-1, 1] each: what went in, what came out."""

    name: str
    shown: Sequence[Tensor] = ()

    def __init__(self, model: AsymmetricAutoencoderKL) -> None:
        self.model = model

    @abstractmethod
    def trained(self) -> list[nn.Parameter]:
        """The weights that this stage changes."""

    @abstractmethod
    def losses(self, image: Tensor, step: int, seed: Sequence[int]) -> Losses:
        """``image``: (N, 3, H, W) in [-1, 1]. ``seed`` is the step's own: all its randomness comes from there."""

    def after_step(self) -> Losses:
        """What else is trained, once the model's weights have moved."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        assert not state, f"stage {self.name} keeps no state of its own"


class AutoencoderStage(Stage):
    """Encoder and decoder together: mean absolute error, and the KL divergence of the posterior."""

    name = "autoencoder"

    def __init__(self, model: AsymmetricAutoencoderKL, settings: AutoencoderSettings) -> None:
        super().__init__(model)
        self.settings = settings

    def trained(self) -> list[nn.Parameter]:
        return [weight for name, weight in self.model.named_parameters() if "condition_encoder" not in name]

    def losses(self, image: Tensor, step: int, seed: Sequence[int]) -> Losses:
        posterior = _posterior(self.model, image)
        decoded = self.model.decode(posterior.sample(_generator(seed))).sample.float()
        self.shown = (image, decoded.detach())
        l1 = (decoded - image).abs().mean()
        # latent-diffusion's contperceptual.py adds the two as sums; divided alike here
        kl = posterior.kl().sum() / image.numel()
        return {"loss": l1 + self.settings.kl_weight * kl, "l1": l1, "kl": kl}


class DecoderStage(Stage):
    """The decoder alone, its condition branch included, over latents of whole images.

    The loss covers hole and known pixels: mean absolute error, LPIPS where its weights are given, a PatchGAN from
    ``adversarial_from`` on.
    """

    name = "decoder"

    def __init__(
        self,
        model: AsymmetricAutoencoderKL,
        settings: DecoderSettings,
        lpips: LPIPS | None,
        adversary: Adversary | None,
    ) -> None:
        super().__init__(model)
        self.settings, self.lpips, self.adversary = settings, lpips, adversary

    def trained(self) -> list[nn.Parameter]:
        return list(self.model.decoder.parameters())

    def losses(self, image: Tensor, step: int, seed: Sequence[int]) -> Losses:
        rng = np.random.default_rng([*seed, 1])
        size = (image.shape[2], image.shape[3])
        full, empty = self.settings.full_masks, self.settings.empty_masks
        masks = [training_mask(rng, *size, full=full, empty=empty) for _ in range(len(image))]
        mask = torch.from_numpy(np.stack(masks)[:, None]).to(image.device)
        with torch.no_grad():
            z = _posterior(self.model, image).sample(_generator(seed))
        decoded = self.model.decode(z, image=image, mask=mask).sample.float()
        self.shown = (image, torch.where(mask, torch.zeros_like(image), image), decoded.detach())
        error = (decoded - image).abs()
        losses = {"l1": error.mean(), "l1_known": error.detach().mul(~mask).sum() / (~mask).sum().clamp_min(1) / 3}
        loss = losses["l1"]
        if self.lpips is not None:
            losses["lpips"] = self.lpips(decoded, image).mean()
            loss = loss + self.settings.lpips_weight * losses["lpips"]
        if self.adversary is not None and step >= (self.settings.adversarial_from or 0):
            losses["adversarial"] = self.adversary.judge(image, decoded)
            weight = self.adversary.weight(loss, losses["adversarial"], self.model.decoder.conv_out.weight)
            loss = loss + self.settings.adversarial_weight * weight * losses["adversarial"]
        return {"loss": loss, **losses}

    def after_step(self) -> Losses:
        return {} if self.adversary is None else self.adversary.step()

    def state_dict(self) -> dict[str, Any]:
        return {} if self.adversary is None else self.adversary.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.adversary is not None:
            self.adversary.load_state_dict(state)


def _posterior(model: AsymmetricAutoencoderKL, image: Tensor) -> DiagonalGaussian:
    # float32 whatever the autocast: the noise is small beside bfloat16's rounding
    return DiagonalGaussian(model.encode(image).latent_dist.parameters.float())


def _generator(seed: Sequence[int]) -> torch.Generator:
    """On the CPU, so that a GPU's run draws the same noise."""
    words = np.random.SeedSequence(seed).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(words[0]) << 31 ^ int(words[1]))
