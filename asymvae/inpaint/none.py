"""No fill: the hole stays mid-grey. What the decoder alone makes of it; the baseline of every comparison."""

from __future__ import annotations

from torch import Tensor

from asymvae.batch import Batch
from asymvae.inpaint.base import Inpainter, Need
from asymvae.model.autoencoder import AsymmetricAutoencoderKL


class NoFill(Inpainter):
    """The latents of the masked image, as they are."""

    needs: frozenset[Need] = frozenset({"masked_image"})

    def fill(self, batch: Batch, vae: AsymmetricAutoencoderKL) -> Tensor:
        return batch.latents["masked_image"]
