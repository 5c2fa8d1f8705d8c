"""Decode: latents to pixels, the known ones going in by the condition branch."""

from __future__ import annotations

import torch

from asymvae.batch import Batch
from asymvae.faults import Fault
from asymvae.model.autoencoder import AsymmetricAutoencoderKL


class Decode:
    def __init__(self, model: AsymmetricAutoencoderKL) -> None:
        self.model = model

    def __call__(self, batch: Batch) -> Batch:
        """Set ``batch.decoded``, (N, 3, H, W); items whose output isn't finite are failed."""
        assert batch.z is not None
        # The masked image, not the image: what lies in the hole must not reach the network by any path.
        latents = batch.z / self.model.config.scaling_factor
        # A bool mask, whose values need no check: a check reads them on the host, and waits for the device.
        samples = batch.distinct()  # variants have one condition
        batch.decoded = self.model.decode(
            latents, image=samples.masked_image, mask=samples.mask > 0, condition_index=batch.rows
        ).sample
        finite = torch.isfinite(batch.decoded).flatten(1).all(dim=1)
        batch.failed.append((Fault("non_finite"), torch.logical_not(finite)))
        return batch
