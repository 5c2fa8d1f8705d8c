"""The denoising loop: noise to latents, for a batch whose rows have their own prompt, noise, mask and image."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Denoiser:
    """A UNet run ``steps`` times under a scheduler, as diffusers' StableDiffusionInpaintPipeline runs them.

    Latents, and all that the scheduler does to them, are float32 whatever the UNet's dtype. The scheduler is a
    prototype, copied for each batch, since it counts its steps.

    Args:
        strength: 1 begins with noise; less with the noised image, later in the schedule, and takes that share of the
            steps.
        guidance_scale: 1 runs the UNet without the negative prompt, in half the time.
        layout: the memory format of the UNet's weights.

    Raises:
        ValueError: ``strength`` leaves no step to take.
    """

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        *,
        steps: int,
        strength: float,
        guidance_scale: float,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> None:
        self._unet, self._layout = unet, layout
        self.guidance_scale = guidance_scale
        self._from_noise = strength == 1
        scheduler.set_timesteps(steps, device="cpu")
        skipped = (steps - min(int(steps * strength), steps)) * scheduler.order
        # On the CPU for what looks up a number by its time, and on the device for the UNet: a copy in either direction
        # would make a GPU wait, at every step.
        self._times = scheduler.timesteps[skipped:]
        self._device_times = self._times.to(unet.device)
        if len(self._times) == 0:
            raise ValueError(
                f"inpaint.diffusion.strength {strength:g} of {steps} steps is less than one; raise either of them"
            )
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(skipped)
        self._scheduler = scheduler
        arguments = inspect.signature(scheduler.step).parameters
        self._eta = {"eta": 0.0} if "eta" in arguments else {}
        self._takes_generators = "generator" in arguments

    @property
    def guided(self) -> bool:
        return self.guidance_scale > 1

    def __call__(
        self,
        noise: Tensor,
        embeddings: Tensor,
        mask: Tensor,
        generators: Sequence[torch.Generator],
        *,
        image: Tensor | None,
        masked_image: Tensor | None,
    ) -> Tensor:
        """(N, C, h, w) scaled latents in float32.

        Args:
            noise: (N, C, h, w), float32.
            embeddings: (N, tokens, width); where ``guided`` (2N, tokens, width), the negative prompts' first.
            mask: (N, 1, h, w) of {0, 1}, 1 = hole.
            generators: one a row, on the CPU; for schedulers that draw noise of their own.
            image: scaled latents of the image; asked for by a strength below 1 and by a 4-channel UNet.
            masked_image: scaled latents of the image without its hole: input of a 9-channel UNet, None with 4.
        """
        scheduler = copy.deepcopy(self._scheduler)
        options: dict[str, Any] = {**self._eta, "return_dict": False}
        if self._takes_generators:
            options["generator"] = list(generators)
        count, channels = noise.shape[:2]
        latents: Tensor
        if self._from_noise:
            latents = noise * scheduler.init_noise_sigma
        else:
            latents = scheduler.add_noise(image, noise, self._device_times[:1].repeat(count))
        unet_input = self._unet_input(noise, mask, masked_image)
        for step, time in enumerate(self._times):
            # Of the UNet's input only the latents change; they are the same with and without the prompt.
            scaled = scheduler.scale_model_input(latents, time)
            unet_input.view(-1, count, *unet_input.shape[1:])[:, :, :channels] = scaled
            predicted = self._unet(
                unet_input, self._device_times[step], encoder_hidden_states=embeddings, return_dict=False
            )[0].float()
            if self.guided:
                without, with_prompt = predicted.chunk(2)
                predicted = without + self.guidance_scale * (with_prompt - without)
            latents = scheduler.step(predicted, time, latents, **options)[0]
            if masked_image is None:
                assert image is not None
                # A UNet that sees no mask: what is known comes from the image, with the noise of the next step.
                known = image
                if step + 1 < len(self._times):
                    known = scheduler.add_noise(image, noise, self._device_times[step + 1 : step + 2])
                latents = (1 - mask) * known + mask * latents
        return latents

    def _unet_input(self, noise: Tensor, mask: Tensor, masked_image: Tensor | None) -> Tensor:
        """In the UNet's dtype and memory format; its first channels, the latents, are set at each step."""
        whole = noise if masked_image is None else torch.cat([noise, mask, masked_image], dim=1)
        return torch.cat([whole] * (2 if self.guided else 1)).to(self._unet.dtype, memory_format=self._layout)
