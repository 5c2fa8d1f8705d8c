"""A remote file as a stream that survives its connections."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Protocol

from asymvae.storage.retry import retrying


class Version(Protocol):
    """What tells two contents of one file apart, by ``==``."""

    @property
    def size(self) -> int: ...


class ReopeningStream(io.RawIOBase):
    """Reads through the file that ``open_file`` opens, and opens it again where a transient error cut it.

    Args:
        open_file: gives a seekable file and its version.
        name: for messages; without secrets.

    Raises:
        OSError: the file was replaced meanwhile: its halves don't fit together.
    """

    def __init__(self, open_file: Callable[[], tuple[Any, Version]], name: str) -> None:
        self.name = name
        self._open_file = open_file
        self._position = 0
        self._file: Any = None
        self._version: Version | None = None
        self._size = retrying()(self._open)

    def _open(self) -> int:
        file, version = self._open_file()
        if self._version not in (None, version):
            file.close()
            raise OSError(f"{self.name} was replaced while it was being read")
        self._file, self._version = file, version
        return version.size

    def readinto(self, buffer: Any) -> int:
        data = retrying()(self._read_here, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _read_here(self, size: int) -> bytes:
        if self._file is None:
            self._open()
        try:
            self._file.seek(self._position)
            return bytes(self._file.read(size))
        except Exception:
            self._drop()
            raise

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def _drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def close(self) -> None:
        self._drop()
        super().close()
