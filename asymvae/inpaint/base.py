"""The contract of a way to fill holes in latent space."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from asymvae.batch import Batch, Item
from asymvae.model.autoencoder import AsymmetricAutoencoderKL

Need = Literal["image", "masked_image", "prefilled"]


class Inpainter(ABC):
    """Fills the hole of every item of a batch, in latent space.

    A subclass says what it ``needs``: of which images the encode stage makes latents before ``fill`` is called
    (``batch.latents[name]``, scaled posterior means). ``prefilled`` is what :meth:`prefill` returns. Anything but
    ``image`` is a function of known pixels only; a method that asks for ``image`` gives that promise up and says so.

    Options come from the setting ``inpaint.options`` as keyword arguments of the constructor.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    # True: a sample must bring a filled image of its own (role `given`), else it is an error row.
    needs_given: ClassVar[bool] = False

    def batch_key(self, item: Item) -> Hashable:
        """Items whose keys differ never share a batch (a step count, a strength, ...)."""
        return ()

    def prefill(self, batch: Batch) -> Tensor:
        """(N, 3, H, W) in [-1, 1]: the image with its hole filled in pixel space. Called only where it is needed."""
        raise NotImplementedError(f"{type(self).__name__} needs 'prefilled' and defines no prefill()")

    @abstractmethod
    def fill(self, batch: Batch, vae: AsymmetricAutoencoderKL) -> Tensor:
        """(N, C, H/f, W/f) scaled latents. What can't be filled is added to ``batch.failed``."""


METHODS = {
    "none": "asymvae.inpaint.none:NoFill",
    "given": "asymvae.inpaint.given:GivenFill",
    "harmonic": "asymvae.inpaint.harmonic:HarmonicFill",
}


def load_inpainter(method: str, options: Mapping[str, Any]) -> Inpainter:
    """The inpainter of a built-in name or of an import path ``package.module:Class``.

    Raises:
        ValueError: no such method, or it refuses the options; the message names what would do.
    """
    path = METHODS.get(method, method)
    module_name, colon, class_name = path.partition(":")
    if not colon:
        raise ValueError(f"inpaint.method {method!r} is neither one of {sorted(METHODS)} nor package.module:Class")
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
