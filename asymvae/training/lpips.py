"""LPIPS: how different two images look, by the features of VGG16. Zhang et al. 2018, arXiv 1801.03924, version 0.1.

Its weights are two files of others, which the user brings: ImageNet's VGG16, and five linear layers fitted to people's
judgements. They make up the perceptual part of the loss at real size, and nothing of them is in a checkpoint of ours.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Final

import safetensors.torch
import torch
from torch import Tensor, nn

from asymvae.model.checkpoint import CheckpointError, only_tensors
from asymvae.storage.filesystem import read_bytes, redact

# VGG16's convolutions by the channels they give; 0 is a 2x2 maximum. A tap stands before every maximum and at the end.
_CHANNELS: Final = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)
_SLICES: Final = (0, 4, 9, 16, 23, 30)  # of the layers, counted as torchvision does: a convolution and its ReLU are two
_TAPPED: Final = (64, 128, 256, 512, 512)
_SHIFT: Final = (-0.030, -0.088, -0.188)  # ImageNet's mean and deviation, for images in [-1, 1]
_SCALE: Final = (0.458, 0.448, 0.450)
_EPSILON: Final = 1e-10

_VGG: Final = re.compile(r"(?:features|net\.slice[1-5])\.(\d+)\.(weight|bias)")
_LINEAR: Final = re.compile(r"lin([0-4])\.model\.[01]\.weight")  # 0 where the file was written without dropout
_SOURCES: Final = (
    "features.* are those of torchvision's vgg16 (https://download.pytorch.org/models/vgg16-397923af.pth); "
    "lin* are in the lpips package (https://github.com/richzhang/PerceptualSimilarity, lpips/weights/v0.1/vgg.pth). "
    "Give both files, or one that holds both"
)


class LPIPS(nn.Module):
    """Frozen, in evaluation mode. :meth:`load` makes one that means something; the constructor's weights are random."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        last = 3
        for channels in _CHANNELS:
            if channels:
                layers += [nn.Conv2d(last, channels, 3, padding=1), nn.ReLU(inplace=True)]
                last = channels
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.linear = nn.ModuleList(nn.Conv2d(channels, 1, 1, bias=False) for channels in _TAPPED)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    @classmethod
    def load(cls, *paths: str) -> LPIPS:
        """From safetensors or .pth, local or fsspec URLs, read together.

        Names are torchvision's for VGG16 (``features.0.weight``) and the lpips package's for the linear layers
        (``lin0.model.1.weight``), or those of its whole state dict (``net.slice1.0.weight``); others are ignored.

        Raises FileNotFoundError for a file that is not there, CheckpointError (a ValueError) where they hold anything
        else than tensors, or not all that are needed: the message says which, and where they come from.
        """
        found: dict[str, Tensor] = {}
        for path in paths:
            found |= {ours: tensor for name, tensor in _read(path).items() if (ours := _our_name(name))}
        model = cls()
        wanted = model.state_dict()
        if missing := [_their_name(name) for name in wanted if name not in found]:
            raise CheckpointError(f"LPIPS lacks {_listed(missing)}: {_SOURCES}")
        if wrong := [_their_name(name) for name, tensor in wanted.items() if tensor.shape != found[name].shape]:
            raise CheckpointError(f"LPIPS wants VGG16, and other shapes of {_listed(wrong)}: {_SOURCES}")
        model.load_state_dict(found, strict=False)  # strict would refuse more layers of a larger VGG: those aren't used
        return model

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1], at least 16 px a side -> (N,): 0 for equal images. The gradient reaches both."""
        distance = a.new_zeros(a.shape[0])
        # One image after the other, not one batch of both: the original's activations then needn't be kept.
        for linear, of_a, of_b in zip(self.linear, self._unit_features(a), self._unit_features(b), strict=True):
            distance = distance + linear((of_a - of_b).square()).mean(dim=(1, 2, 3))
        return distance

    def train(self, mode: bool = True) -> LPIPS:
        """Stays in evaluation mode, whatever a module around it is set to."""
        super().train(False)
        return self

    def _unit_features(self, image: Tensor) -> list[Tensor]:
        """The five tapped layers, (N, C, H, W), each pixel's vector of length 1."""
        hidden = (image - self.shift) / self.scale
        taps = []
        for begin, end in pairwise(_SLICES):
            hidden = self.features[begin:end](hidden)
            taps.append(hidden / (torch.linalg.vector_norm(hidden, dim=1, keepdim=True) + _EPSILON))
        return taps


def _read(path: str) -> Mapping[str, Tensor]:
    data = read_bytes(path)
    if data[8:9] == b"{":  # safetensors: eight bytes of length, then JSON; no .pth has a brace there
        return only_tensors(partial(safetensors.torch.load, data), redact(path))
    load = partial(torch.load, io.BytesIO(data), map_location="cpu", weights_only=True)
    return only_tensors(load, redact(path))


def _our_name(name: str) -> str | None:
    if match := _VGG.fullmatch(name):
        return f"features.{match[1]}.{match[2]}"
    if match := _LINEAR.fullmatch(name):
        return f"linear.{match[1]}.weight"
    return None


def _their_name(name: str) -> str:
    return re.sub(r"linear\.(\d)", r"lin\1.model.1", name)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
