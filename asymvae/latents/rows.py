"""Row groups -> slices of a few MB, and slices -> the rows of a batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.utils.dlpack
from numpy.typing import NDArray
from torch import Tensor

from asymvae.latents.order import Pick, Piece, Stretch
from asymvae.latents.parts import LatentPart
from asymvae.storage.ranges import open_parquet, read_footer

Cells = NDArray[Any] | list[str | None]

_SLICE_BYTES: Final = 4 * 2**20  # of latents, decoded at once
_BUFFER_BYTES: Final = 2 * 2**20  # of a column's compressed bytes, read at once


@dataclass(frozen=True, slots=True)
class Slice:
    """Consecutive rows of one row group: ``place`` is the first one's in the worker's stretch of ``bucket``.

    ``latents``: mean and, where asked for, logvar, each (rows, C * h * w) as stored, in Arrow's memory. ``part_row``:
    the first row's number in its part.
    """

    bucket: int
    place: int
    rows: int
    part: str
    part_row: int
    shape: tuple[int, int, int]
    latents: dict[str, Tensor]
    columns: dict[str, Cells]

    @property
    def size(self) -> int:
        """Bytes of the latents."""
        return sum(values.nbytes for values in self.latents.values())


class SliceReader:
    """Reads a stretch, from the row at ``place`` on, in order.

    Args:
        latents: of ``mean`` and ``logvar``, what is wanted.
        columns: others to read.
    """

    def __init__(
        self,
        parts: Sequence[LatentPart],
        bucket: int,
        stretch: Stretch,
        place: int,
        latents: Sequence[str],
        columns: Sequence[str],
    ) -> None:
        self.read = place  # up to here
        self._parts, self._bucket = parts, bucket
        self._latents, self._columns = latents, columns
        self._slices = self._of(stretch.pieces, place)

    def up_to(self, place: int) -> Iterator[Slice]:
        """What isn't read yet up to the row at ``place``, and the rest of its slice."""
        while self.read <= place:
            part = next(self._slices)
            self.read = part.place + part.rows
            yield part

    def _of(self, pieces: Sequence[Piece], place: int) -> Iterator[Slice]:
        begin = 0
        for piece in pieces:
            if begin + piece.rows > place:
                skipped = max(place - begin, 0)
                yield from self._of_piece(piece, begin + skipped, piece.start + skipped)
            begin += piece.rows

    def _of_piece(self, piece: Piece, place: int, start: int) -> Iterator[Slice]:
        part = self._parts[piece.part]
        wanted = [*self._latents, "shape", *(name for name in self._columns if name != "shape")]
        rows = max(1, _SLICE_BYTES // (part.row_bytes * len(self._latents)))
        at = 0
        try:
            with open_parquet(part.url, part.size, _footer(part.url, part.size), _BUFFER_BYTES) as file:
                for batch in file.iter_batches(rows, row_groups=[piece.group], columns=wanted, use_threads=False):
                    low, high = max(start - at, 0), min(piece.stop - at, batch.num_rows)
                    if low < high:
                        yield self._slice(part, batch.slice(low, high - low), place, piece.first + at + low)
                        place += high - low
                    at += batch.num_rows
                    if at >= piece.stop:
                        return
        except (pa.ArrowException, OSError) as error:
            raise OSError(f"{part.name} can't be read: {error}; look with `python -m jobs.audit --deep`") from error
        raise OSError(f"{part.name}: row group {piece.group} ends before row {piece.stop}")

    def _slice(self, part: LatentPart, batch: pa.RecordBatch, place: int, part_row: int) -> Slice:
        shapes = _numbers(part, "shape", batch)
        if (shapes != shapes[0]).any():
            raise ValueError(f"{part.name}: rows of one bucket have different shapes")
        channels, height, width = (int(side) for side in shapes[0])
        latents = {name: self._tensor(part, name, batch) for name in self._latents}
        for name, values in latents.items():
            if values.shape[1] != channels * height * width:
                raise ValueError(f"{part.name}: {name} has {values.shape[1]} values, shape says {shapes[0].tolist()}")
        columns = {name: _cells(part, name, batch) for name in self._columns}
        shape = (channels, height, width)
        return Slice(self._bucket, place, batch.num_rows, part.name, part_row, shape, latents, columns)

    def _tensor(self, part: LatentPart, name: str, batch: pa.RecordBatch) -> Tensor:
        # By DLPack: numpy's view of Arrow's memory is read-only, of which torch warns.
        values = torch.utils.dlpack.from_dlpack(_values(part, name, batch)).view(batch.num_rows, -1)
        return values.view(torch.bfloat16) if values.dtype == torch.uint16 else values


@lru_cache(64)
def _footer(url: str, size: int) -> pq.FileMetaData:
    return read_footer(url, size)


def _cells(part: LatentPart, name: str, batch: pa.RecordBatch) -> Cells:
    kind = batch.schema.field(name).type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return batch.column(name).to_pylist()  # type: ignore[no-any-return]
    return _numbers(part, name, batch)


def _numbers(part: LatentPart, name: str, batch: pa.RecordBatch) -> NDArray[Any]:
    """(rows,), or (rows, n) of lists that all have n elements; no copy where Arrow's memory will do."""
    array: NDArray[Any] = _values(part, name, batch).to_numpy(zero_copy_only=False)
    return array.reshape(batch.num_rows, -1) if pa.types.is_list(batch.schema.field(name).type) else array


def _values(part: LatentPart, name: str, batch: pa.RecordBatch) -> pa.Array:
    """The column's values; of lists, which must have the same length, the elements of all."""
    column = batch.column(name)
    is_list = pa.types.is_list(column.type)
    values = column.flatten() if is_list else column
    if column.null_count or values.null_count:
        raise ValueError(f"{part.name}: {name} has nulls")
    if is_list:
        lengths = np.diff(column.offsets.to_numpy())
        if (lengths != lengths[0]).any():
            raise ValueError(f"{part.name}: the lists of {name} have different lengths")
    return values


Found = tuple[Slice, NDArray[np.int64], NDArray[np.int64]]  # a slice, numbers of places in it, their rows there


class Held:
    """The slices of one bucket whose rows may still be asked for: what a shuffle buffer of ``window`` rows holds."""

    def __init__(self, window: int) -> None:
        self._slices: deque[Slice] = deque()
        self._window, self._highest = window, -1

    def add(self, part: Slice) -> None:
        """Raises ValueError where it has another shape than its neighbour."""
        if self._slices and self._slices[-1].shape != part.shape:
            shapes = " and ".join(f"{of.shape} in {of.part}" for of in (self._slices[-1], part))
            raise ValueError(f"latents of one bucket have different shapes: {shapes}")
        self._slices.append(part)

    @property
    def needed(self) -> int:
        """No row before this place will be asked for again (see asymvae.latents.order)."""
        return max(0, self._highest - self._window + 1)

    def pass_by(self, pick: Pick) -> None:
        """The batch is made: let go of what no later one needs."""
        if pick.real:
            self._highest = max(self._highest, int(pick.places.max()))
        while self._slices and self._slices[0].place + self._slices[0].rows <= self.needed:
            self._slices.popleft()

    def find(self, places: NDArray[np.int64]) -> list[Found]:
        """Where the rows are; each slice that holds any of them once."""
        firsts = np.array([part.place for part in self._slices])
        owner = np.searchsorted(firsts, places, side="right") - 1
        if owner.min() < 0:
            raise RuntimeError(f"row {places.min()} was let go of before its batch was made")
        found = []
        for number in np.unique(owner):
            numbers = np.flatnonzero(owner == number)
            found.append((self._slices[number], numbers, places[numbers] - firsts[number]))
        return found
