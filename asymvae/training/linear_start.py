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

import torch
from torch import Tensor, nn

from asymvae.model.autoencoder import AsymmetricAutoencoderKL
from asymvae.model.blocks import GroupNorm
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
    start_condition(model)


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
    encoder, k = model.encoder, model.config.latent_channels
    half, quarter, eighth = (block.downsamplers[0].conv for block in list(encoder.down_blocks)[:3])
    # rows are over (colour, y, x) of the 8x8 block
    rows = (transform.components / transform.scale[:, None]).view(k, 3, 8, 8)
    offset = (transform.components / transform.scale[:, None]) @ transform.mean
    _identity(encoder.conv_in, 3)
    for block in encoder.down_blocks:
        _carry(block, max(12, 4 * k))
    # to half the size: the 12 values of 2x2 pixels, channel 4c + 2y + x
    half.weight[:12] = 0
    half.bias[:12] = 0
    for c in range(3):
        for y in range(2):
            for x in range(2):
                half.weight[4 * c + 2 * y + x, c, y, x] = 1
    # to a quarter: what each quadrant of a block adds to each coefficient, channel 4k' + 2Y + X
    quarter.weight[: 4 * k] = 0
    quarter.bias[: 4 * k] = 0
    for n in range(k):
        for top in range(2):
            for left in range(2):
                part = rows[n, :, 4 * top : 4 * top + 4, 4 * left : 4 * left + 4]  # (3, 4, 4) = (c, 2i + y, 2j + x)
                part = part.view(3, 2, 2, 2, 2).permute(0, 2, 4, 1, 3)  # (c, y, x, i, j)
                quarter.weight[4 * n + 2 * top + left, :12, :2, :2] = part.reshape(12, 2, 2)
    # to an eighth: their sum, as a pair, and the two constants
    eighth.weight[: 2 * k + 2] = 0
    eighth.bias[: 2 * k + 2] = 0
    for n in range(k):
        for top in range(2):
            for left in range(2):
                eighth.weight[n, 4 * n + 2 * top + left, top, left] = 1
                eighth.weight[k + n, 4 * n + 2 * top + left, top, left] = -1
        eighth.bias[n], eighth.bias[k + n] = -offset[n], offset[n]
    eighth.bias[2 * k], eighth.bias[2 * k + 1] = _K_LATENT, -_K_LATENT
    _silence_middle(encoder.mid_block)
    # the channels beside the pairs share the first group; small, they leave its deviation to the constants
    size = model.config.down_block_out_channels[3] // model.config.norm_num_groups
    eighth.weight[2 * k + 2 : size] *= 0.1
    _pass_pairs(encoder.conv_norm_out, range(2 * k), range(2 * k, 2 * k + 2), _K_LATENT * (2 / size) ** 0.5)
    encoder.conv_out.weight[:k] = 0
    encoder.conv_out.bias[:k] = 0
    for n in range(k):
        encoder.conv_out.weight[n, n, 1, 1], encoder.conv_out.weight[n, k + n, 1, 1] = 1, -1
    model.quant_conv.weight[:k] = 0
    model.quant_conv.weight[range(k), range(k)] = 1
    model.quant_conv.bias[:k] = 0


def _start_decoder(model: AsymmetricAutoencoderKL, transform: BlockTransform) -> None:
    decoder, k = model.decoder, model.config.latent_channels
    _identity(model.post_quant_conv, k)
    # block means of R, G, B, from the coefficients
    means = (transform.components * transform.scale[:, None]).view(k, 3, -1).mean(2).T
    decoder.conv_in.weight[:3] = 0
    decoder.conv_in.weight[:3, :, 1, 1] = means
    decoder.conv_in.bias[:3] = transform.mean.view(3, -1).mean(1)
    _silence_middle(decoder.mid_block)
    kernel = torch.tensor([0.25, 0.5, 0.25])  # after nearest: linear interpolation between the centres
    for block in list(decoder.up_blocks)[:-1]:
        _carry(block, 3)
        conv = block.upsamplers[0].conv
        conv.weight[:3] = 0
        conv.bias[:3] = 0
        for c in range(3):
            conv.weight[c, c] = torch.outer(kernel, kernel)
    shortcut = decoder.up_blocks[-1].resnets[0].conv_shortcut
    _lay_out(shortcut, model)
    pairs, constants, size = _layout(model)
    _pass_pairs(decoder.conv_norm_out, pairs, constants, _K_PIXEL * (2 / size) ** 0.5)
    decoder.conv_out.weight.zero_()
    decoder.conv_out.bias.zero_()
    for c in range(3):
        decoder.conv_out.weight[c, c * size, 1, 1], decoder.conv_out.weight[c, c * size + 1, 1, 1] = 1, -1


@torch.no_grad()
def start_condition(model: AsymmetricAutoencoderKL) -> None:
    """The condition branch's first layer hands the known pixels to the output layers as they are."""
    _lay_out(model.decoder.condition_encoder.layers[0], model)


def _layout(model: AsymmetricAutoencoderKL) -> tuple[list[int], list[int], int]:
    """Of the decoder's last features: channels of the pairs +R -R +G -G +B -B, of the constants, and a group's size."""
    size = model.config.up_block_out_channels[0] // model.config.norm_num_groups
    pairs = [c * size + i for c in range(3) for i in range(2)]
    return pairs, [channel + 2 for channel in pairs], size


def _lay_out(conv: nn.Conv2d, model: AsymmetricAutoencoderKL) -> None:
    """Three channels in, R G B; out the pairs and constants, one colour a group."""
    _, _, size = _layout(model)
    assert conv.bias is not None
    middle = conv.kernel_size[0] // 2
    for c in range(3):
        group = slice(c * size, c * size + 4)
        conv.weight[group] = 0
        conv.weight[c * size, c, middle, middle], conv.weight[c * size + 1, c, middle, middle] = 1, -1
        conv.bias[group] = torch.tensor([0, 0, _K_PIXEL, -_K_PIXEL])
        conv.weight[c * size + 4 : (c + 1) * size] *= 0.1


def _pass_pairs(norm: GroupNorm, pairs: range | list[int], constants: range | list[int], deviation: float) -> None:
    norm.weight[list(pairs)] = deviation
    norm.weight[list(constants)] = 0  # or their large values would shake the output with every step


def _carry(block: nn.Module, channels: int) -> None:
    """The first ``channels`` pass a block's shortcuts unchanged."""
    for resnet in block.resnets:
        if resnet.conv_shortcut is not None:
            _identity(resnet.conv_shortcut, min(channels, *resnet.conv_shortcut.weight.shape[:2]))


def _identity(conv: nn.Conv2d, channels: int) -> None:
    middle = conv.kernel_size[0] // 2
    conv.weight[:channels] = 0
    conv.weight[range(channels), range(channels), middle, middle] = 1
    assert conv.bias is not None
    conv.bias[:channels] = 0


def _silence_middle(middle: nn.Module) -> None:
    """Its resnets add nothing already; nor shall its attention."""
    out: Tensor = middle.attentions[0].to_out[0].weight
    out.zero_()
    middle.attentions[0].to_out[0].bias.zero_()
