"""WebDataset tars as a stream of samples, and every damage of the archive as a row of its own.

Keys, fields and what is skipped follow webdataset, whose own functions are used where they can be. Its iterators
can't: 1.0.2 takes an archive that is cut at a header, corrupt in the middle or followed by another one for a
complete one (see :mod:`asymvae.storage.tar`).

Nothing is ever extracted: absolute names, ``..``, links and devices have nowhere to point to.
"""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

from webdataset.tariterators import base_plus_ext, meta_prefix, meta_suffix

from asymvae.faults import Fault
from asymvae.storage.filesystem import open_stream
from asymvae.storage.samples import MAX_FIELD_BYTES, ROLES, BadSample, FieldNames, Role, Sample, safe_key
from asymvae.storage.tar import DamagedError, TarReader

_META: Final = re.compile(rf"{meta_prefix}[^/]*{meta_suffix}($|/)")  # as tar_file_iterator's skip_meta
_BUFFER: Final = 256 * 1024
_GZIP_MAGIC: Final = b"\x1f\x8b"


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
    archive = TarReader(gzip.GzipFile(fileobj=plain, mode="rb") if head == _GZIP_MAGIC else plain)
    try:
        yield from _samples(archive, _Claims(fields))
        archive.check_end()
    except DamagedError as damage:
        yield BadSample(None, None, damage.fault)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        yield BadSample(None, None, Fault("gzip_corrupt", {"offset": archive.position}))


def _samples(archive: TarReader, claims: _Claims) -> Iterator[Sample | BadSample]:
    index = 0
    group: _Group | None = None
    for member in archive.members():
        if _META.match(member.name):
            continue
        key, extension = base_plus_ext(member.name)
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
        group.take(claim, archive, member.size)
    if group is not None:
        yield group.sample(index)


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

    def take(self, claim: _Claim, archive: TarReader, size: int) -> None:
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
