"""Row groups -> slices, a page of each latent at a time, and slices -> the rows of a batch."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from asymvae.latents.order import Pick, Piece, Stretch
from asymvae.latents.parts import LatentPart
from asymvae.storage.list_pages import ListPages
from asymvae.storage.ranges import open_ranges, read_footer

Cells = NDArray[Any] | list[str | None]

_BUFFER_BYTES: Final = 2 * 2**20  # of a column's compressed bytes, read at once


@dataclass(frozen=True, slots=True)
class Slice:
    """Consecutive rows of one row group: ``place`` is the first one's in the worker's stretch of ``bucket``.

    ``latents``: mean and, where asked for, logvar, each (rows, C * h * w) as stored, in the page's memory.
    ``part_row``: the first row's number in its part.
    """

    bucket: int
    place: int
    rows: int
    part: str
    part_row: int
    shape: tuple[int, int, int]
    latents: dict[str, NDArray[Any]]
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
        try:
            footer = _footer(part.url, part.size)
            with open_ranges(part.url, part.size) as source:
                names = ["shape", *(name for name in self._columns if name != "shape")]
                parquet = pq.ParquetFile(source, metadata=footer, pre_buffer=False)
                beside = parquet.read_row_group(piece.group, columns=names, use_threads=False)
                shape = _one_shape(beside)
                columns = {name: _cells(beside, name) for name in self._columns}
                latents = self._pages(source, footer.row_group(piece.group), math.prod(shape))
                for pages in latents.values():
                    pages.skip(start)
                while start < piece.stop:
                    rows = min(piece.stop - start, *(pages.fill() for pages in latents.values()))
                    values = {name: pages.take(rows) for name, pages in latents.items()}
                    cells = {name: of_group[start : start + rows] for name, of_group in columns.items()}
                    yield Slice(self._bucket, place, rows, part.name, piece.first + start, shape, values, cells)
                    start, place = start + rows, place + rows
        except (pa.ArrowException, OSError) as error:
            raise OSError(f"{part.name} can't be read: {error}; look with `python -m jobs.audit --deep`") from error
        except ValueError as error:
            raise ValueError(f"{part.name}: {error}") from error

    def _pages(self, source: pa.NativeFile, group: pq.RowGroupMetaData, length: int) -> dict[str, ListPages]:
        chunks = [group.column(number) for number in range(group.num_columns)]
        by_name = {chunk.path_in_schema.split(".")[0]: chunk for chunk in chunks}
        return {name: ListPages(source, by_name[name], length, _BUFFER_BYTES) for name in self._latents}


@lru_cache(64)
def _footer(url: str, size: int) -> pq.FileMetaData:
    return read_footer(url, size)


def _one_shape(table: pa.Table) -> tuple[int, int, int]:
    shapes = _numbers(table, "shape")
    if (shapes != shapes[0]).any():
        raise ValueError("rows of one bucket have different shapes")
    if shapes.shape[1] != 3 or shapes[0].min() < 1:
        raise ValueError(f"shape is {shapes[0].tolist()}, not channels, height and width")
    channels, height, width = (int(side) for side in shapes[0])
    return channels, height, width


def _cells(table: pa.Table, name: str) -> Cells:
    kind = table.schema.field(name).type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return table.column(name).to_pylist()  # type: ignore[no-any-return]
    return _numbers(table, name)


def _numbers(table: pa.Table, name: str) -> NDArray[Any]:
    """(rows,), or (rows, n) of lists, which must all have n elements."""
    column = table.column(name).combine_chunks()
    is_list = pa.types.is_list(column.type)
    values = column.flatten() if is_list else column
    if column.null_count or values.null_count:
        raise ValueError(f"{name} has nulls")
    numbers = _as_numpy(values)
    if not is_list:
        return numbers
    lengths = np.diff(_as_numpy(column.offsets))
    if (lengths != lengths[0]).any():
        raise ValueError(f"the lists of {name} have different lengths")
    return numbers.reshape(table.num_rows, -1)


def _as_numpy(values: pa.Array) -> NDArray[Any]:
    """By DLPack: Array.to_numpy imports pandas where it is there, in each worker of each epoch, for half a second."""
    if pa.types.is_boolean(values.type):
        return np.from_dlpack(values.cast(pa.uint8())).view(np.bool_)
    return np.from_dlpack(values)


class Found(NamedTuple):
    """A row of a slice."""

    of: Slice
    row: int


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
        """Where the rows are, in the order of ``places``."""
        firsts = np.array([part.place for part in self._slices])
        owners = np.searchsorted(firsts, places, side="right") - 1
        if owners.min() < 0:
            raise RuntimeError(f"row {places.min()} was let go of before its batch was made")
        slices, rows = list(self._slices), places - firsts[owners]
        return [Found(slices[owner], row) for owner, row in zip(owners.tolist(), rows.tolist(), strict=True)]
