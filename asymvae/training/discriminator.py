"""The adversarial part of the loss at real size: a discriminator of patches, and what it is weighed with.

As Stable Diffusion's autoencoder was trained: ``taming/modules/discriminator/model.py`` and
``taming/modules/losses/vqperceptual.py`` of https://github.com/CompVis/taming-transformers, and
``ldm/modules/losses/contperceptual.py`` of https://github.com/CompVis/latent-diffusion.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MOST_WIDENING: Final = 8
_LARGEST_WEIGHT: Final = 1e4


class PatchDiscriminator(nn.Module):
    """pix2pix's PatchGAN (Isola et al. 2017, arXiv 1611.07004): with 3 layers a logit sees 70 x 70 px.

    Batch normalisation, so its training mode matters and running statistics are part of its state. Names of the state
    dict are those of taming-transformers' ``NLayerDiscriminator``. Weights are drawn from torch's global generator.
    """

    def __init__(self, in_channels: int = 3, channels: int = 64, layers: int = 3) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(in_channels, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2, True)]
        last = channels
        for layer in range(1, layers + 1):
            wider = channels * min(2**layer, _MOST_WIDENING)
            stride = 2 if layer < layers else 1
            # No bias: the normalisation behind it takes it away again.
            parts.append(nn.Conv2d(last, wider, 4, stride=stride, padding=1, bias=False))
            parts += [nn.BatchNorm2d(wider), nn.LeakyReLU(0.2, True)]
            last = wider
        parts.append(nn.Conv2d(last, 1, 4, padding=1))
        self.main = nn.Sequential(*parts)
        self.main.apply(_initialise)

    def forward(self, image: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, 1, H / 8 - 2, W / 8 - 2) for 3 layers, higher where it looks real."""
        logits: Tensor = self.main(image)
        return logits


def hinge_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """What the discriminator minimises, a scalar. The decoder minimises ``-fake_logits.mean()``."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor) -> Tensor:
    """The factor that makes the adversarial loss pull as hard as the reconstruction loss; times a weight of choice.

    The quotient of the norms of their gradients by ``last_layer``, the weight of the decoder's last convolution; at
    most 1e4.

    Args:
        reconstruction, adversarial: scalars of one graph, which is kept for the backward pass to come.

    Returns: a scalar without gradient.
    """
    (of_reconstruction,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (of_adversarial,) = torch.autograd.grad(adversarial, last_layer, retain_graph=True)
    weight: Tensor = torch.linalg.vector_norm(of_reconstruction) / (torch.linalg.vector_norm(of_adversarial) + 1e-4)
    return weight.detach().clamp(0, _LARGEST_WEIGHT)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
