"""asymvae: inpaint millions of images with the asymmetric VAE on a Ray cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asymvae.latents.dataset import LatentDataset as LatentDataset


def __getattr__(name: str) -> Any:
    if name == "LatentDataset":  # only then is torch imported
        from asymvae.latents.dataset import LatentDataset

        return LatentDataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
