"""WebDataset tars as a stream of samples, and every damage of the archive as a row of its own.

Keys, fields and what is skipped follow webdataset, whose own functions are used where they can be. Its iterators
can't: 1.0.2, like ``tarfile.TarFile.next`` below it, takes an archive that is cut at a header, corrupt in the
middle or followed by another one for a complete one. So headers are read here one by one (by ``tarfile.TarInfo``,
which knows GNU long names and PAX), and an archive is complete only when its two zero blocks have been seen and
nothing but zeros follows.

Nothing is ever extracted: absolute names, ``..``, links and devices have nowhere to point to.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final, cast

from webdataset.tariterators import base_plus_ext, meta_prefix, meta_suffix

from asymvae.faults import Fault
from asymvae.storage.filesystem import open_stream
from asymvae.storage.samples import MAX_FIELD_BYTES, ROLES, BadSample, FieldNames, Role, Sample, safe_key

_META: Final = re.compile(rf"{meta_prefix}[^/]*{meta_suffix}($|/)")  # as tar_file_iterator's skip_meta
_BUFFER: Final = 256 * 1024
_GZIP_MAGIC: Final = b"\x1f\x8b"

# What one member's header, with its PAX records and long names, may take. Real ones need under 10 kB and 5
# reads; a hostile one could ask for gigabytes or recurse until the interpreter's stack ends.
_HEADER_BYTES: Final = 1024 * 1024
_HEADER_READS: Final = 256


class _Truncated(Exception):
    """The archive ended inside what was being read."""


class _Damaged(Exception):
    """The archive is readable as far as ``args[0]``, a Fault, says."""


def read_tar(url: str, fields: FieldNames) -> Iterator[Sample | BadSample]:
    """Stream the samples of one tar, plain or gzipped (told by its first bytes), in the archive's order.

    Consecutive members of one key make a sample; a field that comes again begins the next sample of that key.
    Members that no role claims, and those above ``MAX_FIELD_BYTES``, are skipped unread. At most one sample is
    held, and that only while its members are being read.

    A damaged archive ends with one BadSample whose index is None. The sample in progress at the damage counts
    as part of it, for more of its members may have followed: only a later member of another key, or the
    archive's end, proves a sample complete.

    Raises whatever the store raises.
    """
    with open_stream(url) as stream:
        yield from _read(stream, fields)


def _read(stream: BinaryIO, fields: FieldNames) -> Iterator[Sample | BadSample]:
    head = stream.read(2)
    while len(head) == 1 and (more := stream.read(1)):
        head += more
    if not head:
        yield BadSample(None, None, Fault("shard_empty"))
        return
    plain: Any = io.BufferedReader(_Rejoined(head, stream), _BUFFER)
    archive = _Archive(gzip.GzipFile(fileobj=plain, mode="rb") if head == _GZIP_MAGIC else plain)
    try:
        yield from _samples(archive, _Claims(fields))
        _check_end(archive)
    except _Truncated:
        yield BadSample(None, None, Fault("tar_truncated", {"offset": archive.position}))
    except _Damaged as damage:
        yield BadSample(None, None, damage.args[0])
    except (EOFError, zlib.error, gzip.BadGzipFile):
        yield BadSample(None, None, Fault("gzip_corrupt", {"offset": archive.position}))


def _samples(archive: _Archive, claims: _Claims) -> Iterator[Sample | BadSample]:
    index = 0
    group: _Group | None = None
    for member, size in archive.members():
        key, extension = base_plus_ext(member)
        if key is None:
            continue
        extension = extension.lower()
        if group is None or group.key != key or extension in group.extensions:
            if group is not None:
                yield group.sample(index)
                index += 1
            group = _Group(key)
        group.extensions.add(extension)
        claim = claims.of(extension)
        if claim is None or not group.wants(claim):
            continue
        group.take(claim, archive, size)
    if group is not None:
        yield group.sample(index)


def _check_end(archive: _Archive) -> None:
    """After the first zero block: the second must follow, and then zeros alone (tar pads its last record)."""
    start, chunk = archive.position, archive.take(tarfile.BLOCKSIZE)
    while chunk:
        if rest := chunk.lstrip(b"\0"):
            raise _Damaged(Fault("tar_trailing_data", {"offset": start + len(chunk) - len(rest)}))
        start, chunk = archive.position, archive.take_some()


@dataclass(frozen=True, slots=True)
class _Claim:
    """A member's part in its sample: the role, the name that matched, and that name's rank in the role's list."""

    role: Role
    name: str
    rank: int


class _Claims:
    """Which role, if any, a field belongs to: that of the longest name it is, or ends in after a dot."""

    def __init__(self, fields: FieldNames) -> None:
        self._by_name: dict[str, _Claim] = {}
        for role in ROLES:
            for rank, name in enumerate(fields.of(role)):
                self._by_name.setdefault(name.lower(), _Claim(role, name, rank))

    def of(self, extension: str) -> _Claim | None:
        """The claim on a lower-cased extension; its suffixes are tried from the longest down."""
        while (claim := self._by_name.get(extension)) is None:
            _, dot, extension = extension.partition(".")
            if not dot:
                return None
        return claim


@dataclass(slots=True)
class _Group:
    """The sample being collected. One member a role: of the name that is preferred, else the first."""

    key: str
    extensions: set[str] = field(default_factory=set)
    _ranks: dict[Role, int] = field(default_factory=dict)
    _fields: dict[Role, bytes] = field(default_factory=dict)
    _faults: dict[Role, Fault] = field(default_factory=dict)

    def wants(self, claim: _Claim) -> bool:
        rank = self._ranks.get(claim.role)
        return rank is None or claim.rank < rank

    def take(self, claim: _Claim, archive: _Archive, size: int) -> None:
        self._ranks[claim.role] = claim.rank
        self._fields.pop(claim.role, None)
        self._faults.pop(claim.role, None)
        if size <= MAX_FIELD_BYTES:
            self._fields[claim.role] = archive.take(size)
        else:
            values: dict[str, int | str] = {"field": claim.name, "size": size, "limit": MAX_FIELD_BYTES}
            self._faults[claim.role] = Fault("field_too_large", values)

    def sample(self, index: int) -> Sample | BadSample:
        # tarfile decodes names with surrogateescape: the way back gives the archive's own bytes
        key = safe_key(self.key.encode("utf-8", "surrogateescape"))
        for role in ROLES:
            if role in self._faults:
                return BadSample(index, key, self._faults[role])
        return Sample(index, key, self._fields)


class _Archive:
    """The uncompressed archive, read forward only; to ``tarfile.TarInfo`` it is the TarFile and its file."""

    encoding = "utf-8"
    errors = "surrogateescape"

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self.position = 0  # bytes read so far
        self.offset = 0  # where the next header begins: set by TarInfo
        self.pax_headers: dict[str, str] = {}
        self._stream = stream
        self._reads = 0
        self._limit = 0

    @property
    def fileobj(self) -> _Archive:
        return self

    def tell(self) -> int:
        return self.position

    def members(self) -> Iterator[tuple[str, int]]:
        """(name, size) of each regular file, up to the first zero block. What isn't taken of it is skipped."""
        while True:
            self._skip(self.offset - self.position)
            start = self.position
            member = self._header()
            if member is None:
                return
            if member.isreg() and not member.issparse():
                if not 0 <= member.size <= self.offset - self.position:
                    raise _Damaged(Fault("tar_corrupt", {"offset": start}))
                yield member.name, member.size

    def _header(self) -> tarfile.TarInfo | None:
        start = self.position
        self._reads, self._limit = 0, start + _HEADER_BYTES
        try:
            member = tarfile.TarInfo.fromtarfile(cast(tarfile.TarFile, self))
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # typeshed leaves it out
            return None
        except (tarfile.HeaderError, ValueError) as error:
            raise _Damaged(Fault("tar_corrupt", {"offset": start})) from error
        if self.offset < self.position:  # a negative size
            raise _Damaged(Fault("tar_corrupt", {"offset": start}))
        # Global PAX headers pile up; of them, only what TarInfo itself uses is needed again.
        self.pax_headers = {k: v for k, v in self.pax_headers.items() if k in tarfile.PAX_FIELDS}
        return member

    def read(self, size: int) -> bytes:
        """For TarInfo alone, while it reads a header."""
        self._reads += 1
        if size < 0 or self.position + size > self._limit or self._reads > _HEADER_READS:
            raise tarfile.HeaderError("this header is larger than any real one")
        return self.take(size)

    def take(self, size: int) -> bytes:
        """Exactly ``size`` bytes."""
        data = self._stream.read(size)
        self.position += len(data)
        if len(data) < size:
            raise _Truncated
        return data

    def take_some(self) -> bytes:
        """The bytes at hand; none at the end."""
        data = self._stream.read1(_BUFFER)
        self.position += len(data)
        return data

    def _skip(self, size: int) -> None:
        while size > 0:
            size -= len(self.take(min(size, _BUFFER)))


class _Rejoined(io.RawIOBase):
    """A stream with the bytes in front again that were read to see what it is."""

    def __init__(self, head: bytes, stream: BinaryIO) -> None:
        self._head = head
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head or self._stream.read(len(buffer))
        buffer[: len(data)] = data
        self._head = b""
        return len(data)
