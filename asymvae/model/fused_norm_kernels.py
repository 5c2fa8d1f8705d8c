"""The Triton kernels of ``fused_norm``. Importing this module needs triton; nothing else here does.

A map is (N, P, C) in memory: N samples of P pixels, the C channels of a pixel side by side. A program works on one
chunk of ``rows`` pixels and one tile of channels. Offsets of a chunk are 64-bit, those inside it 32-bit. Nothing is
added atomically: partial results have a place each, and are read in order.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def _place(pixels, channels, rows, BLOCK_CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """(place among the chunks of all samples, sample, pixels left from the chunk's first one, first number, columns).

    Neighbouring programs share pixels, so that the channel tiles of a pixel are read at about the same time.
    """
    program = tl.program_id(0)
    tiles = tl.cdiv(channels, BLOCK_CHANNELS)
    chunks = tl.cdiv(pixels, rows)
    place = program // tiles
    sample = place // chunks
    first = place % chunks * rows
    columns = program % tiles * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    return place, sample, pixels - first, (sample.to(tl.int64) * pixels + first) * channels, columns


@triton.jit  # type: ignore[untyped-decorator]
def moments(  # type: ignore[no-untyped-def]
    x, means, squares, pixels, channels, rows, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr
):
    """Of each chunk and channel: the mean, and the sum of squared deviations from it; both (N, chunks, C) float32.

    Every lane keeps its own running mean (Welford), so that no large sums are subtracted from one another.
    """
    place, _, left, start, columns = _place(pixels, channels, rows, BLOCK_CHANNELS)
    lanes = tl.arange(0, BLOCK_ROWS)
    in_map = columns < channels
    left = tl.minimum(left, rows)
    source = x + start + (lanes[:, None] * channels + columns[None, :])

    seen = 0.0
    mean = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), tl.float32)
    square = tl.zeros((BLOCK_ROWS, BLOCK_CHANNELS), tl.float32)
    for row in range(0, rows, BLOCK_ROWS):
        inside = (row + lanes < left)[:, None] & in_map[None, :]
        value = tl.load(source + row * channels, mask=inside, other=0.0).to(tl.float32)
        seen += 1.0
        delta = tl.where(inside, value - mean, 0.0)
        mean += delta * (1.0 / seen)
        square += delta * (value - mean)

    # The lanes' means are merged as differences from the first lane's, which always holds a pixel.
    count = ((left - lanes + BLOCK_ROWS - 1) // BLOCK_ROWS).to(tl.float32)
    count = tl.where(lanes < left, count, 0.0)[:, None]
    anchor = tl.sum(tl.where((lanes == 0)[:, None], mean, 0.0), axis=0)
    merged = anchor + tl.sum(count * (mean - anchor[None, :]), axis=0) / left
    apart = mean - merged[None, :]
    square = tl.sum(square + count * apart * apart, axis=0)

    at = place.to(tl.int64) * channels + columns
    tl.store(means + at, merged, mask=in_map)
    tl.store(squares + at, square, mask=in_map)


@triton.jit  # type: ignore[untyped-decorator]
def merge(  # type: ignore[no-untyped-def]
    means, squares, weight, bias, conv_bias, centre, scale, shift, pixels, channels, rows, groups, eps,
    HAS_CONV_BIAS: tl.constexpr, BLOCK_CHUNKS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """(N, chunks, C) moments -> three (N, C) float32, such that the norm is (x - centre) * scale + shift.

    One program a sample and group; float64, for there is little of it. A convolution's bias moves its channel's mean
    and nothing else. What rounding the centre to float32 loses is put into the shift.
    """
    program = tl.program_id(0)
    sample = program // groups
    width = channels // groups
    chunks = tl.cdiv(pixels, rows)
    lanes = tl.arange(0, BLOCK_WIDTH)
    in_group = lanes < width
    columns = program % groups * width + lanes
    added = tl.zeros((BLOCK_WIDTH,), tl.float64)
    if HAS_CONV_BIAS:
        added += tl.load(conv_bias + columns, mask=in_group, other=0.0).to(tl.float64)
    start = sample.to(tl.int64) * chunks * channels

    number = tl.zeros((BLOCK_CHUNKS,), tl.float64)
    total = tl.zeros((BLOCK_CHUNKS, BLOCK_WIDTH), tl.float64)
    for first in range(0, chunks, BLOCK_CHUNKS):
        chunk = first + tl.arange(0, BLOCK_CHUNKS)
        inside = (chunk < chunks)[:, None] & in_group[None, :]
        count = tl.where(chunk < chunks, tl.minimum(pixels - chunk * rows, rows), 0).to(tl.float64)
        at = start + (chunk[:, None] * channels + columns[None, :])
        value = tl.load(means + at, mask=inside, other=0.0).to(tl.float64) + added[None, :]
        total += tl.where(inside, count[:, None] * value, 0.0)
        number += count * width
    number = tl.sum(number, axis=0)
    mean = tl.sum(tl.sum(total, axis=1), axis=0) / number

    total = tl.zeros((BLOCK_CHUNKS, BLOCK_WIDTH), tl.float64)
    for first in range(0, chunks, BLOCK_CHUNKS):
        chunk = first + tl.arange(0, BLOCK_CHUNKS)
        inside = (chunk < chunks)[:, None] & in_group[None, :]
        count = tl.where(chunk < chunks, tl.minimum(pixels - chunk * rows, rows), 0).to(tl.float64)
        at = start + (chunk[:, None] * channels + columns[None, :])
        apart = tl.load(means + at, mask=inside, other=0.0).to(tl.float64) + added[None, :] - mean
        within = tl.load(squares + at, mask=inside, other=0.0).to(tl.float64)
        total += tl.where(inside, within + count[:, None] * apart * apart, 0.0)
    variance = tl.sum(tl.sum(total, axis=1), axis=0) / number

    gain = tl.load(weight + columns, mask=in_group, other=0.0).to(tl.float64) / tl.sqrt(variance + eps)
    exact = mean - added
    rounded = exact.to(tl.float32)
    rest = (rounded.to(tl.float64) - exact) * gain
    at = sample * channels + columns
    tl.store(centre + at, rounded, mask=in_group)
    tl.store(scale + at, gain.to(tl.float32), mask=in_group)
    moved = tl.load(bias + columns, mask=in_group, other=0.0).to(tl.float64) + rest
    tl.store(shift + at, moved.to(tl.float32), mask=in_group)


@triton.jit  # type: ignore[untyped-decorator]
def apply(  # type: ignore[no-untyped-def]
    x, out, centre, scale, shift, pixels, channels, rows,
    SILU: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """out = (x - centre) * scale + shift, by sample and channel; then SiLU if asked for."""
    _, sample, left, start, columns = _place(pixels, channels, rows, BLOCK_CHANNELS)
    lanes = tl.arange(0, BLOCK_ROWS)
    in_map = columns < channels
    left = tl.minimum(left, rows)
    at = sample * channels + columns
    middle = tl.load(centre + at, mask=in_map, other=0.0)[None, :]
    gain = tl.load(scale + at, mask=in_map, other=0.0)[None, :]
    moved = tl.load(shift + at, mask=in_map, other=0.0)[None, :]
    offsets = start + (lanes[:, None] * channels + columns[None, :])
    for row in range(0, rows, BLOCK_ROWS):
        inside = (row + lanes < left)[:, None] & in_map[None, :]
        value = tl.load(x + offsets + row * channels, mask=inside, other=0.0).to(tl.float32)
        value = (value - middle) * gain + moved
        if SILU:
            value = value / (1.0 + tl.exp(-value))
        tl.store(out + offsets + row * channels, value.to(out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def add(  # type: ignore[no-untyped-def]
    x, residual, bias, out, pixels, channels, rows, BLOCK_ROWS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr
):
    """out = x + residual + bias, the bias by channel; in float32, rounded once."""
    _, _, left, start, columns = _place(pixels, channels, rows, BLOCK_CHANNELS)
    lanes = tl.arange(0, BLOCK_ROWS)
    in_map = columns < channels
    left = tl.minimum(left, rows)
    moved = tl.load(bias + columns, mask=in_map, other=0.0).to(tl.float32)[None, :]
    offsets = start + (lanes[:, None] * channels + columns[None, :])
    for row in range(0, rows, BLOCK_ROWS):
        inside = (row + lanes < left)[:, None] & in_map[None, :]
        value = tl.load(x + offsets + row * channels, mask=inside, other=0.0).to(tl.float32)
        other = tl.load(residual + offsets + row * channels, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + offsets + row * channels, (value + moved + other).to(out.dtype.element_ty), mask=inside)
