"""How many bytes one image takes at its peak, weights apart: from a configuration and a size alone.

Counted are the tensors that are alive together as this folder's code runs eagerly: a block's input lives until the
block returns, a norm's result until its activation is made, and so on; the most along the way is the peak. Faster forms
(fused, compiled) make fewer tensors: for them it is a bound. What an operation takes for itself isn't in it (on a CPU
oneDNN copies what isn't channels_last: a third more, where small widths were measured), nor what is given, but for its
copy in the network's dtype and memory format. A batch takes its size times as much. The tests hold this to what is
alive on torch's meta device: never below it, and at most a tenth above for the published configurations.
"""

from __future__ import annotations

import torch
from torch import nn

from .config import AutoencoderConfig

# Feature maps that are made at once, beside what the callers hold. Where that code changes, this does.
_NORM = 2  # a normalised map and its activation
_RESNET_END = 3  # a resnet's first half, and _NORM; or its two halves and their sum
_ATTENTION = 7  # normalised, copied for the linear layers, query, key, value, result, its projection
_MASKS = 2  # the mask in the network's dtype, and 1 - mask

# In strips (asymvae.model.tiling), in widths of the finest block: what rests at full size, and what a strip takes.
_RESTING = 2
_ENCODED_STRIP, _DECODED_STRIP = 3.3, 6.6


def weight_bytes(model: nn.Module) -> int:
    """Of parameters and buffers, as they are."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def encode_bytes(
    config: AutoencoderConfig, height: int, width: int, dtype: torch.dtype, *, rows: int | None = None
) -> int:
    """Peak of ``encode``, of an image of ``height`` x ``width`` pixels; ``rows``: in strips of so many, None: whole."""
    channels = config.down_block_out_channels
    peaks = []
    for i, made in enumerate(channels):
        entering = channels[max(i - 1, 0)]
        area = (height >> i) * (width >> i)
        peaks.append(_resnets(entering, made, config.layers_per_down_block) * area)
        if i < len(channels) - 1:
            padded = ((height >> i) + 1) * ((width >> i) + 1)
            peaks.append((entering + made) * area + made * padded + made * area // 4)
    if rows is not None:
        peaks = [_in_strips(channels[0], channels[0], _ENCODED_STRIP, height, width, rows)]
    peaks.append(_middle(channels[-1]) * (height * width // config.encoder_factor**2))
    return (max(peaks) + config.in_channels * height * width) * dtype.itemsize


def decode_bytes(
    config: AutoencoderConfig,
    height: int,
    width: int,
    dtype: torch.dtype,
    *,
    masked: bool = False,
    rows: int | None = None,
) -> int:
    """Peak of ``decode`` to an image of ``height`` x ``width`` pixels, with image and mask if ``masked``; ``rows``: in
    strips of so many, None: whole."""
    channels = config.up_block_out_channels[::-1]
    last = len(channels) - 1
    area = height * width
    latent = area // config.decoder_factor**2
    given = config.latent_channels * latent
    condition = _Condition(config, area) if masked else None
    peaks = [_middle(channels[0]) * latent]
    if condition is not None:
        given += (2 * config.out_channels + _MASKS) * area  # the image, and masked
        peaks = [condition.made(), _middle(channels[0]) * latent + condition.waiting(0)]
    for i, made in enumerate(channels):
        level = latent << (2 * i)
        entering = channels[max(i - 1, 0)]
        waiting = 0 if condition is None else condition.waiting(i + 1)
        if condition is not None:
            peaks.append(entering * level + condition.waiting(i))  # blended in place
        peaks.append(_resnets(entering, made, config.layers_per_up_block + 1) * level + waiting)
        if i < last:  # doubled, then convolved
            peaks.append((entering + made) * level + 2 * made * 4 * level + waiting)
    peaks.append((1 + _NORM) * channels[-1] * area)
    if rows is not None:
        peaks = [_in_strips(channels[-1], channels[max(last - 1, 0)], _DECODED_STRIP, height, width, rows)]
        peaks.append(_middle(channels[0]) * latent + (condition.reduced() if condition is not None else 0))
    return (max(peaks) + given) * dtype.itemsize


def _resnets(entering: int, made: int, layers: int) -> int:
    """Channels alive at once: the callers hold the block's input, and a resnet its own."""
    first = entering + max(_NORM * entering, entering + made, _RESNET_END * made)
    return first if layers == 1 else max(first, entering + made + _RESNET_END * made)


def _middle(channels: int) -> int:
    """Channels alive at once; the block's input, its first resnet's result, and the attention."""
    return (2 + _ATTENTION) * channels


class _Condition:
    """Numbers in what the condition encoder makes, by layer; its first layer's is made when it is blended in."""

    def __init__(self, config: AutoencoderConfig, area: int) -> None:
        channels = config.up_block_out_channels[::-1]
        last = len(channels) - 1
        first, most = channels[-1], channels[0]
        made = [(min(first << i, most), max(i - 1, 0)) for i in range(4)] + [(most, 3)]  # channels, halvings
        levels = [(channels[max(i - 1, 0)], last - i) for i in range(len(channels))] + [(channels[-1], 0)]
        self._sizes = [width * (area >> 2 * halvings) for width, halvings in made]
        # as condition.ConditionEncoder chooses them
        self._sources = [max((i for i, layer in enumerate(made) if layer == level), default=0) for level in levels]

    def made(self) -> int:
        """The most while they are made: those that are kept, what ReLU makes of the last one, and the next."""
        peaks = []
        for i in range(1, max(self._sources) + 1):
            kept = sum(self._sizes[j] for j in range(1, i) if j in self._sources)
            peaks.append(kept + self._sizes[i - 1] + self._sizes[i])
        return max(peaks, default=self._sizes[0])

    def waiting(self, level: int) -> int:
        """What is kept for this level and those after it."""
        return sum(self._sizes[source] for source in set(self._sources[level:]) - {0})

    def reduced(self) -> int:
        """Those that are smaller than the image: in strips all others are made late."""
        return sum(size for i, size in enumerate(self._sizes) if i > 1 and i in self._sources)


def _in_strips(finest: int, entering: int, strip: float, height: int, width: int, rows: int) -> int:
    """Numbers that rest at full size, and those of the strips that are at work."""
    resting = max(_RESTING * finest, entering)
    return round(width * (resting * height + strip * finest * min(rows, height)))
