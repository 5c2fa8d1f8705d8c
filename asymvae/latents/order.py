"""Which rows a worker reads in an epoch, and in which batch each goes: numbers alone, nothing is read.

The row groups of a bucket, shuffled, are one long row of rows. Every worker of every rank has a stretch of it, as long
as its share of the batches; it reads its stretch from end to end, through a buffer that shuffles it once more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asymvae.latents.parts import BucketGroups

_CHUNK = 1 << 16  # rows whose order is drawn at once


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows ``start`` to ``stop`` of a row group. ``first``: the group's first row, counted in its part."""

    part: int
    group: int
    first: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Stretch:
    """What one worker reads of one bucket. A row's *place* is its number in the stretch, from 0.

    ``rows`` are the worker's own, spread evenly over ``batches``. There is always something to read: a worker whose
    batches are all padding (fewer rows than batches) has no row of its own, and one to copy.
    """

    pieces: tuple[Piece, ...]
    rows: int
    batches: int
    window: int  # rows of the shuffle buffer; 0: rows stay in their order


@dataclass(frozen=True, slots=True)
class Pick:
    """One batch: ``places`` (n,) in the stretch of ``bucket``, n <= batch size; ``real``: how many aren't padding."""

    bucket: int
    places: NDArray[np.int64]
    real: int


def stretch(
    groups: BucketGroups,
    batches: NDArray[np.int64],
    worker: int,
    batch_size: int,
    window: int,
    rng: np.random.Generator | None,
) -> Stretch:
    """The stretch of ``worker`` where ``batches`` (workers,) says how many batches each worker of all ranks makes.

    ``rng`` shuffles the row groups; every worker gives one in the same state. Where not all rows fit into the batches,
    those that are left out are neighbours, anywhere.
    """
    every = int(batches.sum())
    before, mine = int(batches[:worker].sum()), int(batches[worker])
    used = min(groups.total, every * batch_size)
    start, stop = used * before // every, used * (before + mine) // every
    order = np.arange(len(groups.rows)) if rng is None else rng.permutation(len(groups.rows))
    turn = 0 if rng is None or used == groups.total else int(rng.integers(groups.total))
    read = max(stop, start + 1)
    pieces = [
        piece
        for low, high in _unrolled(start + turn, read + turn, groups.total)
        for piece in _pieces(groups, order, low, high)
    ]
    return Stretch(tuple(pieces), stop - start, mine, window)


def _unrolled(start: int, stop: int, total: int) -> Iterator[tuple[int, int]]:
    """A range that may run past the end, as one or two that don't."""
    if start >= total:
        start, stop = start - total, stop - total
    yield start, min(stop, total)
    if stop > total:
        yield 0, stop - total


def _pieces(groups: BucketGroups, order: NDArray[np.int64], start: int, stop: int) -> Iterator[Piece]:
    ends = np.cumsum(groups.rows[order])
    first, last = np.searchsorted(ends, [start, stop - 1], side="right")
    for place in range(int(first), int(last) + 1):
        number = order[place]
        rows = int(groups.rows[number])
        begin = int(ends[place]) - rows
        yield Piece(
            int(groups.part[number]),
            int(groups.group[number]),
            int(groups.first[number]),
            max(start - begin, 0),
            min(stop - begin, rows),
        )


def picks(
    steps: NDArray[np.int64],
    stretches: Mapping[int, Stretch],
    rngs: Mapping[int, np.random.Generator],
) -> Iterator[Pick]:
    """The worker's batches in order; ``steps`` holds the bucket of each."""
    decks = {bucket: _Deck(_places(of.rows, of.window, rngs[bucket])) for bucket, of in stretches.items()}
    made = dict.fromkeys(stretches, 0)
    for bucket in steps.tolist():
        of, number = stretches[bucket], made[bucket]
        made[bucket] += 1
        real = of.rows * (number + 1) // of.batches - of.rows * number // of.batches
        # Without a row of its own a batch copies the one that comes next: the last batch always has one.
        places = decks[bucket].take(real) if real else decks[bucket].peek()
        yield Pick(bucket, places, real)


class _Deck:
    """Numbers that come in chunks, taken a few at a time."""

    def __init__(self, chunks: Iterator[NDArray[np.int64]]) -> None:
        self._chunks = chunks
        self._left = np.empty(0, np.int64)

    def take(self, count: int) -> NDArray[np.int64]:
        while len(self._left) < count:
            self._left = np.concatenate([self._left, next(self._chunks)])
        taken, self._left = self._left[:count], self._left[count:]
        return taken

    def peek(self) -> NDArray[np.int64]:
        if not len(self._left):
            self._left = next(self._chunks, np.zeros(1, np.int64))
        return self._left[:1]


def _places(rows: int, window: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """0 to rows - 1, each once, in chunks, as a shuffle buffer of ``window`` rows gives them.

    Place p comes in the order of p + window * u, u drawn from [0, 1): once it is out, so is everything up to
    p - window, and what is read and not yet out is at most ``window`` rows.
    """
    places, keys = np.empty(0, np.int64), np.empty(0)
    for first in range(0, rows, _CHUNK):
        end = min(first + _CHUNK, rows)
        new = np.arange(first, end)
        places = np.concatenate([places, new])
        keys = np.concatenate([keys, new + window * rng.random(len(new))])
        order = np.argsort(keys, kind="stable")
        places, keys = places[order], keys[order]
        out = len(keys) if end == rows else int(np.searchsorted(keys, end))  # those to come have keys >= end
        if out:
            yield places[:out]
        places, keys = places[out:], keys[out:]
