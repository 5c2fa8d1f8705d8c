"""Encoder and decoder compiled for chosen shapes, and for no others."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Size = tuple[int, int, int]  # batch, height and width of the image


class Compiled:
    """Which shapes have compiled code. A shape either has it from :meth:`add` on, or runs eagerly for good: so bytes
    depend on a batch's shape alone. Not pickled and not copied: whoever unpickles compiles anew.
    """

    def __init__(self) -> None:
        self._sizes: set[Size] = set()
        self._encoder: Callable[..., Tensor] | None = None
        self._decoder: Callable[..., Tensor] | None = None

    def __reduce__(self) -> tuple[type[Compiled], tuple[()]]:
        return Compiled, ()

    def add(self, encoder: nn.Module, decoder: nn.Module, size: Size) -> None:
        """Whole graphs of static shapes: what can't be compiled whole is an error, not a surprise."""
        self._sizes.add(size)
        if self._encoder is None:
            self._encoder = torch.compile(encoder, fullgraph=True, dynamic=False)
            self._decoder = torch.compile(decoder, fullgraph=True, dynamic=False)
        # torch gives up compiling a function, silently, after so many shapes
        most = torch._dynamo.config.recompile_limit
        torch._dynamo.config.recompile_limit = max(most, 2 * len(self._sizes))

    def encoder(self, plain: nn.Module, x: Tensor) -> Callable[..., Tensor]:
        """What is to encode ``x``: the compiled encoder, or the plain one."""
        known = (x.shape[0], x.shape[2], x.shape[3]) in self._sizes
        return self._encoder if known and self._encoder is not None else plain

    def decoder(
        self, plain: nn.Module, z: Tensor, image: Tensor | None, mask: Tensor | None, index: Tensor | None
    ) -> Callable[..., Tensor]:
        """What is to decode: the compiled decoder, or the plain one."""
        if self._decoder is None or image is None or mask is None or index is not None:
            return plain
        known = (z.shape[0], *image.shape[2:]) in self._sizes and z.shape[0] == image.shape[0] == mask.shape[0]
        return self._decoder if known else plain
