"""The fill comes from elsewhere: a field or column of the sample holds the filled image."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from asymvae.batch import Batch
from asymvae.inpaint.base import Inpainter, Need
from asymvae.model.autoencoder import AsymmetricAutoencoderKL


class GivenFill(Inpainter):
    """The latents of the image whose hole shows the given image's pixels."""

    needs: frozenset[Need] = frozenset({"prefilled"})
    needs_given: ClassVar[bool] = True

    def prefill(self, batch: Batch) -> Tensor:
        assert batch.given is not None  # the prepare stage made an error row of every sample without one
        return batch.masked_image + batch.mask * batch.given

    def fill(self, batch: Batch, vae: AsymmetricAutoencoderKL) -> Tensor:
        return batch.latents["prefilled"]
