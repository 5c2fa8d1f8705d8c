"""How many bytes one image takes at its peak, weights apart: from a configuration and a size alone.

Counted are the tensors that are alive together as this folder's code runs eagerly: a block's input lives until the
block returns, a norm's result until its activation is made, and so on; the most along the way is the peak. Faster forms
(fused, compiled) make fewer tensors: for them it is a bound. What an operation takes for itself isn't in it (on a CPU
oneDNN copies what isn't channels_last: a third more, where small widths were measured), nor the image, the mask and the
latent that are given. A batch takes its size times as much. The tests hold this to what is alive on torch's meta
device: never below it, and at most a tenth above for the published configurations.
"""

from __future__ import annotations

import torch
from torch import nn

from .config import AutoencoderConfig

# Feature maps that are made at once, beside what the callers hold. Where that code changes, this does.
_NORM = 2  # a normalised map and its activation
_RESNET_END = 3  # a resnet's first half, and _NORM; or its two halves and their sum
_ATTENTION = 7  # normalised, copied for the linear layers, query, key, value, result, its projection
_BLEND = 4  # the known features, both products, their sum
_UNBLENDED = 1  # what was blended is held while the block that takes the blend runs
_MASKS = 2  # the mask in the network's dtype, and 1 - mask
_CONDITION = 3  # layers of full size and what ReLU makes of one

# In strips (asymvae.model.tiling), in widths of the finest block: what rests at full size, and what a strip takes.
_RESTING = 2
_ENCODED_STRIP, _DECODED_STRIP, _MASKED_STRIP = 3.3, 6.6, 9.7


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
    return max(peaks) * dtype.itemsize


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
    latent = height * width // config.decoder_factor**2
    features = _features(config, height * width) if masked else [0] * (len(channels) + 1)
    given = config.latent_channels * latent + (_MASKS * height * width if masked else 0)
    peaks = [_middle(channels[0]) * latent + sum(features)]
    if masked:
        peaks.append(channels[0] * latent + _CONDITION * channels[-1] * height * width + sum(features))
    for i, made in enumerate(channels):
        area = latent << (2 * i)
        entering = channels[max(i - 1, 0)]
        waiting = sum(features[i + 1 :])
        if masked:
            peaks.append((1 + _BLEND) * entering * area + waiting)
            waiting += _UNBLENDED * entering * area
        peaks.append(_resnets(entering, made, config.layers_per_up_block + 1) * area + waiting)
        if i < last:  # doubled, then convolved
            peaks.append((entering + made) * area + 2 * made * 4 * area + waiting)
    end = 1 + max(_NORM, _BLEND) if masked else 1 + _NORM
    peaks.append(end * channels[-1] * height * width)
    if rows is not None:
        strip = _MASKED_STRIP if masked else _DECODED_STRIP
        peaks = [_in_strips(channels[-1], channels[max(last - 1, 0)], strip, height, width, rows)]
        peaks.append(_middle(channels[0]) * latent + sum(features[:-2]))  # those of full size are made late
    return (max(peaks) + given) * dtype.itemsize


def _resnets(entering: int, made: int, layers: int) -> int:
    """Channels alive at once: the callers hold the block's input, and a resnet its own."""
    first = entering + max(_NORM * entering, entering + made, _RESNET_END * made)
    return first if layers == 1 else max(first, entering + made + _RESNET_END * made)


def _middle(channels: int) -> int:
    """Channels alive at once; the block's input, its first resnet's result, and the attention."""
    return (2 + _ATTENTION) * channels


def _features(config: AutoencoderConfig, area: int) -> list[int]:
    """Numbers in each known feature: what is blended in before each up block, and before the output."""
    channels = config.up_block_out_channels[::-1]
    last = len(channels) - 1
    sizes = [channels[max(i - 1, 0)] * (area >> 2 * (last - i)) for i in range(len(channels))]
    return [*sizes, channels[-1] * area]


def _in_strips(finest: int, entering: int, strip: float, height: int, width: int, rows: int) -> int:
    """Numbers that rest at full size, and those of the strips that are at work."""
    resting = max(_RESTING * finest, entering)
    return round(width * (resting * height + strip * finest * min(rows, height)))
