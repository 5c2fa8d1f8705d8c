"""Harmonic fill: the smoothest continuation of what is known. A baseline, and exact in what it promises.

First in pixel space, so that the encoder sees no edge at the hole; then the hole's cells once more in latent space,
since a convolution's latents beside the hole are only as good as the pixels it was given there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from asymvae.batch import Batch
from asymvae.faults import Fault
from asymvae.inpaint import laplace
from asymvae.inpaint.base import Inpainter, Need
from asymvae.model.autoencoder import AsymmetricAutoencoderKL


class HarmonicFill(Inpainter):
    """Laplace's equation in pixels, then in latents.

    Args:
        tolerance: the largest error a fill may have, as a fraction of the sample's largest value (pixels in
            [-1, 1], so 1e-4 is 1/80 of an 8-bit level), as estimated by the solver; judged per sample.
        max_iterations: a sample that hasn't reached it by then is an error row, ``fill_not_converged``.

    A sample that is all hole gets the latents of mid-grey.
    """

    needs: frozenset[Need] = frozenset({"prefilled"})

    def __init__(self, tolerance: float = 1e-4, max_iterations: int = 200) -> None:
        if not 0 < tolerance < 1:
            raise ValueError(f"inpaint.options.tolerance is {tolerance}; it must lie between 0 and 1")
        if max_iterations < 1:
            raise ValueError(f"inpaint.options.max_iterations is {max_iterations}; it must be at least 1")
        self.tolerance = tolerance
        self.max_iterations = max_iterations

    def prefill(self, batch: Batch) -> Tensor:
        return self._solve(batch, batch.masked_image, batch.mask)

    def fill(self, batch: Batch, vae: AsymmetricAutoencoderKL) -> Tensor:
        latents = batch.latents["prefilled"]
        factor = batch.mask.shape[-1] // latents.shape[-1]
        hole = F.max_pool2d(batch.mask, factor)
        # No known cell: the encoder's latents of the prefilled image are all there is to go by.
        hole = hole * (hole.amin(dim=(1, 2, 3), keepdim=True) < 1).to(hole.dtype)
        return self._solve(batch, latents, hole)

    def _solve(self, batch: Batch, values: Tensor, hole: Tensor) -> Tensor:
        filled, converged = laplace.solve(values, hole, tolerance=self.tolerance, max_iterations=self.max_iterations)
        batch.failed.append(
            (Fault("fill_not_converged", {"iterations": self.max_iterations}), torch.logical_not(converged))
        )
        return filled
