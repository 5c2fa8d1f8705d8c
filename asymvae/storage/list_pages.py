"""Lists of numbers out of a Parquet column chunk, a page at a time, without a level a number.

Parquet keeps two levels beside each number of a list, and the readers at hand (pyarrow, arro3, Polars, fastparquet)
make lists from them, one number after another: of a latent that is most of reading it (README, Reading latents). Here
all lists are of one length, so the levels have one thing to say, where the lists begin; the numbers behind them are
taken as they lie there.

Only what :mod:`asymvae.storage.parts` writes is read: data pages of version 1, PLAIN, compressed by zstd. Source:
https://parquet.apache.org/docs/file-format/data-pages/ and PageHeader in parquet-format's parquet.thrift.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from asymvae.storage.page_encoding import begins_every, read_struct

_STORED: Final[dict[str, np.dtype[Any]]] = {
    "FIXED_LEN_BYTE_ARRAY": np.dtype("<f2"),
    "INT32": np.dtype("<i4"),
    "FLOAT": np.dtype("<f4"),
}

# Of PageHeader and DataPageHeader: numbers of fields, and what they must say.
_TYPE, _SIZE, _STORED_SIZE, _DATA_PAGE = 1, 2, 3, 5
_VALUES, _ENCODING, _DEFINITION_ENCODING, _REPETITION_ENCODING = 1, 2, 3, 4
_V1: Final = 0
_PLAIN: Final = 0
_RLE: Final = 3


@dataclass(frozen=True, slots=True)
class _Page:
    """``content``: compressed, of ``size`` bytes."""

    rows: int
    size: int
    content: pa.Buffer


class ListPages:
    """The lists of one column in one row group, each of ``length`` numbers, in order.

    Args:
        source: the file.
        column: the chunk, of float16, float32, or 16-bit integers, which Parquet keeps in 32 bits.
        buffer_bytes: of the chunk, read at once.

    Raises, here and later:
        ValueError: lists have another length, or are null.
        OSError: the chunk isn't as asymvae writes it, is damaged, or can't be read.
    """

    def __init__(self, source: pa.NativeFile, column: pq.ColumnChunkMetaData, length: int, buffer_bytes: int) -> None:
        self._length, self._name = length, column.path_in_schema
        if column.physical_type not in _STORED or column.compression != "ZSTD" or column.has_dictionary_page:
            raise OSError(
                f"{self._name} is stored as {column.physical_type} by {column.compression}; asymvae writes float16,"
                " float32 and 16-bit integers, by ZSTD and without dictionaries"
            )
        self._dtype, self._codec = _STORED[column.physical_type], pa.Codec("zstd")
        self._most = max(column.total_uncompressed_size, column.total_compressed_size)  # no page is larger
        segment = source.get_stream(column.data_page_offset, column.total_compressed_size)
        self._chunk = pa.BufferedInputStream(segment, buffer_bytes)
        self._lists: NDArray[Any] = np.empty((0, length), self._dtype)

    def skip(self, rows: int) -> None:
        """Pass by as many lists; pages that hold nothing else are not unpacked."""
        while rows > self.ready:
            rows, self._lists = rows - self.ready, self._lists[:0]
            page = self._next_page()
            if page.rows <= rows:
                rows -= page.rows
            else:
                self._lists = self._unpack(page)
        self._lists = self._lists[rows:]

    @property
    def ready(self) -> int:
        """Lists that :meth:`take` gives without reading on."""
        return len(self._lists)

    def fill(self) -> int:
        """Read a page if nothing is ready -> :attr:`ready`, at least 1."""
        if not self.ready:
            self._lists = self._unpack(self._next_page())
        return self.ready

    def take(self, rows: int) -> NDArray[Any]:
        """(rows, length), of those that are ready, in the page's own memory: float16, float32 or uint16.

        The numbers may lie at odd addresses, which numpy and torch can copy from.
        """
        taken, self._lists = self._lists[:rows], self._lists[rows:]
        return taken

    def _next_page(self) -> _Page:
        header = read_struct(self._chunk)
        data_page = header.get(_DATA_PAGE)
        said = [header.get(_TYPE)]
        if isinstance(data_page, dict):
            said += [data_page.get(field) for field in (_ENCODING, _DEFINITION_ENCODING, _REPETITION_ENCODING)]
        if not isinstance(data_page, dict) or said != [_V1, _PLAIN, _RLE, _RLE]:
            raise OSError(f"{self._name} has a page of another kind or encoding than asymvae writes: {said}")
        rows, rest = divmod(self._bounded(data_page.get(_VALUES)), self._length)
        if rest:
            raise self._other_lengths()
        size, stored = self._bounded(header.get(_SIZE)), self._bounded(header.get(_STORED_SIZE))
        content = self._chunk.read_buffer(stored)
        if content.size < stored:
            raise OSError(f"{self._name} ends within a page")
        return _Page(rows, size, content)

    def _bounded(self, number: object) -> int:
        """A size that a header says; what it was before damage, no one knows."""
        if not isinstance(number, int) or not 0 < number <= self._most:
            raise OSError(f"{self._name}: a damaged page header says {number} in a chunk of {self._most} bytes")
        return number

    def _unpack(self, page: _Page) -> NDArray[Any]:
        """The page's lists. Null or empty ones would leave fewer numbers than levels."""
        starts, values = _levels(memoryview(self._codec.decompress(page.content, page.size)))
        _, values = _levels(values)
        count = page.rows * self._length
        if values.nbytes != count * self._dtype.itemsize or not begins_every(self._length, bytes(starts), count):
            raise self._other_lengths()
        lists = np.frombuffer(values, self._dtype).reshape(page.rows, self._length)
        return lists.astype(np.uint16) if self._dtype == np.int32 else lists

    def _other_lengths(self) -> ValueError:
        return ValueError(f"{self._name} has nulls, or lists that don't hold {self._length} numbers")


def _levels(page: memoryview) -> tuple[memoryview, memoryview]:
    """(levels, what follows them)."""
    size = int.from_bytes(page[:4], "little")
    if size > page.nbytes - 4:
        raise OSError("a page's levels are longer than the page")
    return page[4 : 4 + size], page[4 + size :]
