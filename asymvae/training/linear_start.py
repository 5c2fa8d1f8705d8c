"""Sets a new network's weights so that it begins as a linear autoencoder: the best block transform's coefficients for
latents, a smooth interpolation of them for an image, known pixels passed through. Training begins there instead of at
noise; with two cores that is the difference between minutes and days.

Three exact identities carry a linear map through layers that are not linear:

* a residual branch whose last convolution is zero adds nothing (the constructor of a run sets them so);
* silu(x) - silu(-x) = x, so a pair of channels +x and -x passes an activation;
* group normalisation divides by the group's deviation: beside two constant channels +K and -K, large against the
  pairs, that is a constant, and the pairs' mean is zero.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from asymvae.model.autoencoder import AsymmetricAutoencoderKL
from asymvae.training.linear import BlockTransform

# The constant channels' K, beside latents of deviation 1 and pixels in [-1, 1]: large enough that their share of the
# group's variance decides, small enough that a residual branch, which is normalised with them, still sees the pairs.
_K_LATENT = 16.0
_K_PIXEL = 4.0


@torch.no_grad()
def start_linear(model: AsymmetricAutoencoderKL, transform: BlockTransform) -> None:
    """``encode(x).mean`` becomes ``transform.encode(x)``, to a percent; ``decode`` interpolates its block means.

    Raises ValueError where the widths are too small to hold it.
    """
    check_widths(model)
    _start_encoder(model, transform)
    _start_decoder(model, transform)
    # the condition branch's first layer hands the known pixels to the output layers as they are
    _lay_out(model, "decoder.condition_encoder.layers.0")


def check_widths(model: AsymmetricAutoencoderKL) -> None:
    config, k = model.config, model.config.latent_channels
    down, up, groups = config.down_block_out_channels, config.up_block_out_channels, config.norm_num_groups
    needs = [
        ("network.down_block_out_channels[0]", down[0], 12),
        ("network.down_block_out_channels[1]", down[1], 4 * k),
        ("network.down_block_out_channels[3] / norm_num_groups", down[3] // groups, 2 * k + 2),
        ("network.up_block_out_channels[0] / norm_num_groups", up[0] // groups, 4),
        ("network.norm_num_groups", groups, 3),
    ]
    if lacking := [f"{name} is {width} and must be at least {least}" for name, width, least in needs if width < least]:
        raise ValueError("autoencoder.linear_start doesn't fit this network: " + "; ".join(lacking))
    if down[2] != down[3] or up[2] != up[3]:
        raise ValueError(
            "autoencoder.linear_start needs the two widths nearest to the latent to be equal, on each side"
        )


def _start_encoder(model: AsymmetricAutoencoderKL, transform: BlockTransform) -> None:
    k, size = model.config.latent_channels, model.config.down_block_out_channels[3] // model.config.norm_num_groups
    _identity(model, "encoder.conv_in", 3)
    for level in range(4):
        _carry(model, f"encoder.down_blocks.{level}", max(12, 4 * k))
    # to half the size: the 12 values of 2x2 pixels, channel 4 colour + 2 y + x
    weight, _ = _cleared(model, "encoder.down_blocks.0.downsamplers.0.conv", 12)
    for c, y, x in itertools.product(range(3), range(2), range(2)):
        weight[4 * c + 2 * y + x, c, y, x] = 1
    # to a quarter: what each quadrant of a block adds to each coefficient, channel 4 coefficient + 2 top + left
    rows = transform.components / transform.scale[:, None]  # over (colour, y, x) of 8x8 pixels
    quadrants = rows.view(k, 3, 2, 2, 2, 2, 2, 2)  # (k, colour, top, i, y, left, j, x)
    quadrants = quadrants.permute(0, 2, 5, 1, 4, 7, 3, 6).reshape(4 * k, 12, 2, 2)
    weight, _ = _cleared(model, "encoder.down_blocks.1.downsamplers.0.conv", 4 * k)
    weight[: 4 * k, :12, :2, :2] = quadrants
    # to an eighth: their sum, as a pair, and the two constants
    weight, bias = _cleared(model, "encoder.down_blocks.2.downsamplers.0.conv", 2 * k + 2)
    for n, top, left in itertools.product(range(k), range(2), range(2)):
        weight[n, 4 * n + 2 * top + left, top, left] = 1
        weight[k + n, 4 * n + 2 * top + left, top, left] = -1
    offset = rows @ transform.mean
    bias[: 2 * k + 2] = torch.cat([-offset, offset, torch.tensor([_K_LATENT, -_K_LATENT])])
    # the channels beside them share the group; small, they leave its deviation to the constants
    weight[2 * k + 2 : size] *= 0.1
    _silence_attention(model, "encoder")
    _pass_pairs(model, "encoder", list(range(2 * k)), [2 * k, 2 * k + 1], _K_LATENT * (2 / size) ** 0.5)
    weight, _ = _cleared(model, "encoder.conv_out", k)
    for n in range(k):
        weight[n, n, 1, 1], weight[n, k + n, 1, 1] = 1, -1
    _identity(model, "quant_conv", k)


def _start_decoder(model: AsymmetricAutoencoderKL, transform: BlockTransform) -> None:
    k, size = model.config.latent_channels, _group(model)
    _identity(model, "post_quant_conv", k)
    # block means of R, G, B, from the coefficients
    weight, bias = _cleared(model, "decoder.conv_in", 3)
    weight[:3, :, 1, 1] = (transform.components * transform.scale[:, None]).view(k, 3, -1).mean(2).T
    bias[:3] = transform.mean.view(3, -1).mean(1)
    _silence_attention(model, "decoder")
    kernel = torch.tensor([0.25, 0.5, 0.25])  # after nearest: linear interpolation between the centres
    for level in range(3):
        _carry(model, f"decoder.up_blocks.{level}", 3)
        weight, _ = _cleared(model, f"decoder.up_blocks.{level}.upsamplers.0.conv", 3)
        for c in range(3):
            weight[c, c] = torch.outer(kernel, kernel)
    _lay_out(model, "decoder.up_blocks.3.resnets.0.conv_shortcut")
    pairs = [c * size + i for c in range(3) for i in range(2)]
    _pass_pairs(model, "decoder", pairs, [channel + 2 for channel in pairs], _K_PIXEL * (2 / size) ** 0.5)
    weight, _ = _cleared(model, "decoder.conv_out", 3)
    for c in range(3):
        weight[c, c * size, 1, 1], weight[c, c * size + 1, 1, 1] = 1, -1


def _lay_out(model: AsymmetricAutoencoderKL, name: str) -> None:
    """R, G, B in; out the decoder's last features: in each of the first three groups +x, -x, +K, -K of a colour."""
    size = _group(model)
    weight, bias = _conv(model, name)
    middle = weight.shape[-1] // 2
    for c in range(3):
        first = c * size
        weight[first : first + 4] = 0
        weight[first, c, middle, middle], weight[first + 1, c, middle, middle] = 1, -1
        bias[first : first + 4] = torch.tensor([0, 0, _K_PIXEL, -_K_PIXEL])
        weight[first + 4 : first + size] *= 0.1


def _group(model: AsymmetricAutoencoderKL) -> int:
    """Channels of a group of the decoder's last normalisation."""
    return model.config.up_block_out_channels[0] // model.config.norm_num_groups


def _pass_pairs(
    model: AsymmetricAutoencoderKL, side: str, pairs: list[int], constants: list[int], deviation: float
) -> None:
    weight = model.get_parameter(f"{side}.conv_norm_out.weight")
    weight[pairs] = deviation
    weight[constants] = 0  # or their large values would shake the output with every step


def _carry(model: AsymmetricAutoencoderKL, block: str, channels: int) -> None:
    """The first ``channels`` pass a block's shortcut, if it has one, unchanged."""
    name = f"{block}.resnets.0.conv_shortcut"
    if f"{name}.weight" in dict(model.named_parameters()):
        _identity(model, name, min(channels, *_conv(model, name)[0].shape[:2]))


def _silence_attention(model: AsymmetricAutoencoderKL, side: str) -> None:
    """As the resnets beside it, which add nothing already."""
    for tensor in _conv(model, f"{side}.mid_block.attentions.0.to_out.0"):
        tensor.zero_()


def _identity(model: AsymmetricAutoencoderKL, name: str, channels: int) -> None:
    weight, _ = _cleared(model, name, channels)
    middle = weight.shape[-1] // 2
    weight[range(channels), range(channels), middle, middle] = 1


def _cleared(model: AsymmetricAutoencoderKL, name: str, channels: int) -> tuple[Tensor, Tensor]:
    weight, bias = _conv(model, name)
    weight[:channels] = 0
    bias[:channels] = 0
    return weight, bias


def _conv(model: AsymmetricAutoencoderKL, name: str) -> tuple[Tensor, Tensor]:
    return model.get_parameter(f"{name}.weight"), model.get_parameter(f"{name}.bias")
