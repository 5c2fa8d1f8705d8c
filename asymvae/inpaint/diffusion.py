"""Diffusion: what StableDiffusionInpaintPipeline paints into a hole, for many samples at once.

UNet, scheduler, tokenizer and text encoder are a checkpoint's, in diffusers' layout; its own VAE is left where it is.
"""

from __future__ import annotations

import importlib.util
from typing import Any, ClassVar, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from asymvae.batch import Batch, Item
from asymvae.faults import Fault
from asymvae.inpaint.base import Inpainter, Need, Override
from asymvae.inpaint.denoise import Denoiser
from asymvae.inpaint.diffusion_files import DiffusionFiles
from asymvae.inpaint.diffusion_modules import load_modules
from asymvae.inpaint.prompts import PromptEncoder
from asymvae.inpaint.schedulers import check_scheduler, make_scheduler
from asymvae.model.autoencoder import AsymmetricAutoencoderKL
from asymvae.model.posterior import DiagonalGaussian

# What an AutoencoderKL is where its configuration doesn't say: those of Stable Diffusion 1 are older than the fields.
_OWN_VAE = {"scaling_factor": 0.18215, "latent_channels": 4}
# Of a UNet: what makes it ask for inputs that the inpainting pipeline doesn't have.
_FOREIGN_INPUTS = ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim")

_MOST_SHAPES: Final = 1 << 16


class DiffusionFill(Inpainter):
    """Latents by denoising; arguments are the settings of ``inpaint.diffusion``.

    A sample's noise comes from one CPU generator of its own, in the pipeline's order of draws: the image's posterior
    where it is needed, the noise, the masked image's posterior, what the scheduler draws.

    At strength 1 a 9-channel UNet sees known pixels alone. A strength below 1 begins with the noised image, and a
    4-channel UNet is given it around the hole at every step: their results depend on the hole's old pixels.
    """

    overrides: ClassVar[frozenset[Override]] = frozenset({"seed", "prompt", "negative_prompt"})

    def __init__(
        self,
        path: str,
        *,
        revision: str | None = None,
        variant: str | None = None,
        prompt: str = "{prompt}",
        negative_prompt: str = "",
        guidance_scale: float = 7.5,
        steps: int = 50,
        scheduler: str | None = None,
        strength: float = 1.0,
        compile: bool = False,
        channels_last: bool = False,
    ) -> None:
        missing = [name for name in ("diffusers", "transformers") if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(f"inpaint.method diffusion needs {' and '.join(missing)}: pip install asymvae[diffusion]")
        if scheduler is not None:
            check_scheduler({}, scheduler)
        if int(steps * strength) < 1:
            raise ValueError(
                f"inpaint.diffusion.strength {strength:g} of {steps} steps is less than one; raise either of them"
            )
        if guidance_scale < 1:
            raise ValueError(f"inpaint.diffusion.guidance_scale is {guidance_scale:g}; 1 is off, and the least")
        self.files = DiffusionFiles(path, revision=revision, variant=variant)
        self.prompt, self.negative_prompt = prompt, negative_prompt
        self.guidance_scale, self.steps, self.scheduler, self.strength = guidance_scale, steps, scheduler, strength
        self.compile, self.channels_last = compile, channels_last
        # As far as the settings say; load() learns the rest from the UNet.
        self.needs = _needs(9, strength)
        self._denoise: Denoiser | None = None
        self._embed: PromptEncoder | None = None

    def check(self, item: Item) -> Fault | None:
        return Fault("missing_prompt") if item.prompt is None and "{prompt}" in self._template(item) else None

    def prompts_of(self, item: Item) -> tuple[str | None, str | None]:
        # replace, not format: a prompt may hold braces of its own
        prompt = self._template(item).replace("{prompt}", item.prompt or "")
        if self.guidance_scale <= 1:
            return prompt, None
        return prompt, self.negative_prompt if item.negative_prompt is None else item.negative_prompt

    def _template(self, item: Item) -> str:
        return self.prompt if item.template is None else item.template

    def digest(self) -> str:
        self._check_unet()
        check_scheduler(self.files.config("scheduler"), self.scheduler)
        return self.files.digest()

    def check_vae(self, vae: AsymmetricAutoencoderKL) -> None:
        theirs: dict[str, Any] = _OWN_VAE | self.files.config("vae")
        theirs["factor"] = 1 << (len(theirs.get("block_out_channels", (0,) * 4)) - 1)
        ours: dict[str, Any] = {**vae.config, "factor": vae.config.encoder_factor}
        for name in ("scaling_factor", "latent_channels", "factor"):
            if theirs[name] != ours[name]:
                raise ValueError(
                    f"inpaint.diffusion.path {self.files} works on latents whose {name} is {theirs[name]}, and "
                    f"model.path makes latents whose {name} is {ours[name]}: choose two that belong together"
                )

    def load(self, vae: AsymmetricAutoencoderKL, device: torch.device, dtype: torch.dtype) -> None:
        self.check_vae(vae)
        channels = self._check_unet()
        scheduler = make_scheduler(self.files.config("scheduler"), self.scheduler)
        modules = load_modules(self.files, device, dtype)
        unet = modules.unet
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        unet.to(memory_format=layout)
        if self.compile:
            # Every shape for itself, however many: code that serves several, and shapes left uncompiled after the
            # eighth, would make the last bits depend on which came first.
            limits = torch._dynamo.config
            limits.recompile_limit = limits.accumulated_recompile_limit = max(limits.recompile_limit, _MOST_SHAPES)
            unet.compile(dynamic=False)
        self._denoise = Denoiser(
            unet,
            scheduler,
            steps=self.steps,
            strength=self.strength,
            guidance_scale=self.guidance_scale,
            layout=layout,
        )
        self._embed = PromptEncoder(modules.tokenizer, modules.text_encoder)
        self.needs = _needs(channels, self.strength)

    @torch.inference_mode()
    def fill(self, batch: Batch, vae: AsymmetricAutoencoderKL) -> Tensor:
        assert self._denoise is not None, "load() comes first"
        assert self._embed is not None
        count, device = batch.mask.shape[0], batch.mask.device
        items = batch.items + [batch.items[-1]] * (count - len(batch.items))
        generators = batch.generators()
        factor = vae.config.encoder_factor
        shape = (vae.config.latent_channels, batch.mask.shape[-2] // factor, batch.mask.shape[-1] // factor)

        def draw() -> Tensor:
            return _draw(generators, shape, device)

        def latents_of(need: Need) -> Tensor:
            posterior = DiagonalGaussian(batch.posteriors[need].parameters.float())
            return (posterior.mean + posterior.std * draw()) * vae.config.scaling_factor

        image = latents_of("image") if "image" in self.needs else None
        noise = draw()
        if "masked_image" in self.needs:
            masked_image = latents_of("masked_image")
        else:
            masked_image = None
            draw()  # the pipeline encodes it for a 4-channel UNet too, and the scheduler's own draws come after
        prompts = [self.prompts_of(item) for item in items]
        texts = [negative for _, negative in prompts if negative is not None] + [prompt or "" for prompt, _ in prompts]
        return self._denoise(
            noise,
            self._embed(texts),
            # The corner of each cell, as the pipeline takes it; with mask.grid a cell is all hole or has none.
            F.interpolate(batch.mask.float(), size=shape[1:]),
            generators,
            image=image,
            masked_image=masked_image,
        )

    def _check_unet(self) -> int:
        """Its number of input channels. Raises ValueError where the pipeline for inpainting couldn't run it."""
        config = self.files.config("unet")
        channels = config.get("in_channels")
        kind = config.get("_class_name", "UNet2DConditionModel")
        if kind != "UNet2DConditionModel":
            raise ValueError(f"inpaint.diffusion.path {self.files} holds a {kind}, not a UNet2DConditionModel")
        if channels not in (4, 9):
            raise ValueError(
                f"inpaint.diffusion.path {self.files} has a UNet of {channels} input channels; one for inpainting has "
                "9 (latent, mask, masked image) or 4 (latent)"
            )
        foreign = [f"{name} {config[name]!r}" for name in _FOREIGN_INPUTS if config.get(name) is not None]
        if foreign:
            raise ValueError(
                f"inpaint.diffusion.path {self.files} has a UNet with {' and '.join(foreign)}, whose further inputs "
                "the inpainting of Stable Diffusion 1 and 2 doesn't make; choose a checkpoint of those"
            )
        assert isinstance(channels, int)
        return channels


def _needs(unet_channels: int, strength: float) -> frozenset[Need]:
    if unet_channels == 4:
        return frozenset({"image"})
    return frozenset({"masked_image"}) if strength == 1 else frozenset({"masked_image", "image"})


def _draw(generators: list[torch.Generator], shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """(N, *shape) of standard normal numbers, a row from each generator; float32 whatever the networks' dtype."""
    rows = torch.cat([torch.randn((1, *shape), generator=generator) for generator in generators])
    if device.type == "cuda":
        return rows.pin_memory().to(device, non_blocking=True)
    return rows.to(device)
