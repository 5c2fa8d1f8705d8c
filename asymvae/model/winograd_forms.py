"""The network's convolutions by Winograd's way: strips of a map that fit the cache, from what comes before the
convolution (a norm and its activation) to what comes after (bias, residual) without another pass over the map.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .winograd import TILE, Winograd

# A strip's tiles: enough rows for the matrix products, few enough that 36 numbers a tile and channel stay in the cache.
# With 192 to 768 channels 64 to 256 make no difference, 512 is slower.
_TILES = 128
# Fewer tiles in all, and reading the kernels, four times as large, takes longer than is won.
_LEAST_TILES = 16


Rows = tuple[int, int]  # of a map: from the first, to before the second


class WinogradForm(nn.Module):
    """What the three forms share. ``scale`` is the map's pixels a position of the correlation, in height and width;
    ``NUMBERS`` is what is kept for each pair of channels, in float32."""

    scale = 1
    NUMBERS: ClassVar[int] = 36

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.winograd = Winograd(weight)

    def suits(self, x: Tensor) -> bool:
        """Whether this form is meant for ``x``, (N, C, H, W): in eager mode on a CPU, channels_last, no
        gradients, enough of it."""
        return (
            not torch.compiler.is_compiling()  # its loops would be unrolled
            and x.device.type == "cpu"
            and x.dtype in (torch.float32, torch.bfloat16)
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and x.is_contiguous(memory_format=torch.channels_last)
            and x.shape[0] * x.shape[2] * x.shape[3] >= _LEAST_TILES * (TILE * self.scale) ** 2
        )

    def forward(
        self,
        x: Tensor,
        bias: Tensor | None,
        *,
        affine: tuple[Tensor, Tensor] | None = None,
        act: Callable[[Tensor], Tensor] | None = None,
        residual: Tensor | None = None,
        halo: bool = False,
        rows: Rows | None = None,
    ) -> Tensor:
        """The convolution of ``act(x * scale + shift)``, plus ``bias`` and ``residual``.

        ``affine``: scale and shift, (N, C, 1, 1) float32. ``act`` leaves 0 at 0. ``halo``: ``x`` brings the rows above
        and below the map, which else are zeros. ``rows``, of a 3x3 convolution: only those are made of the result.
        """
        source = _Padded(x, affine, act, halo)
        height, width = (side // self.scale for side in source.size)
        start, end = (0, height) if rows is None else rows
        out = self._output(x, end - start, width)
        places = self._places(end - start), self._places(width)
        columns = -(-places[1] // TILE)
        deep = min(max(1, _TILES // columns), -(-places[0] // TILE))
        together = max(1, _TILES // (deep * columns)) if deep * TILE >= places[0] else 1  # small maps go in groups
        for maps in (slice(i, i + together) for i in range(0, x.shape[0], together)):
            for first in range(0, places[0], deep * TILE):
                tiles = self.winograd(self._read(source, maps, start + first, deep, columns))
                last = min(first + deep * TILE, places[0])
                self._write(out[maps], tiles, bias, None if residual is None else residual[maps], first, last)
        return out

    def _places(self, side: int) -> int:
        """Positions of the correlation along a side of ``side`` of them."""
        return side

    def _read(self, source: _Padded, maps: slice, first: int, rows: int, columns: int) -> Tensor:
        reach = self.winograd.size - 1
        return source.read(maps, first - 1, rows * TILE + reach, columns * TILE + reach)

    def _output(self, x: Tensor, height: int, width: int) -> Tensor:
        size = (x.shape[0], self.winograd.kernel.shape[-1], height, width)
        return torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)

    def _write(
        self, out: Tensor, tiles: Tensor, bias: Tensor | None, residual: Tensor | None, first: int, last: int
    ) -> None:
        if bias is not None:
            tiles = tiles.add_(bias)
        target = out[:, :, first:last].permute(0, 2, 3, 1)
        rest = None if residual is None else residual[:, :, first:last].permute(0, 2, 3, 1)
        ordered = tiles.permute(2, 3, 1, 4, 0, 5)  # (N, rows, 4, columns, 4, C)
        if target.shape[1] == ordered.shape[1] * TILE and target.shape[2] == ordered.shape[3] * TILE:
            target = _tiled(target)
            rest = None if rest is None else _tiled(rest)
        else:
            ordered = ordered.flatten(3, 4).flatten(1, 2)[:, : target.shape[1], : target.shape[2]]
        if rest is None:
            target.copy_(ordered)
        else:
            torch.add(ordered, rest, out=target)


class WinogradConv(WinogradForm):
    """A 3x3 convolution of stride 1, padded by 1."""


class WinogradDown(WinogradForm):
    """A 4x4 convolution of stride 2, padded by 1: 2x2 over maps of half the size and four times the channels."""

    scale = 2
    NUMBERS = 4 * 25

    def __init__(self, weight: Tensor) -> None:
        made, taken = weight.shape[:2]
        split = weight.reshape(made, taken, 2, 2, 2, 2)  # kernel row: half, phase; column: half, phase
        super().__init__(split.permute(0, 3, 5, 1, 2, 4).reshape(made, 4 * taken, 2, 2))

    def _read(self, source: _Padded, maps: slice, first: int, rows: int, columns: int) -> Tensor:
        pixels = source.read(maps, 2 * first - 1, 2 * (rows * TILE + 1), 2 * (columns * TILE + 1))
        batch, height, width, channels = pixels.shape
        phases = pixels.view(batch, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 2, 4, 5)
        return phases.reshape(batch, height // 2, width // 2, 4 * channels)


class WinogradUp(WinogradForm):
    """Twice the size by nearest, then a 3x3 convolution padded by 1: of the small map, a 2x2 convolution for each of
    the four pixels that a pixel becomes."""

    NUMBERS = 4 * 25

    def __init__(self, weight: Tensor) -> None:
        made, taken = weight.shape[:2]
        # The pixel above-left (0) sees its own source pixel twice and the one before, the other (1) the one after.
        taps = torch.tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]], dtype=torch.float64, device=weight.device)
        phases = torch.einsum("aqx,bpy,ocxy->abocqp", taps, taps, weight.double())
        super().__init__(phases.reshape(4 * made, taken, 2, 2))

    def _places(self, side: int) -> int:
        return side + 1  # place p sees the pixels p - 1 and p: pixel p of phase 0, pixel p - 1 of phase 1

    def _output(self, x: Tensor, height: int, width: int) -> Tensor:
        size = (x.shape[0], self.winograd.kernel.shape[-1] // 4, 2 * height, 2 * width)
        return torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)

    def _write(
        self, out: Tensor, tiles: Tensor, bias: Tensor | None, residual: Tensor | None, first: int, last: int
    ) -> None:
        tiles = tiles.view(*tiles.shape[:-1], 2, 2, -1)
        if bias is not None:
            tiles = tiles.add_(bias)
        places = tiles.permute(2, 3, 1, 4, 0, 5, 6, 7).flatten(3, 4).flatten(1, 2)  # (N, rows, columns, 2, 2, C)
        target = out.permute(0, 2, 3, 1)
        height, width = target.shape[1] // 2, target.shape[2] // 2
        for a in range(2):
            top, bottom = max(first, a), min(last, height + a)
            for b in range(2):
                made = places[:, top - first : bottom - first, b : b + width, a, b]
                target[:, 2 * top - a : 2 * (bottom - a) : 2, b::2] = made


class _Padded:
    """A map (N, C, H, W), read as float32 (N, rows, columns, C) with zeros beyond its borders."""

    def __init__(
        self,
        x: Tensor,
        affine: tuple[Tensor, Tensor] | None,
        act: Callable[[Tensor], Tensor] | None,
        halo: bool,
    ) -> None:
        self._pixels = x.permute(0, 2, 3, 1)
        self._affine = None if affine is None else tuple(part.permute(0, 2, 3, 1) for part in affine)
        self._act = act
        self._halo = int(halo)
        self.size = (x.shape[2] - 2 * self._halo, x.shape[3])

    def read(self, maps: slice, first: int, rows: int, columns: int) -> Tensor:
        """Rows from ``first`` on, and columns from -1 on. The result is the caller's."""
        source = self._pixels[maps]
        _, height, width, channels = source.shape
        first += self._halo
        top, bottom = max(0, first), min(height, first + rows)
        out = torch.empty((source.shape[0], rows, columns, channels))
        out[:, : top - first] = 0
        out[:, bottom - first :] = 0
        inside = out[:, top - first : bottom - first]
        inside[:, :, 0] = 0
        inside[:, :, width + 1 :] = 0
        inside = inside[:, :, 1 : width + 1]
        inside.copy_(source[:, top:bottom, :, :])
        if self._affine is not None:
            scale, shift = (part[maps] for part in self._affine)
            torch.addcmul(shift, inside, scale, out=inside)
        if self._act is F.silu:
            F.silu(inside, inplace=True)
        elif self._act is not None:
            inside.copy_(self._act(inside))
        return out


def _tiled(pixels: Tensor) -> Tensor:
    """(N, H, W, C) -> (N, H / 4, 4, W / 4, 4, C)."""
    batch, height, width, channels = pixels.shape
    return pixels.view(batch, height // TILE, TILE, width // TILE, TILE, channels)
