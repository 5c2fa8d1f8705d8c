"""The asymmetric autoencoder (arXiv 2306.04632): a small encoder, and a large decoder that sees the known pixels.

Constructor, configuration, methods and state-dict keys are those of diffusers' class of the same name, so that
checkpoints load both ways; written anew.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from . import checkpoint, optimize, tiling
from .compiled import Compiled
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
        self.use_slicing = False
        self.use_tiling = False
        self._tiling = tiling.Tiling()
        self._optimized = False
        self._compiled = Compiled()
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
        x = self._laid_out(x.to(self.dtype))
        if self.use_slicing and x.shape[0] > 1:
            return EncoderOutput(DiagonalGaussian(torch.cat([self._encode(one) for one in torch.split(x, 1)])))
        return EncoderOutput(DiagonalGaussian(self._encode(x)))

    def _encode(self, x: Tensor) -> Tensor:
        factor = self.config.encoder_factor
        cells = self._strip_cells(x.shape[-2] // factor, x.shape[-1] // factor, factor)
        if cells is None:
            hidden = self._compiled.encoder(self.encoder, x)(x)
        else:
            self._refuse_grad(x)
            hidden = tiling.encode(self.encoder, x, cells=cells, offload=self._tiling.offload)
        out: Tensor = self.quant_conv(hidden)
        return out

    def decode(
        self,
        z: Tensor,
        generator: torch.Generator | None = None,
        image: Tensor | None = None,
        mask: Tensor | None = None,
        return_dict: bool = True,
        *,
        condition_index: Tensor | None = None,
    ) -> DecoderOutput:
        """``z``: (N, latent_channels, h, w), unscaled -> images (N, out_channels, h*f, w*f), about [-1, 1].

        ``image`` and ``mask`` come together: see :func:`asymvae.model.condition.prepare_condition` for what they may
        be. ``generator`` is unused, as in diffusers. ``condition_index``, (N,) int64, which diffusers has not: the row
        of image and mask that serves each latent, so that several latents of one image share the work.
        """
        self._check_input("z", z, self.config.latent_channels)
        image, mask = prepare_condition(
            z,
            image,
            mask,
            condition_index,
            factor=self.config.decoder_factor,
            channels=self.config.out_channels,
            dtype=self.dtype,
        )
        z = self._laid_out(z.to(self.dtype))
        if image is not None:
            image = self._laid_out(image)
        if self.use_slicing and z.shape[0] > 1:
            parts = (_one(i, z, image, mask, condition_index) for i in range(z.shape[0]))
            return DecoderOutput(torch.cat([self._decode(*part, None) for part in parts]))
        return DecoderOutput(self._decode(z, image, mask, condition_index))

    def _decode(self, z: Tensor, image: Tensor | None, mask: Tensor | None, index: Tensor | None) -> Tensor:
        cells = self._strip_cells(z.shape[-2], z.shape[-1], self.config.decoder_factor)
        if cells is None:
            z = self.post_quant_conv(z)
            out: Tensor = self._compiled.decoder(self.decoder, z, image, mask, index)(z, image, mask, index)
            return out
        self._refuse_grad(z, image, mask)
        if index is not None and image is not None and mask is not None:
            image, mask = image[index], mask[index]
        z = self.post_quant_conv(z)
        return tiling.decode(self.decoder, z, image, mask, cells=cells, offload=self._tiling.offload)

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

    def optimize(self, *, channels_last: bool = True, rearrange: bool = True) -> Self:
        """Make ``encode`` and ``decode`` as fast as is known for this device and dtype; returns the model.

        ``channels_last``: maps and weights lie in memory that way. ``rearrange``: layers get forms made of their
        weights (:mod:`asymvae.model.optimize`): folded upsamplings, on a CPU Winograd's kernels (four times the memory
        of the weights that they are made of), on CUDA the fused norms. Results are the same to rounding. For inference:
        where gradients are wanted the plain layers run, but for folded upsamplings. Weights that are loaded or cast
        afterwards are rearranged anew; weights that are changed in place are not: call it again.
        """
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self._optimized = False  # not before the weights lie as they will
        self.to(memory_format=layout)  # type: ignore[call-overload]  # torch's own stubs lack it
        self._optimized = rearrange
        self._rearrange()
        return self

    def compile_for(self, batch: int, height: int, width: int, *, decode: bool = True) -> None:
        """Compile ``encode`` and, unless ``decode`` is False, ``decode`` with image and mask, for ``batch`` images of
        ``height`` x ``width`` pixels, now.

        Other shapes run as before: what is computed depends on the shape, never on the shapes that came earlier. Call
        it after :meth:`optimize`, and in the mode (``torch.inference_mode()``) that the model is run in. Kernels are
        kept on disk by torch (``TORCHINDUCTOR_CACHE_DIR``), for other processes too. Raises what torch.compile raises.
        """
        size = (batch, height, width)
        self._compiled.add(self.encoder, self.decoder, size)
        image = torch.zeros((batch, self.config.in_channels, height, width), device=self.device, dtype=self.dtype)
        z = self.encode(image).latent_dist.mode()
        if not decode:
            return
        image = image.new_zeros((batch, self.config.out_channels, height, width))
        self.decode(z, image=image, mask=image.new_zeros((batch, 1, height, width), dtype=torch.bool))

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        optimize.restore(self)  # forms are kept in dtypes of their own, and a device may have no room for another's
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._rearrange()
        return self

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As torch's; an optimized model is rearranged anew."""
        keys = super().load_state_dict(*args, **kwargs)
        self._rearrange()
        return keys

    def _rearrange(self) -> None:
        if self._optimized and not self.post_quant_conv.weight.is_meta:
            optimize.rearrange(self)
        else:
            optimize.restore(self)

    def _laid_out(self, x: Tensor) -> Tensor:
        """``x`` in the memory format of the weights: compiled code is made for one."""
        last = self.encoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
        return x.contiguous(memory_format=torch.channels_last) if last else x

    def enable_slicing(self) -> None:
        """``encode`` and ``decode`` run one sample of a batch at a time, which takes less memory."""
        self.use_slicing = True

    def disable_slicing(self) -> None:
        """Batches run whole again."""
        self.use_slicing = False

    def enable_tiling(self, tile_sample_min_height: int | None = None, *, offload: bool = False) -> None:
        """``encode`` and ``decode`` run in strips: the same result to rounding (:mod:`asymvae.model.tiling`).

        ``tile_sample_min_height``: rows of the image in a strip, rounded down to the model's factor; an image of no
        more rows is run whole. None: about 2^18 pixels a strip, so that images up to 512x512 are run whole.
        ``offload``: what is of full size stays in host memory, and only strips of it on the model's device.
        Raises ValueError where a strip would hold no row of the latent. Nothing is kept for a backward pass: where
        gradients are wanted, ``encode`` and ``decode`` raise RuntimeError.
        """
        factor = max(self.config.encoder_factor, self.config.decoder_factor)
        if tile_sample_min_height is not None and tile_sample_min_height < factor:
            raise ValueError(
                f"tile_sample_min_height is {tile_sample_min_height}; the least is {factor}, one row of the latent"
            )
        self.use_tiling = True
        self._tiling = tiling.Tiling(tile_sample_min_height, offload)

    def disable_tiling(self) -> None:
        """Images run whole again."""
        self.use_tiling = False

    def _strip_cells(self, height: int, width: int, factor: int) -> int | None:
        return self._tiling.cells((height, width), factor) if self.use_tiling else None

    def _refuse_grad(self, *inputs: Tensor | None) -> None:
        tensors = itertools.chain(self.parameters(), (x for x in inputs if x is not None))
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            raise RuntimeError(
                "tiling keeps nothing for a backward pass: use torch.inference_mode() or torch.no_grad(), "
                "or disable_tiling()"
            )

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
        source = checkpoint.Checkpoint(path, subfolder=subfolder, revision=revision)
        fields, state = source.read_config(), source.read_weights(variant=variant)
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

    def to_diffusers(self) -> Any:
        """This model as an instance of diffusers' class, for its pipelines: ``pipe.vae = model.to_diffusers()``.

        The weights are shared. Raises ValueError where diffusers isn't installed.
        """
        # By name, and only here: the network knows nothing of diffusers, and what makes it one of theirs is no part
        # of the network.
        return importlib.import_module("asymvae.to_diffusers").AsymmetricAutoencoderKL.of(self)


def _one(
    row: int, z: Tensor, image: Tensor | None, mask: Tensor | None, index: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """A sample of a batch; an image or a mask of one serves them all."""
    chosen = slice(row, row + 1) if index is None else index[row : row + 1]
    image, mask = (x if x is None or x.shape[0] == 1 else x[chosen] for x in (image, mask))
    return z[row : row + 1], image, mask
