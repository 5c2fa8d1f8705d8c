"""Feature maps in strips of rows: what convolutions need of the rows beside theirs, and group norms of the whole.

A strip is (N, C, rows, W), in either memory format; strips follow each other from the top of the map to its bottom.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from .convolution import Activation, Conv, Upsample, convolve_rows
from .norm import GroupNorm, Moments, chunks

Strips = Iterator[Tensor]


class Window(NamedTuple):
    """A strip, the row above it and the row below it, (N, C, 1, W) each; None at the border of the map."""

    above: Tensor | None
    strip: Tensor
    below: Tensor | None


def split(whole: Tensor, rows: int) -> Strips:
    """Views of ``rows`` rows of (N, C, H, W) each; the last has what is left."""
    return iter(torch.split(whole, rows, dim=2))


def windows(strips: Iterable[Tensor]) -> Iterator[Window]:
    """Each strip with its neighbouring rows. Of the strips one is held here, the next."""
    rest = iter(strips)
    above: Tensor | None = None
    strip = next(rest, None)
    while strip is not None:
        following = next(rest, None)
        ready = [Window(above, strip, None if following is None else following[:, :, :1])]
        above, strip = strip[:, :, -1:].clone(), following  # a view would keep the whole strip alive
        yield ready.pop()  # nor does this frame keep it while it waits


def convolve(conv: Conv, strips: Iterable[Tensor]) -> Strips:
    """``conv`` over the map: 3x3 with padding 1, 4x4 with stride 2 and padding 1, or 3x3 with stride 2 as Downsample
    pads it, at the bottom and right only. Strips are even in height where the stride is 2.
    """
    for window in windows(strips):
        if conv.padding == (0, 0):
            below = torch.zeros_like(window.strip[:, :, :1]) if window.below is None else window.below
            yield conv(F.pad(torch.cat([window.strip, below], dim=2), (0, 1)))
        else:
            yield convolve_rows(conv, _with_neighbours(window))


def upsample(upsampler: Upsample, strips: Iterable[Tensor]) -> Strips:
    """``upsampler`` over the map."""
    for window in windows(strips):
        yield upsampler(_with_neighbours(window), halo=True)


def _with_neighbours(window: Window) -> Tensor:
    zeros = torch.zeros_like(window.strip[:, :, :1])
    above, below = (zeros if row is None else row for row in (window.above, window.below))
    return torch.cat([above, window.strip, below], dim=2)


class Held:
    """Strips at rest. ``groups``, where a group norm comes next: their statistics are taken as they come in.

    With ``offload`` they rest in host memory. Copies there are waited for: queued ones would go to page-locked memory,
    which torch can't use again before they are done, and a host that runs ahead would take ever more of it.
    """

    def __init__(self, strips: Iterable[Tensor] = (), *, groups: int | None = None, offload: bool = False) -> None:
        self._strips: deque[Tensor] = deque()
        self._moments = None if groups is None else Moments(groups)
        self._offload = offload
        self._device: torch.device | None = None
        self.extend(strips)

    def extend(self, strips: Iterable[Tensor]) -> Self:
        for strip in strips:
            self.append(strip)
            del strip  # else it lives on while the next is made
        return self

    def append(self, strip: Tensor) -> None:
        if self._moments is not None:
            self._moments.add(strip)
        self._device = strip.device
        self._strips.append(strip.cpu() if self._offload else strip)

    def read(self) -> Strips:
        for strip in self._strips:
            yield strip.to(self._device)

    def drain(self) -> Strips:
        """As :meth:`read`, and each is given up as it is read."""
        while self._strips:
            yield self._strips.popleft().to(self._device)

    def normalise(self, norm: GroupNorm, act: Activation, *, drain: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """(strip, act(norm(the strip and a row above and below it))): zeros stand beyond the border, as a
        convolution pads what it is given.
        """
        if self._moments is None:
            raise ValueError("these strips came in without groups: their statistics are not known")
        scale, shift = self._moments.affine(norm)
        for above, strip, below in windows(self.drain() if drain else self.read()):
            batch, channels, height, width = strip.shape
            last = not strip.is_contiguous() and strip.is_contiguous(memory_format=torch.channels_last)
            rows = torch.empty(
                (batch, channels, height + 2, width),
                dtype=strip.dtype,
                device=strip.device,
                memory_format=torch.channels_last if last else torch.contiguous_format,
            )
            for piece, place in ((above, rows[:, :, :1]), (strip, rows[:, :, 1:-1]), (below, rows[:, :, -1:])):
                if piece is None:
                    place.zero_()  # every activation leaves it so
                elif piece.dtype == scale.dtype:
                    torch.addcmul(shift, piece, scale, out=place)
                else:  # half precision is normalised in single, and rounded once
                    for source, target in zip(chunks(piece), chunks(place), strict=True):
                        target.copy_(torch.addcmul(shift, source.to(scale.dtype), scale))
            rows = act(rows)
            yield strip, rows
            del strip, rows  # before the next are made
