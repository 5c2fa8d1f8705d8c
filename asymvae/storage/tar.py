"""A tar archive, read forward only, that tells a complete archive from a damaged one.

``tarfile`` doesn't: ``TarFile.next`` takes a cut at a header, a corrupt header in the middle and a second archive
behind the first for the end, its reading of PAX records skips what is malformed (and, up to Python 3.12.5, can be
made to take hours), and it follows chains of headers by recursion. So only single header blocks are left to it
(``TarInfo.frombuf``); the chains, PAX records and the archive's end are read here.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from asymvae.faults import Fault

_BLOCK: Final = tarfile.BLOCKSIZE
_CHUNK: Final = 256 * 1024

# What one member's header may take with its long names and PAX records. Real ones need less than 10 kB.
_HEADER_BYTES: Final = 1024 * 1024

_LONG: Final = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_PAX: Final = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
_PAX_LENGTH: Final = re.compile(rb"([0-9]{1,7}) ")
_NUMBER: Final = re.compile(rb"[0-9]{1,18}")


class DamagedError(Exception):
    """The archive ends here; ``fault`` says why."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.code)
        self.fault = fault


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file: its name (bytes that are no UTF-8 as surrogates) and its size in bytes."""

    name: str
    size: int


class TarReader:
    """Reads an uncompressed archive from a stream whose ``read(n)`` is short only at the end.

    Use::

        for member in archive.members():   # up to the end-of-archive blocks
            data = archive.take(member.size)   # or not: then it is skipped
        archive.check_end()

    All of it raises DamagedError where the archive is not what it should be.
    """

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self.position = 0  # bytes read so far
        self._stream = stream
        self._global: dict[str, bytes] = {}  # PAX values for all members that follow

    def members(self) -> Iterator[Member]:
        """The regular files up to the archive's end: no links, devices, folders, sparse files."""
        while True:
            start = self.position
            try:
                header = self._header()
            except tarfile.HeaderError as error:
                raise DamagedError(Fault("tar_corrupt", {"offset": start})) from error
            if header is None:
                return
            member, stored = header
            end = self.position + -(-stored // _BLOCK) * _BLOCK
            if member is not None:
                yield member
            while self.position < end:
                self.take(min(end - self.position, _CHUNK))

    def take(self, size: int) -> bytes:
        """Exactly ``size`` bytes."""
        data = self._stream.read(size)
        self.position += len(data)
        if len(data) < size:
            raise DamagedError(Fault("tar_truncated", {"offset": self.position}))
        return data

    def check_end(self) -> None:
        """After the first zero block: a second must follow, then zeros alone (tar pads its last record)."""
        chunk = self.take(_BLOCK)
        while chunk:
            if rest := chunk.lstrip(b"\0"):
                raise DamagedError(Fault("tar_trailing_data", {"offset": self.position - len(rest)}))
            chunk = self._stream.read1(_CHUNK)
            self.position += len(chunk)

    def _header(self) -> tuple[Member | None, int] | None:
        """A member (None if it is no regular file) and the bytes stored for it; None at the first zero block.

        Raises tarfile.HeaderError where there is none.
        """
        limit = self.position + _HEADER_BYTES
        is_first = True
        long_name: bytes | None = None
        local: dict[str, bytes] = {}
        while True:
            block = self.take(_BLOCK)
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # typeshed leaves it out
                if is_first:
                    return None
                raise  # a long name or PAX header that belongs to nothing
            is_first = False
            if info.size < 0:
                raise tarfile.HeaderError("negative size")
            if info.type not in _LONG and info.type not in _PAX:
                break
            if self.position + info.size > limit:
                raise tarfile.HeaderError("larger than any real header")
            body = self.take(-(-info.size // _BLOCK) * _BLOCK)[: info.size]
            if info.type in _PAX:
                (self._global if info.type == tarfile.XGLTYPE else local).update(_pax_records(body))
            elif info.type == tarfile.GNUTYPE_LONGNAME:
                long_name = body.partition(b"\0")[0]

        pax = self._global | local
        size = info.size
        if number := pax.get("size"):  # an empty value takes a global one back
            if not _NUMBER.fullmatch(number):
                raise tarfile.HeaderError("a size that is no number")
            size = int(number)
        if info.type == tarfile.GNUTYPE_SPARSE:
            extended = block[482]
            while extended:
                if self.position > limit:
                    raise tarfile.HeaderError("larger than any real header")
                extended = self.take(_BLOCK)[504]
            return None, size
        if not info.isreg():
            # links, folders and devices have a size at times, and never bytes; of other types nothing is known
            return None, 0 if info.type in tarfile.SUPPORTED_TYPES else size
        if any(name.startswith("GNU.sparse.") for name in pax):
            return None, size
        raw = pax.get("path", b"").rstrip(b"/") or long_name
        name = info.name if raw is None else raw.decode("utf-8", "surrogateescape")
        return Member(name, size), size


def _pax_records(body: bytes) -> dict[str, bytes]:
    """The records of a PAX header ("<length> <keyword>=<value>\\n") that matter here."""
    found = {}
    start = 0
    while start < len(body) and body[start] != 0:
        match = _PAX_LENGTH.match(body, start)
        end = start + int(match[1]) if match else 0
        keyword, equals, value = body[match.end() : end - 1].partition(b"=") if match else (b"", b"", b"")
        if not keyword or not equals or end > len(body) or body[end - 1 : end] != b"\n":
            raise tarfile.HeaderError("no PAX record")
        if keyword in (b"path", b"size") or keyword.startswith(b"GNU.sparse."):
            found[keyword.decode("ascii")] = value
        start = end
    return found
