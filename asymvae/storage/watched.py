"""A Parquet file under Arrow's hands that tells the store's errors from damage of the file's."""

from __future__ import annotations

import io
from typing import BinaryIO, Final, cast

import pyarrow as pa
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from asymvae.storage.filesystem import info, open_stream, redact, resolve
from asymvae.storage.stream import ReopeningStream

# What damage makes Arrow raise; the last for names in the schema.
UNREADABLE: Final = (pa.ArrowException, OSError, UnicodeDecodeError)


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
            return self._file.read(size)
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
