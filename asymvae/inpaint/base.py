"""The contract of a way to fill holes in latent space."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from asymvae.batch import Batch, Item
from asymvae.config import InpaintSettings
from asymvae.faults import Fault
from asymvae.model.autoencoder import AsymmetricAutoencoderKL

Need = Literal["image", "masked_image", "prefilled"]
Override = Literal["seed", "prompt", "negative_prompt"]


class Inpainter(ABC):
    """Fills the hole of every item of a batch, in latent space.

    A subclass says what it ``needs``: of which images the encode stage makes latents before ``fill`` is called
    (``batch.latents[need]``, scaled posterior means, and ``batch.posteriors[need]``). ``prefilled`` is what
    :meth:`prefill` returns. Anything but ``image`` is a function of known pixels only; a method that asks for
    ``image`` gives that promise up and says so.

    Options come from the setting ``inpaint.options`` as keyword arguments of the constructor, which the driver calls
    too: it is cheap, and loads nothing. What is heavy is loaded by :meth:`load`, once a worker. An inpainter serves
    any number of batches, of several shards at once, so it keeps nothing that hangs on one of them.
    """

    needs: frozenset[Need] = frozenset()  # an instance may set its own, where its options decide
    # True: a sample must bring a filled image of its own (role `given`), else it is an error row.
    needs_given: ClassVar[bool] = False
    # What a sample's json may override; anything else there is an error row.
    overrides: ClassVar[frozenset[Override]] = frozenset({"seed"})

    def check(self, item: Item) -> Fault | None:
        """What makes this sample an error row, such as a missing prompt. Called with its first variant, in the
        threads that prepare samples, on the CPU, perhaps before :meth:`load`."""
        return None

    def prompts_of(self, item: Item) -> tuple[str | None, str | None]:
        """The prompt and the negative prompt that the item is filled with, for its row; None where there is none."""
        return None, None

    def batch_key(self, item: Item) -> Hashable:
        """Items whose keys differ never share a batch (a step count, a strength, ...)."""
        return ()

    def digest(self) -> str | None:
        """sha256, in hex, over everything beside the VAE's weights and the settings that decides the output: another
        network's weights, its tokenizer. None: there is nothing. It enters the fingerprint; the driver and every
        worker call it, and must agree. It reads files and builds no network.

        Raises:
            ValueError, OSError: those files can't be had, or are not what the method takes.
        """
        return None

    def check_vae(self, vae: AsymmetricAutoencoderKL) -> None:
        """Whether the method fits ``vae``, told from configurations: the driver asks before anything is started.

        Raises:
            ValueError: it doesn't; the message names the setting and the remedy.
        """
        return

    def load(self, vae: AsymmetricAutoencoderKL, device: torch.device, dtype: torch.dtype) -> None:
        """Load what ``fill`` needs, beside ``vae``. Called once a worker, on the thread that runs the device.

        Raises:
            ValueError: as :meth:`check_vae`.
        """
        return

    def prefill(self, batch: Batch) -> Tensor:
        """(M, 3, H, W) in [-1, 1]: the image with its hole filled in pixel space. Called only where it is needed,
        with a batch of M distinct samples: variants share it."""
        raise NotImplementedError(f"{type(self).__name__} needs 'prefilled' and defines no prefill()")

    @abstractmethod
    def fill(self, batch: Batch, vae: AsymmetricAutoencoderKL) -> Tensor:
        """(N, C, H/f, W/f) scaled latents. What can't be filled is added to ``batch.failed``."""


METHODS = {
    "none": "asymvae.inpaint.none:NoFill",
    "given": "asymvae.inpaint.given:GivenFill",
    "harmonic": "asymvae.inpaint.harmonic:HarmonicFill",
    "diffusion": "asymvae.inpaint.diffusion:DiffusionFill",
}


def load_inpainter(settings: InpaintSettings) -> Inpainter:
    """The inpainter of a built-in name or of an import path ``package.module:Class``. Loads no weights.

    ``diffusion`` gets its own section of the settings, every other method ``inpaint.options``.

    Raises:
        ValueError: no such method, or it refuses the options; the message names what would do.
    """
    method = settings.method
    path = METHODS.get(method, method)
    module_name, colon, class_name = path.partition(":")
    if not colon:
        raise ValueError(f"inpaint.method {method!r} is neither one of {sorted(METHODS)} nor package.module:Class")
    if method == "diffusion" and settings.options:
        raise ValueError("inpaint.options has no meaning for inpaint.method 'diffusion'; set inpaint.diffusion")
    options = settings.diffusion.model_dump() if method == "diffusion" else settings.options
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"inpaint.method {method!r} can't be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Inpainter)):
        raise ValueError(f"inpaint.method {method!r} is not a subclass of asymvae.inpaint.base.Inpainter")
    try:
        return found(**options)
    except TypeError as error:
        raise ValueError(f"inpaint.options {dict(options)} don't fit {method!r}: {error}") from error
