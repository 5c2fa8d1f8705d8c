"""Encode: pixels to scaled latents, of just those images that the inpainter asks for."""

from __future__ import annotations

from asymvae.batch import Batch
from asymvae.inpaint.base import Inpainter
from asymvae.model.autoencoder import AsymmetricAutoencoderKL
from asymvae.model.posterior import DiagonalGaussian


class Encode:
    def __init__(self, model: AsymmetricAutoencoderKL, inpainter: Inpainter) -> None:
        self.model = model
        self.inpainter = inpainter

    def __call__(self, batch: Batch) -> Batch:
        """Fill ``batch.posteriors[need]`` and ``batch.latents[need]``: (N, C, H/f, W/f), the posterior's mean times
        ``scaling_factor``. Variants of one sample share their image: it is encoded once."""
        samples = batch.distinct()
        for need in sorted(self.inpainter.needs):
            if need == "prefilled":
                pixels = self.inpainter.prefill(samples)
            else:
                pixels = samples.image if need == "image" else samples.masked_image
            posterior = self.model.encode(pixels).latent_dist
            if batch.rows is not None:
                posterior = DiagonalGaussian(posterior.parameters.index_select(0, batch.rows))
            batch.posteriors[need] = posterior
            batch.latents[need] = posterior.mode() * self.model.config.scaling_factor
        if batch.rows is not None:
            batch.failed += [(fault, bad.index_select(0, batch.rows)) for fault, bad in samples.failed]
        return batch
