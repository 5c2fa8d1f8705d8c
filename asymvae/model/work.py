"""How much work the network is: floating-point operations and memory traffic, by part, from a configuration alone.

Counted is the architecture as published, whatever a faster form of it leaves out: so shares of a machine's peak and
ratios between implementations mean the same thing everywhere. A multiply-add is 2 FLOPs. Convolutions, linear layers
and attention's two products count; normalisations, activations, additions and blends (under 1% together) do not.
``torch.utils.flop_counter`` counts the same, and the tests hold both to each other.

Traffic is that of a pass that is fused well: a convolution reads its input and its weights and writes its output, its
bias, residual and ReLU included; a normalisation with its SiLU reads and writes once, for its sums are taken where its
input was written; attention reads q, k and v and writes its result; the enlarged image of an upsampling is written and
read; a blend reads both its inputs and writes one. Caches are taken to hold nothing from one of these to the next.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .config import AutoencoderConfig


@dataclass(frozen=True, slots=True)
class Work:
    """Of a part, for one image: ``flops``; ``elements`` of feature maps read and written; ``weights``, the numbers
    that are read once a batch."""

    flops: int = 0
    elements: int = 0
    weights: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.elements + other.elements, self.weights + other.weights)

    def traffic(self, batch: int = 1, element_bytes: int = 2) -> int:
        """Bytes moved by a batch; an element has 2 bytes in bfloat16 and float16."""
        return element_bytes * (batch * self.elements + self.weights)


def total(parts: dict[str, Work]) -> Work:
    return _sum(parts.values())


def encode_work(config: AutoencoderConfig, height: int, width: int) -> dict[str, Work]:
    """By part, in order: ``in``, ``down 0`` (at the image's size) and on, ``middle``, ``out``. ``height`` and
    ``width`` are the image's, in pixels, and multiples of the encoder's factor."""
    channels = config.down_block_out_channels
    area = height * width
    parts = {"in": _conv(config.in_channels, channels[0], area, area)}
    for i, made in enumerate(channels):
        block = _resnets(channels[max(i - 1, 0)], made, config.layers_per_down_block, area)
        if i < len(channels) - 1:
            block += _conv(made, made, area, area // 4)
            area //= 4
        parts[f"down {i}"] = block
    moments = 2 * config.latent_channels
    parts["middle"] = _middle(channels[-1], area)
    parts["out"] = _norm(channels[-1], area) + _conv(channels[-1], moments, area, area)
    parts["out"] += _conv(moments, moments, area, area, kernel=1)
    return parts


def decode_work(config: AutoencoderConfig, height: int, width: int, *, masked: bool = False) -> dict[str, Work]:
    """By part, in order: ``in``, ``middle``, ``up 0`` (at the latent's size) and on, ``out``; with image and mask
    (``masked``) also ``condition``, and the blends in the block that they go into. ``height`` and ``width`` are the
    image's, in pixels, and multiples of the decoder's factor."""
    channels = config.up_block_out_channels[::-1]
    area = height * width // config.decoder_factor**2
    parts: dict[str, Work] = {}
    if masked:
        parts["condition"] = _condition(config, height, width)
    parts["in"] = _conv(config.latent_channels, config.latent_channels, area, area, kernel=1)
    parts["in"] += _conv(config.latent_channels, channels[0], area, area)
    parts["middle"] = _middle(channels[0], area)
    for i, made in enumerate(channels):
        entering = channels[max(i - 1, 0)]
        block = _blend(entering, area) if masked else Work()
        block += _resnets(entering, made, config.layers_per_up_block + 1, area)
        if i < len(channels) - 1:
            block += Work(elements=made * area) + Work(elements=made * 4 * area)  # nearest
            area *= 4
            block += _conv(made, made, area, area)
        parts[f"up {i}"] = block
    parts["out"] = _blend(channels[-1], area) if masked else Work()
    parts["out"] += _norm(channels[-1], area) + _conv(channels[-1], config.out_channels, area, area)
    return parts


def _conv(taken: int, made: int, area_in: int, area_out: int, *, kernel: int = 3, residual: bool = False) -> Work:
    weights = taken * made * kernel**2
    elements = taken * area_in + made * area_out * (2 if residual else 1)
    return Work(2 * weights * area_out, elements, weights)


def _norm(channels: int, area: int) -> Work:
    return Work(elements=2 * channels * area)


def _blend(channels: int, area: int) -> Work:
    return Work(elements=3 * channels * area)


def _resnets(taken: int, made: int, layers: int, area: int) -> Work:
    return _sum(_resnet(taken if layer == 0 else made, made, area) for layer in range(layers))


def _resnet(taken: int, made: int, area: int) -> Work:
    work = _norm(taken, area) + _conv(taken, made, area, area)
    work += _norm(made, area) + _conv(made, made, area, area, residual=True)
    return work if taken == made else work + _conv(taken, made, area, area, kernel=1)


def _middle(channels: int, area: int) -> Work:
    linear = [_conv(channels, channels, area, area, kernel=1, residual=last) for last in (False, False, False, True)]
    products = Work(flops=2 * 2 * area * area * channels, elements=4 * channels * area)
    return _resnets(channels, channels, 2, area) + _norm(channels, area) + _sum(linear) + products


def _condition(config: AutoencoderConfig, height: int, width: int) -> Work:
    """Five layers whatever the configuration: two at full size, then three that halve it."""
    first, most = config.up_block_out_channels[0], config.up_block_out_channels[-1]
    work, taken, area = Work(), config.out_channels, height * width
    for i in range(5):
        made = most if i == 4 else min(first << i, most)
        cell = 1 << max(i - 1, 0)
        smaller = (height // cell) * (width // cell)
        work += _conv(taken, made, area, smaller, kernel=3 if i < 2 else 4)
        taken, area = made, smaller
    return work


def _sum(works: Iterable[Work]) -> Work:
    return sum(works, Work())
