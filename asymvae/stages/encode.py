"""Encode: pixels to scaled latents, of just those images that the inpainter asks for."""

from __future__ import annotations

from asymvae.batch import Batch
from asymvae.inpaint.base import Inpainter
from asymvae.model.autoencoder import AsymmetricAutoencoderKL


class Encode:
    def __init__(self, model: AsymmetricAutoencoderKL, inpainter: Inpainter) -> None:
        self.model = model
        self.inpainter = inpainter

    def __call__(self, batch: Batch) -> Batch:
        """Fill ``batch.latents[need]``: (N, C, H/f, W/f), the posterior's mean times ``scaling_factor``."""
        for need in sorted(self.inpainter.needs):
            if need == "prefilled":
                pixels = self.inpainter.prefill(batch)
            else:
                pixels = batch.image if need == "image" else batch.masked_image
            posterior = self.model.encode(pixels).latent_dist
            batch.latents[need] = posterior.mode() * self.model.config.scaling_factor
        return batch
