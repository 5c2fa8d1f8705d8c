"""Remote files for reading: what they have in common, and a stream that survives its connections."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Protocol

from asymvae.storage.retry import retrying


class Version(Protocol):
    """What tells two contents of one file apart, by ``==``."""

    @property
    def size(self) -> int: ...


class Positioned(io.RawIOBase):
    """A file for reading whose place is a number of our own: seeking moves that, and asks nobody."""

    _position = 0
    _size = 0  # in bytes

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


class ReopeningStream(Positioned):
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
        except Exception as error:
            self._drop()
            # s3fs looks for a number in a time-out of the body, which has none, and stumbles.
            timeout = error.__context__
            if isinstance(error, IndexError) and isinstance(timeout, TimeoutError):
                raise timeout from timeout.__cause__
            raise

    def _drop(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def close(self) -> None:
        self._drop()
        super().close()
