"""Inpaint: fill the holes in latent space, by whatever method the job chose."""

from __future__ import annotations

from asymvae.batch import Batch
from asymvae.inpaint.base import Inpainter
from asymvae.model.autoencoder import AsymmetricAutoencoderKL


class Inpaint:
    def __init__(self, model: AsymmetricAutoencoderKL, inpainter: Inpainter) -> None:
        self.model = model
        self.inpainter = inpainter

    def __call__(self, batch: Batch) -> Batch:
        """Set ``batch.z`` (scaled latents) and the metrics ``latent_mean`` and ``latent_std``, of it, an item."""
        batch.z = self.inpainter.fill(batch, self.model)
        latents = batch.z.float()
        batch.metrics["latent_mean"] = latents.mean(dim=(1, 2, 3))
        batch.metrics["latent_std"] = latents.std(dim=(1, 2, 3))
        return batch
