"""The asymmetric autoencoder (arXiv 2306.04632): a small encoder, and a large decoder that sees the known pixels.

Constructor, configuration, methods and state-dict keys are those of diffusers' class of the same name, so that
checkpoints load both ways; written anew.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from . import checkpoint
from .condition import prepare_condition
from .config import AutoencoderConfig
from .decoder import Decoder
from .encoder import Encoder
from .posterior import DiagonalGaussian, Generators


class EncoderOutput(NamedTuple):
    """What ``encode`` returns; a tuple of one as well."""

    latent_dist: DiagonalGaussian


class DecoderOutput(NamedTuple):
    """What ``decode`` and ``forward`` return; a tuple of one as well. ``sample``: (N, out_channels, H, W)."""

    sample: Tensor


class AsymmetricAutoencoderKL(nn.Module):
    """Images in [-1, 1] to latents and back; where a mask (1 is the hole) is given, known pixels survive.

    Arguments and defaults are diffusers'. Block lists have one entry a level, from the image's size to the
    latent's; each level but the last halves the size. ``scaling_factor`` is for the caller: nothing here applies it.
    ``weights_sha256`` says which weights were loaded (:func:`asymvae.model.checkpoint.weights_digest`), None for a
    model that was not loaded. Inputs of another floating dtype are cast to the weights'.
    """

    config: AutoencoderConfig
    weights_sha256: str | None

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        down_block_types: Sequence[str] = ("DownEncoderBlock2D",),
        down_block_out_channels: Sequence[int] = (64,),
        layers_per_down_block: int = 1,
        up_block_types: Sequence[str] = ("UpDecoderBlock2D",),
        up_block_out_channels: Sequence[int] = (64,),
        layers_per_up_block: int = 1,
        act_fn: str = "silu",
        latent_channels: int = 4,
        norm_num_groups: int = 32,
        sample_size: int = 32,
        scaling_factor: float = 0.18215,
    ) -> None:
        super().__init__()
        self.config = AutoencoderConfig(
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=tuple(down_block_types),
            down_block_out_channels=tuple(down_block_out_channels),
            layers_per_down_block=layers_per_down_block,
            up_block_types=tuple(up_block_types),
            up_block_out_channels=tuple(up_block_out_channels),
            layers_per_up_block=layers_per_up_block,
            act_fn=act_fn,
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
            sample_size=sample_size,
            scaling_factor=scaling_factor,
            block_out_channels=tuple(up_block_out_channels),
        )
        self.weights_sha256 = None
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        self.quant_conv = nn.Conv2d(2 * latent_channels, 2 * latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(latent_channels, latent_channels, 1)

    @property
    def dtype(self) -> torch.dtype:
        return self.post_quant_conv.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.post_quant_conv.weight.device

    def encode(self, x: Tensor, return_dict: bool = True) -> EncoderOutput:
        """``x``: (N, in_channels, H, W) in [-1, 1] -> the posterior of latents (N, latent_channels, H/f, W/f).

        Raises ValueError where H or W is no multiple of the factor f. ``return_dict`` makes no difference, here and
        below: the result has names and is a tuple.
        """
        self._check_input("x", x, self.config.in_channels)
        factor = self.config.encoder_factor
        height, width = x.shape[-2:]
        if height % factor or width % factor or not height or not width:
            raise ValueError(f"x is {height}x{width}; both must be multiples of {factor}: pad or crop it")
        return EncoderOutput(DiagonalGaussian(self.quant_conv(self.encoder(x.to(self.dtype)))))

    def decode(
        self,
        z: Tensor,
        generator: torch.Generator | None = None,
        image: Tensor | None = None,
        mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> DecoderOutput:
        """``z``: (N, latent_channels, h, w), unscaled -> images (N, out_channels, h*f, w*f), about [-1, 1].

        ``image`` and ``mask`` come together: see :func:`asymvae.model.condition.prepare_condition` for what they may
        be. ``generator`` is unused, as in diffusers.
        """
        self._check_input("z", z, self.config.latent_channels)
        image, mask = prepare_condition(
            z,
            image,
            mask,
            factor=self.config.decoder_factor,
            channels=self.config.out_channels,
            dtype=self.dtype,
        )
        return DecoderOutput(self.decoder(self.post_quant_conv(z.to(self.dtype)), image, mask))

    def forward(
        self,
        sample: Tensor,
        mask: Tensor | None = None,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: Generators | None = None,
    ) -> DecoderOutput:
        """Encode ``sample`` (N, in_channels, H, W) and decode the mode, or a draw, of its posterior.

        With ``mask`` the decoder sees ``sample`` outside the hole.
        """
        posterior = self.encode(sample).latent_dist
        z = posterior.sample(generator) if sample_posterior else posterior.mode()
        return self.decode(z, image=None if mask is None else sample, mask=mask)

    def _check_input(self, name: str, tensor: Tensor, channels: int) -> None:
        if tensor.ndim != 4 or tensor.shape[1] != channels:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be (N, {channels}, height, width)")
        if not tensor.is_floating_point():
            raise ValueError(f"{name} is {tensor.dtype}; it must be floating: pixels / 127.5 - 1 for 0..255")

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        *,
        subfolder: str | None = None,
        revision: str | None = None,
        variant: str | None = None,
        torch_dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
        allow_unexpected: bool = False,
    ) -> Self:
        """The model of a checkpoint, in eval mode, in ``torch_dtype`` (float32) on ``device`` (CPU).

        ``path``: a hub id, a folder, or an fsspec URL (``s3://...``). Raises FileNotFoundError where a file is
        missing, and ``CheckpointError`` (a ValueError), with every key, where the weights don't fit.
        """
        with checkpoint.Checkpoint(path, subfolder=subfolder, revision=revision) as source:
            fields = source.read_config()
            state = source.read_weights(variant=variant)
        arguments = inspect.signature(cls).parameters
        with torch.device("meta"):  # nothing is initialised that would be overwritten
            model = cls(**{name: value for name, value in fields.items() if name in arguments})
        model.config = dataclasses.replace(model.config, force_upcast=fields.get("force_upcast", False))
        expected = model.state_dict()
        checkpoint.check_keys(expected, state, str(source), allow_unexpected=allow_unexpected)
        state = {name: state[name] for name in expected}
        model.weights_sha256 = checkpoint.weights_digest(state)
        dtype = torch.float32 if torch_dtype is None else torch_dtype
        model.load_state_dict(
            {name: tensor.to(device=device or "cpu", dtype=dtype) for name, tensor in state.items()}, assign=True
        )
        return model.eval()

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, variant: str | None = None, max_shard_size: int | str = "10GB"
    ) -> None:
        """Writes a checkpoint (safetensors) that diffusers loads too, into a folder or below an fsspec URL."""
        fields: dict[str, Any] = {"_class_name": checkpoint.CLASS_NAME, **self.config}
        checkpoint.write(folder, fields, self.state_dict(), variant=variant, max_shard_size=max_shard_size)
