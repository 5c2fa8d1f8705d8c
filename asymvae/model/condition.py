"""The decoder's second input: the known pixels and the mask that says where the hole is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConditionEncoder(nn.Module):
    """Features of the masked image, one for each of the decoder's levels.

    ``levels`` lists (channels, pixels a cell) from the coarsest to the finest.
    """

    def __init__(
        self, in_channels: int, *, first_channels: int, most_channels: int, levels: Sequence[tuple[int, int]]
    ) -> None:
        super().__init__()
        # five layers whatever the configuration: two at full size, then three that halve it
        widths = [min(first_channels, most_channels)]
        for _ in range(3):
            widths.append(min(2 * widths[-1], most_channels))
        widths.append(most_channels)
        layers: list[nn.Module] = []
        made: list[tuple[int, int]] = []
        for i, width in enumerate(widths):
            kernel, stride = (3, 1) if i < 2 else (4, 2)
            layers.append(nn.Conv2d(in_channels, width, kernel, stride=stride, padding=1))
            made.append((width, 1 << max(i - 1, 0)))
            in_channels = width
        self.layers = nn.ModuleList(layers)
        # diffusers looks features up by their shape: of two alike the deeper one serves
        self.levels = list(levels)
        self.sources = [max((i for i, shape in enumerate(made) if shape == level), default=None) for level in levels]

    def forward(self, masked_image: Tensor) -> list[Tensor]:
        """(N, in_channels, H, W) -> one tensor a level. Raises ValueError where the configuration has none."""
        sources = self.wanted()
        features: dict[int, Tensor] = {}
        x = masked_image
        for i, layer in enumerate(self.layers[: max(sources) + 1]):
            x = layer(x if i == 0 else F.relu(x))
            features[i] = x
        return [features[source] for source in sources]

    def wanted(self) -> list[int]:
        """The layer that serves each level. Raises ValueError where the configuration has none."""
        sources: list[int] = []
        for (channels, cell), source in zip(self.levels, self.sources, strict=True):
            if source is None:
                raise ValueError(
                    f"this configuration can't decode with image and mask: the decoder has {channels} channels "
                    f"at 1/{cell} of the size, the condition encoder has not; leave image and mask out"
                )
            sources.append(source)
        return sources


def prepare_condition(
    z: Tensor, image: Tensor | None, mask: Tensor | None, *, factor: int, channels: int, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """What the decoder takes, from what a caller gives: both (N or 1, C, H, W) in ``dtype``, or neither.

    ``image``: (N or 1, channels, H, W), floating, in [-1, 1], with H and W ``factor`` times those of ``z``.
    ``mask``: (N or 1, 1 or 3, H, W) or (N or 1, H, W); bool, integer 0/1, or floating in [0, 1]; 1 is the hole.
    Raises ValueError, with the remedy, for anything else.
    """
    if image is None and mask is None:
        return None, None
    if image is None:
        raise ValueError("decode got a mask without an image; give the image whose known pixels are to stay")
    if mask is None:
        raise ValueError("decode got an image without a mask; give mask=1 where the hole is, or no image")
    if image.ndim != 4 or image.shape[1] != channels:
        raise ValueError(f"image has shape {tuple(image.shape)}; it must be (N, {channels}, H, W)")
    if not image.is_floating_point():
        raise ValueError(f"image is {image.dtype}; it must be floating in [-1, 1]: image / 127.5 - 1 for 0..255")
    size = (z.shape[-2] * factor, z.shape[-1] * factor)
    if tuple(image.shape[-2:]) != size:
        raise ValueError(
            f"image is {_size(image)} and the latent {_size(z)}; the image must be {factor} times the latent, "
            f"{size[0]}x{size[1]}: resize or pad it, and the mask with it"
        )
    mask = _one_channel(mask)
    if mask.shape[-2:] != image.shape[-2:]:
        raise ValueError(
            f"mask is {_size(mask)} and image {_size(image)}; resize the mask to the image (nearest or maximum)"
        )
    for name, tensor in (("image", image), ("mask", mask)):
        if tensor.shape[0] not in (1, z.shape[0]):
            raise ValueError(
                f"{name} has batch {tensor.shape[0]} and the latent {z.shape[0]}; give one a latent, or one for all"
            )
    return image.to(dtype), _zero_to_one(mask).to(dtype)


def _one_channel(mask: Tensor) -> Tensor:
    if mask.ndim == 3:
        return mask[:, None]
    if mask.ndim != 4 or mask.shape[1] not in (1, 3):
        raise ValueError(f"mask has shape {tuple(mask.shape)}; it must be (N, 1, H, W), (N, 3, H, W) or (N, H, W)")
    if mask.shape[1] == 3:
        if not bool((mask == mask[:, :1]).all()):
            raise ValueError("mask has 3 channels that differ; give one channel, or three equal ones")
        mask = mask[:, :1]
    return mask


def _zero_to_one(mask: Tensor) -> Tensor:
    # a bool needs no look at its values, which would make a GPU wait
    if mask.dtype == torch.bool:
        return mask
    if mask.is_complex() or not bool(((mask >= 0) & (mask <= 1)).all()):
        raise ValueError(
            f"mask is {mask.dtype} with values outside [0, 1]; 1 is the hole, 0 is known: mask > 127 for 0..255"
        )
    return mask


def _size(tensor: Tensor) -> str:
    return f"{tensor.shape[-2]}x{tensor.shape[-1]}"
