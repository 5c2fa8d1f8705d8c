"""A discriminator and its own optimiser: what the decoder plays against once it knows the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from asymvae.training.discriminator import PatchDiscriminator, adaptive_weight, hinge_loss


class Adversary:
    """latent-diffusion's ``contperceptual.py``: one step of the decoder, then one of the discriminator."""

    def __init__(self, learning_rate: float, device: torch.device) -> None:
        self.discriminator = PatchDiscriminator().to(device)
        # betas of both sides there
        self.optimiser = torch.optim.Adam(self.discriminator.parameters(), learning_rate, betas=(0.5, 0.9))
        self._pair: tuple[Tensor, Tensor] | None = None

    def judge(self, real: Tensor, decoded: Tensor) -> Tensor:
        """The decoder's loss: how far the discriminator is from taking ``decoded`` for real. (N, 3, H, W) each."""
        self._pair = real, decoded.detach()
        self.discriminator.requires_grad_(False)
        loss: Tensor = -self.discriminator(decoded).mean()
        return loss

    weight = staticmethod(adaptive_weight)

    def step(self) -> dict[str, Tensor]:
        """Train the discriminator on what :meth:`judge` saw; nothing before its first call."""
        if self._pair is None:
            return {}
        self.discriminator.requires_grad_(True)
        real, decoded = self._pair
        loss = hinge_loss(self.discriminator(real), self.discriminator(decoded))
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        return {"discriminator": loss.detach()}

    def state_dict(self) -> dict[str, Any]:
        return {"discriminator": self.discriminator.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.discriminator.load_state_dict(state["discriminator"])
        self.optimiser.load_state_dict(state["optimiser"])
