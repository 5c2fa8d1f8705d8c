"""Parquet files that are read here and there: a footer, then columns of one row group."""

from __future__ import annotations

import os
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from asymvae.storage.filesystem import redact, resolve
from asymvae.storage.retry import retrying
from asymvae.storage.stream import Positioned

_FOOTER_BYTES = 64 * 1024  # one request fetches the footer of most files


def read_footer(url: str, size: int) -> pq.FileMetaData:
    """The footer of a Parquet file that is known to have ``size`` bytes.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it has another size, or no footer.
    """
    fs, path = resolve(url)
    if isinstance(fs, LocalFileSystem):
        there = os.stat(path).st_size
        if there != size:
            raise OSError(f"{redact(url)} has {there} bytes, not {size}")
    with open_parquet(url, size) as file:
        return file.metadata


def open_parquet(url: str, size: int) -> pq.ParquetFile:
    """As :func:`open_ranges`, for columns of row groups. pyarrow's OSError or ValueError for what is no Parquet."""
    return pq.ParquetFile(open_ranges(url, size), pre_buffer=False)


def open_ranges(url: str, size: int) -> pa.NativeFile:
    """Open a file of ``size`` bytes for reading here and there.

    A remote file costs one request a range, tried again where the error may pass, and none until something is read.
    """
    fs, path = resolve(url)
    if isinstance(fs, LocalFileSystem):
        return pa.OSFile(path)
    return pa.PythonFile(_RangeFile(url, size), "r")


class _RangeFile(Positioned):
    """A remote file of known size; every read is one request for that range, but for the file's end, which is kept."""

    def __init__(self, url: str, size: int) -> None:
        self._url, self._size = url, size
        self._tail: bytes | None = None

    def read(self, size: int = -1) -> bytes:
        start = self._position
        end = self._size if size < 0 else min(start + size, self._size)
        if end <= start:
            return b""
        self._position = end
        tail_start = max(0, self._size - _FOOTER_BYTES)
        if start >= tail_start:
            if self._tail is None:
                self._tail = self._fetch(tail_start, self._size)
            return self._tail[start - tail_start : end - tail_start]
        return self._fetch(start, end)

    def _fetch(self, start: int, end: int) -> bytes:
        # Resolved each time: a connection must not be shared with the process that this one was forked from.
        fs, path = resolve(self._url)
        data = bytes(retrying()(lambda: fs.cat_file(path, start=start, end=end)))
        if len(data) != end - start:
            raise OSError(f"{redact(self._url)} ends before the {self._size} bytes that it should have")
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
