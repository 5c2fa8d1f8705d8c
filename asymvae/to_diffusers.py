"""Our autoencoder as diffusers' class of the same name, for ``pipe.vae = model.to_diffusers()``.

A pipeline asks by ``isinstance`` whether its VAE decodes with image and mask, so only a subclass of theirs will do.
It has their configuration, state-dict keys and files: what one saves the other loads.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from asymvae.model.autoencoder import AsymmetricAutoencoderKL as Ours
from asymvae.model.posterior import Generators

try:
    import diffusers
    from diffusers import ModelMixin  # by this name: from_pretrained of a saved pipeline looks for it in this module
    from diffusers.configuration_utils import register_to_config
    from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
    from diffusers.models.modeling_outputs import AutoencoderKLOutput
    from diffusers.utils.accelerate_utils import apply_forward_hook
except ImportError as error:
    raise ValueError("to_diffusers() needs diffusers: pip install asymvae[diffusion]") from error


# The name goes into config.json, where diffusers and we look for it.
class AsymmetricAutoencoderKL(diffusers.AsymmetricAutoencoderKL):  # type: ignore[misc]
    """Runs ours. Arguments, methods and outputs are diffusers'; see :class:`asymvae.model.AsymmetricAutoencoderKL` for
    what they take, and refuse."""

    @register_to_config  # type: ignore[untyped-decorator]
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
        ModelMixin.__init__(self)  # not the class's own, which would build its networks
        self.register_to_config(block_out_channels=up_block_out_channels, force_upcast=False)
        self._run(
            Ours(
                in_channels=in_channels,
                out_channels=out_channels,
                down_block_types=down_block_types,
                down_block_out_channels=down_block_out_channels,
                layers_per_down_block=layers_per_down_block,
                up_block_types=up_block_types,
                up_block_out_channels=up_block_out_channels,
                layers_per_up_block=layers_per_up_block,
                act_fn=act_fn,
                latent_channels=latent_channels,
                norm_num_groups=norm_num_groups,
                sample_size=sample_size,
                scaling_factor=scaling_factor,
            )
        )

    @classmethod
    def of(cls, model: Ours) -> AsymmetricAutoencoderKL:
        """Around ``model``, whose weights it shares: what moves or trains one does so to the other."""
        arguments = inspect.signature(Ours).parameters
        with torch.device("meta"):  # nothing is initialised that is thrown away
            made: AsymmetricAutoencoderKL = cls(**{name: model.config[name] for name in arguments})
        made.register_to_config(force_upcast=model.config.force_upcast)
        made._run(model)
        return made

    def _run(self, model: Ours) -> None:
        # Not as a submodule, which would put a prefix before every key: its parts are this module's own as well.
        object.__setattr__(self, "_model", model)
        for name, part in model.named_children():
            self.add_module(name, part)
        self.training = model.training

    def train(self, mode: bool = True) -> AsymmetricAutoencoderKL:
        self._model.training = mode
        return super().train(mode)  # type: ignore[no-any-return]

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def encode(self, x: Tensor, return_dict: bool = True) -> Any:
        posterior = DiagonalGaussianDistribution(self._model.encode(x).latent_dist.parameters)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    @apply_forward_hook  # type: ignore[untyped-decorator]
    def decode(
        self,
        z: Tensor,
        generator: Generators | None = None,
        image: Tensor | None = None,
        mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        sample = self._model.decode(z, image=image, mask=mask).sample
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(
        self,
        sample: Tensor,
        mask: Tensor | None = None,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: Generators | None = None,
    ) -> Any:
        out = self._model(sample, mask, sample_posterior, generator=generator).sample
        return DecoderOutput(sample=out) if return_dict else (out,)

    @property
    def use_tiling(self) -> bool:
        return self._model.use_tiling  # type: ignore[no-any-return]

    @property
    def use_slicing(self) -> bool:
        return self._model.use_slicing  # type: ignore[no-any-return]

    def enable_tiling(self, *arguments: Any, **options: Any) -> None:
        self._model.enable_tiling(*arguments, **options)

    def disable_tiling(self) -> None:
        self._model.disable_tiling()

    def enable_slicing(self) -> None:
        self._model.enable_slicing()

    def disable_slicing(self) -> None:
        self._model.disable_slicing()
