"""The decoder's second input: the known pixels and the mask that says where the hole is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .convolution import Conv
from .winograd_forms import Rows


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
            layers.append(Conv(in_channels, width, kernel, stride=stride, padding=1))
            made.append((width, 1 << max(i - 1, 0)))
            in_channels = width
        self.layers = nn.ModuleList(layers)
        # diffusers looks features up by their shape: of two alike the deeper one serves
        self.levels = list(levels)
        self.sources = [max((i for i, shape in enumerate(made) if shape == level), default=None) for level in levels]

    def forward(self, masked_image: Tensor) -> dict[int, Tensor]:
        """(N, in_channels, H, W) -> what the layers make that a level asks for, but for the first layer's, by layer.

        The first layer's is the largest by far and the cheapest: :meth:`first` makes it again when its time has come.
        Raises ValueError where the configuration has no feature for a level.
        """
        sources = self.wanted()
        features: dict[int, Tensor] = {}
        x = self.first(masked_image)
        for i in range(1, max(sources) + 1):
            x = x.relu_() if not x.requires_grad and i - 1 not in features else F.relu(x)
            x = self.layers[i](x)
            if i in sources:
                features[i] = x
        return features

    def first(self, masked_image: Tensor) -> Tensor:
        """What the first layer makes: (N, in_channels, H, W) -> (N, first_channels, H, W)."""
        out: Tensor = self.layers[0](masked_image)
        return out

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


class Condition:
    """The known pixels of a batch, as :class:`~asymvae.model.decoder.Decoder` takes them, level by level.

    Everything that depends on image and mask alone is made here, once.
    """

    def __init__(self, encoder: ConditionEncoder, image: Tensor, mask: Tensor, index: Tensor | None) -> None:
        self._encoder = encoder
        self._index = index
        self._masked = (1 - mask) * image
        self._features = encoder(self._masked)
        self._known = 1 - (mask if index is None else mask[index])
        self._sources = encoder.wanted()

    def hole_rows(self, level: int, x: Tensor) -> Rows | None:
        """The rows of ``level`` that have a hole in some sample, one at least; None for all of them, and where that is
        not worth knowing: on a GPU the host would wait for it, and compiled code and gradients are of whole maps.
        ``x``: a map."""
        if x.device.type != "cpu" or x.requires_grad or torch.compiler.is_compiling():
            return None
        holes = (self._known_at(level) < 1).any(dim=3).any(dim=0)[0]
        found = torch.nonzero(holes)
        rows = (int(found[0]), int(found[-1]) + 1) if len(found) else (0, 1)
        return None if rows == (0, len(holes)) else rows

    def blend(self, level: int, x: Tensor, rows: Rows | None = None) -> Tensor:
        """``x`` (N, C, h, w) in the hole, the features of ``level`` outside it. ``rows``: ``x`` is of those alone, and
        what lies outside them is no hole. ``x`` is given up."""
        source = self._sources[level]
        if source == 0:
            feature = self._encoder.first(self._masked)
        elif source in self._sources[level + 1 :]:
            feature = self._features[source].clone() if rows is not None else self._features[source]
        else:
            feature = self._features.pop(source)
        if self._index is not None:
            feature = feature[self._index]
        feature, known = feature.to(x.dtype), self._known_at(level).to(x.dtype)  # autocast makes them of another
        # exact where the mask is 0 or 1
        if rows is None:
            return (
                torch.lerp(x, feature, known) if x.requires_grad or feature.requires_grad else x.lerp_(feature, known)
            )
        if feature.shape[0] != x.shape[0]:
            feature = feature.expand(x.shape[0], -1, -1, -1).contiguous(memory_format=_format(feature))
        chosen = slice(*rows)
        feature[:, :, chosen].lerp_(x, 1 - known[:, :, chosen])
        return feature

    def _known_at(self, level: int) -> Tensor:
        """(N or 1, 1, h, w): 1 - the mask, at a level's size."""
        cell = self._encoder.levels[level][1]
        return self._known if cell == 1 else self._known[:, :, ::cell, ::cell]  # as nearest interpolation picks


def _format(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def prepare_condition(
    z: Tensor,
    image: Tensor | None,
    mask: Tensor | None,
    index: Tensor | None = None,
    *,
    factor: int,
    channels: int,
    dtype: torch.dtype,
) -> tuple[Tensor | None, Tensor | None]:
    """What the decoder takes, from what a caller gives: both (M, C, H, W) in ``dtype``, or neither.

    ``image``: (M, channels, H, W), floating, in [-1, 1], with H and W ``factor`` times those of ``z``.
    ``mask``: (M, 1 or 3, H, W) or (M, H, W); bool, integer 0/1, or floating in [0, 1]; 1 is the hole.
    M is N, the number of latents, or 1; with ``index``, (N,) int64, that says which row serves each latent, both have
    the same M, any. Raises ValueError, with the remedy, for anything else; the index's values aren't looked at.
    """
    if image is None and mask is None:
        if index is not None:
            raise ValueError("decode got a condition_index without image and mask, whose rows it would choose from")
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
    if index is not None:
        if tuple(index.shape) != (z.shape[0],) or index.dtype != torch.int64 or mask.shape[0] != image.shape[0]:
            raise ValueError(
                f"condition_index is {tuple(index.shape)} {index.dtype} for {z.shape[0]} latents, {image.shape[0]} "
                f"images and {mask.shape[0]} masks; give an int64 a latent, and as many masks as images"
            )
        return image.to(dtype), _zero_to_one(mask).to(dtype)
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
