"""A Parquet file that may be damaged, under Arrow's hands: whose fault an error is, and what damage may cost."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO, Final, cast

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from asymvae.storage.filesystem import info, open_stream, redact, resolve
from asymvae.storage.stream import ReopeningStream

# What damage makes Arrow raise; the last for names in the schema.
UNREADABLE: Final = (pa.ArrowException, OSError, UnicodeDecodeError)

# Up to here a row group's columns are read whole, one after another.
_WHOLE_BYTES: Final = 32 * 2**20


class WatchedParquet:
    """The row groups of a file, of which any may be damaged.

    Arrow reads a column chunk whole, or through a buffer; and through a buffer it takes as much memory as a page's
    header says, up to 2 GiB, before it looks whether there is as much. So only of large row groups that is done.

    Args:
        buffer_bytes: of a column of those; a page is held beside it.
    """

    def __init__(self, file: WatchedFile, buffer_bytes: int) -> None:
        self._file, self._buffer_bytes = file, buffer_bytes
        self._whole = self._open(0)
        self._buffered: pq.ParquetFile | None = None
        self.metadata: pq.FileMetaData = self._whole.metadata
        self.schema: pa.Schema = self._whole.schema_arrow
        self.num_row_groups: int = self._whole.num_row_groups

    def batches(self, group: int, rows: int, names: list[str]) -> Iterator[pa.RecordBatch]:
        """The columns of one row group, ``rows`` at a time. Raises one of UNREADABLE."""
        parquet = self._whole
        if self.metadata.row_group(group).total_byte_size > _WHOLE_BYTES:
            parquet = self._buffered = self._buffered or self._open(self._buffer_bytes)
        yield from parquet.iter_batches(rows, row_groups=[group], columns=names, use_threads=False)

    def _open(self, buffer_bytes: int) -> pq.ParquetFile:
        return pq.ParquetFile(self._file, pre_buffer=False, buffer_size=buffer_bytes, page_checksum_verification=True)


class WatchedFile(io.RawIOBase):
    """The file, for Arrow, that remembers what the store raised.

    Arrow raises OSError for damaged pages too, so the type alone doesn't tell whose fault a failed read is.
    """

    def __init__(self, url: str) -> None:
        self._error: Exception | None = None
        fs, path = resolve(url)
        if isinstance(fs, LocalFileSystem | MemoryFileSystem):
            self._file: BinaryIO = open_stream(url)
        else:
            # No read-ahead: it would be thrown away each time Arrow goes on to another column's chunk.
            self._file = cast(
                BinaryIO,
                ReopeningStream(lambda: (fs.open(path, "rb", cache_type="none"), info(url)), redact(url)),
            )
        self.size = self._file.seek(0, io.SEEK_END)

    def raise_own(self, error: Exception) -> None:
        """Raise what the store raised, if that is why ``error`` came."""
        if self._error is not None:
            raise self._error from error

    def read(self, size: int = -1) -> bytes:
        try:
            left = max(0, self.size - self._file.tell())
            return self._file.read(left if size < 0 else min(size, left))  # the buffer would be made before the read
        except Exception as error:
            self._error = error
            raise

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()
