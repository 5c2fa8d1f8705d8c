"""The network as training begins: its widths from the settings, its encoder perhaps from a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from asymvae.model.autoencoder import AsymmetricAutoencoderKL
from asymvae.model.blocks import ResnetBlock
from asymvae.model.checkpoint import Checkpoint, CheckpointError
from asymvae.training.config import NetworkSettings

_DOWN, _UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
# What the second stage leaves as it is, in the paper's training too.
_KEPT = ("encoder.", "quant_conv.", "post_quant_conv.")
# Of a new encoder's posterior: far below the latents' own deviation of 1, so that a draw is no worse than the mode.
_LOGVAR = -10.0


def new_model(network: NetworkSettings, *, sample_size: int, seed: int) -> AsymmetricAutoencoderKL:
    """Random weights from ``seed``, every residual branch at zero: the network begins as its shortcuts, which are
    linear, and learns what lies beyond. With ``network.encoder`` that checkpoint's encoder, and its scaling_factor.

    Raises FileNotFoundError or CheckpointError where there is no such encoder.
    """
    taken: dict[str, torch.Tensor] = {}
    encoder: dict[str, Any] = {
        "down_block_out_channels": network.down_block_out_channels,
        "layers_per_down_block": network.layers_per_down_block,
        "latent_channels": network.latent_channels,
        "norm_num_groups": network.norm_num_groups,
    }
    if network.encoder is not None:
        encoder, taken = _read_encoder(network.encoder, network.encoder_subfolder)
        _check_fit(network, encoder)
    torch.manual_seed(seed)
    model = AsymmetricAutoencoderKL(
        down_block_types=(_DOWN,) * len(encoder["down_block_out_channels"]),
        up_block_types=(_UP,) * len(network.up_block_out_channels),
        up_block_out_channels=network.up_block_out_channels,
        layers_per_up_block=network.layers_per_up_block,
        sample_size=sample_size,
        **encoder,
    )
    for module in model.modules():
        if isinstance(module, ResnetBlock):
            nn.init.zeros_(module.conv2.weight)
            assert module.conv2.bias is not None
            nn.init.zeros_(module.conv2.bias)
    with torch.no_grad():
        moments = model.quant_conv
        assert moments.bias is not None
        moments.weight[model.config.latent_channels :] = 0
        moments.bias[model.config.latent_channels :] = _LOGVAR
    if taken:
        expected = {name for name in model.state_dict() if name.startswith(_KEPT)}
        # more than expected is as wrong: another architecture, of which a part would be left out unsaid
        for what, names in (("lacks", expected - taken.keys()), ("has no place here for", taken.keys() - expected)):
            if names:
                raise CheckpointError(f"network.encoder {network.encoder} {what} {', '.join(sorted(names))}")
        model.load_state_dict(taken, strict=False)
    return model


def _check_fit(network: NetworkSettings, encoder: dict[str, Any]) -> None:
    up, down = network.up_block_out_channels, encoder["down_block_out_channels"]
    if len(down) != len(up):
        raise CheckpointError(
            f"network.encoder {network.encoder} makes latents of 1/{1 << (len(down) - 1)} of the size, "
            f"and the decoder enlarges {1 << (len(up) - 1)} times: take an f8 one"
        )
    groups = encoder.get("norm_num_groups", 32)
    if any(width % groups for width in up):
        raise CheckpointError(
            f"network.encoder {network.encoder} normalises in {groups} groups, which don't divide "
            f"network.up_block_out_channels {list(up)}: take multiples of {groups}"
        )


def _read_encoder(path: str, subfolder: str | None) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Constructor's arguments of the encoder's side, and its weights."""
    source = Checkpoint(path, subfolder=subfolder, revision=None)
    fields, state = source.read_config(also=("AutoencoderKL",)), source.read_weights(variant=None)
    plain = fields.get("_class_name") == "AutoencoderKL"
    encoder: dict[str, Any] = {
        "down_block_out_channels": tuple(fields["block_out_channels" if plain else "down_block_out_channels"]),
        "layers_per_down_block": fields["layers_per_block" if plain else "layers_per_down_block"],
        "scaling_factor": fields.get("scaling_factor", 0.18215),
        **{name: fields[name] for name in ("in_channels", "latent_channels", "norm_num_groups") if name in fields},
    }
    kept = {name: tensor.float() for name, tensor in state.items() if name.startswith(_KEPT)}
    return encoder, kept
