"""Encoding and decoding in strips of rows: the untiled result to rounding, in a fraction of its memory.

The modules of encoder and decoder are run layer by layer. The middle block runs on the whole latent, its attention
too. Everything else runs strip by strip: convolutions see a row above and below, group norms the statistics of
the whole map, so that there are no seams and nothing to blend. Every convolution's row is computed once.

**Memory.** What is alive of full size is a resnet's input and what is between its two convolutions; each is given up
strip by strip as the next is made. With C channels and a level of 1/k of the size that is 2 C / k^2 numbers a pixel of
the image, or C for what an upsampling to full size leaves: in the published models both are twice the first width of
the encoder, and the last of the decoder. Bytes a pixel of the image, for 2-byte numbers (twice that in float32):

                             in strips      untiled, for comparison
    encode                   512 + 830 s    1280
    decode, x-1-5            768 + 2400 s   2304   (x-2: 4/3 of both)
      with image and mask    768 + 2400 s   2896

where s is a strip's share of the image's height. Weights aren't in it, nor what an operation takes for itself.

Decoding with image and mask computes the condition encoder's two layers of full size once more, when they are blended
in (4% of the work of x-1-5); those of reduced size are kept until then.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .blocks import Attention, MiddleBlock, ResnetBlock
from .condition import ConditionEncoder
from .convolution import convolve_rows
from .decoder import Decoder
from .encoder import Encoder
from .strips import Held, Strips, convolve, split, upsample

# Of the image. With small widths on two cores 2^15 and 2^16 take the least time, 0.8 of the untiled, and 2^18 0.9 to 1;
# a GPU, which is not measured yet, wants fewer and larger operations.
_STRIP_PIXELS = 2**18
_SCORE_BYTES = 2**28


@dataclass(frozen=True)
class Tiling:
    """How an image is cut: ``rows`` of it in a strip (None: about 2^18 pixels), and where the strips rest."""

    rows: int | None = None
    offload: bool = False

    def cells(self, latent: tuple[int, int], factor: int) -> int | None:
        """Rows of the latent in a strip; None where one strip holds it all, and nothing is to be cut."""
        height, width = latent
        rows = _STRIP_PIXELS // (width * factor) if self.rows is None else self.rows
        cells = max(1, rows // factor)
        return cells if cells < height else None


def encode(encoder: Encoder, x: Tensor, *, cells: int, offload: bool) -> Tensor:
    """``encoder(x)``: (N, channels, H, W) -> (N, 2 * latent_channels, h, w); ``cells``: rows of the latent a strip."""
    factor = 1 << (len(encoder.down_blocks) - 1)
    strips = convolve(encoder.conv_in, split(x, cells * factor))
    block: Any
    for block in encoder.down_blocks:
        strips = _resnets(block.resnets, strips, offload)
        for sampler in block.downsamplers or ():
            strips = convolve(sampler.conv, strips)
    whole = _middle(encoder.mid_block, torch.cat(list(strips), dim=2))
    out: Tensor = encoder.conv_out(F.silu(encoder.conv_norm_out(whole)))
    return out


def decode(
    decoder: Decoder, z: Tensor, image: Tensor | None, mask: Tensor | None, *, cells: int, offload: bool
) -> Tensor:
    """``decoder(z, image, mask)``: (N, latent_channels, h, w) -> (N, out_channels, h * f, w * f)."""
    factor = 1 << (len(decoder.up_blocks) - 1)
    condition = None
    if image is not None and mask is not None:
        condition = _Condition(decoder.condition_encoder, image, mask, rows=cells * factor, offload=offload)
    strips = split(_middle(decoder.mid_block, decoder.conv_in(z)), cells)
    block: Any
    for level, block in enumerate(decoder.up_blocks):
        if condition is not None:
            strips = condition.blend(level, strips)
        strips = _resnets(block.resnets, strips, offload)
        for sampler in block.upsamplers or ():
            strips = upsample(sampler, strips)
    if condition is not None:
        strips = condition.blend(len(decoder.up_blocks), strips)
    norm, conv = decoder.conv_norm_out, decoder.conv_out
    held = Held(strips, groups=norm.num_groups, offload=offload)
    # the last activation is SiLU whatever act_fn says, as in the decoder
    return torch.cat([convolve_rows(conv, rows) for _, rows in held.normalise(norm, F.silu, drain=True)], dim=2)


def _resnets(resnets: Iterable[Any], strips: Strips, offload: bool) -> Strips:
    for resnet in resnets:
        strips = _resnet(resnet, strips, offload)
    return strips


def _resnet(block: ResnetBlock, strips: Strips, offload: bool) -> Strips:
    x = Held(strips, groups=block.norm1.num_groups, offload=offload)
    hidden = Held(groups=block.norm2.num_groups, offload=offload)
    residual = x if block.conv_shortcut is None else Held(offload=offload)  # the latter takes x's place at once
    for strip, rows in x.normalise(block.norm1, block.act, drain=block.conv_shortcut is not None):
        hidden.append(convolve_rows(block.conv1, rows))
        if block.conv_shortcut is not None:
            residual.append(block.conv_shortcut(strip))
        del strip, rows  # before the next are made
    rest = residual.drain()
    for _, rows in hidden.normalise(block.norm2, block.act, drain=True):
        out = convolve_rows(block.conv2, rows).add_(next(rest))
        del _, rows
        yield out
        del out


class _Condition:
    """The known pixels' features, strip by strip, blended in where the mask says so.

    Features of full size are made when they are asked for; those of reduced size are made once, here, and kept.
    """

    def __init__(self, encoder: ConditionEncoder, image: Tensor, mask: Tensor, *, rows: int, offload: bool) -> None:
        self._image, self._mask, self._rows = image, mask, rows
        self._layers: list[Any] = list(encoder.layers)  # convolutions
        self._sources = encoder.wanted()
        self._kept = {source: Held(offload=offload) for source in self._sources if self._cell(source) > 1}
        if self._kept:
            for _ in self._features(max(self._kept), keep=True):
                pass

    def blend(self, level: int, strips: Strips) -> Strips:
        """``strips`` in the hole, the features of ``level`` outside it."""
        source = self._sources[level]
        cell = self._cell(source)
        known = self._kept[source].drain() if source in self._kept else self._features(source)
        masks = split(self._mask[:, :, ::cell, ::cell], self._rows // cell)  # as nearest interpolation picks
        for strip in strips:
            mask = next(masks).to(strip.dtype)  # autocast makes strips of another
            yield torch.lerp(next(known), strip, mask, out=strip)  # exact where the mask is 0 or 1
            del strip

    def _features(self, source: int, *, keep: bool = False) -> Strips:
        """What layer ``source`` makes of the masked image."""
        pixels = zip(split(self._image, self._rows), split(self._mask, self._rows), strict=True)
        strips: Strips = ((1 - mask) * image for image, mask in pixels)
        for i, layer in enumerate(self._layers[: source + 1]):
            strips = convolve(layer, strips if i == 0 else map(F.relu, strips))
            if keep and i in self._kept:
                strips = _tap(strips, self._kept[i])
        return strips

    def _cell(self, source: int) -> int:
        """Pixels of the image, a side, for one of layer ``source``."""
        return math.prod(int(layer.stride[0]) for layer in self._layers[: source + 1])


def _tap(strips: Strips, into: Held) -> Strips:
    for strip in strips:
        into.append(strip)
        yield strip


def _middle(block: MiddleBlock, x: Tensor) -> Tensor:
    attention: Any = block.attentions[0]
    out: Tensor = block.resnets[1](_attend(attention, block.resnets[0](x)))
    return out


def _attend(attention: Attention, x: Tensor) -> Tensor:
    """``attention(x)``. Where torch has no fused kernel for it, some queries at a time: no scores of all with all."""
    batch, channels, height, width = x.shape
    hidden = attention.group_norm(x).flatten(2).transpose(1, 2)[:, None]  # (N, 1, H*W, C)
    query, key, value = attention.to_q(hidden), attention.to_k(hidden), attention.to_v(hidden)
    hidden = torch.cat(
        [F.scaled_dot_product_attention(part, key, value) for part in _queries(query, key, value)], dim=2
    )
    hidden = attention.to_out[0](hidden)[:, 0].transpose(1, 2)
    out: Tensor = x + hidden.reshape(batch, channels, height, width)
    return out


def _queries(query: Tensor, key: Tensor, value: Tensor) -> Iterator[Tensor]:
    count = query.shape[2]
    if torch._fused_sdp_choice(query, key, value) == 0:  # SDPBackend.MATH, which makes all scores at once
        count = max(1, _SCORE_BYTES // (4 * query.shape[0] * key.shape[2]))
    return iter(torch.split(query, count, dim=2))
