"""A shard's samples by key: read once, in order, and those that come too early kept on the local disk."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from asymvae.faults import Fault
from asymvae.storage.samples import BadSample, FieldNames, Role, read_shard
from asymvae.storage.shards import Shard

_Found = dict[Role, bytes] | Fault
_Stored = dict[Role, tuple[int, int]] | Fault  # offset and length in the file


class KeyedSamples:
    """Where keys are asked for in the shard's own order nothing is written, and one sample is held.

    Args:
        wanted: every key that will be asked for, as often as it will be.
        scratch: a local folder for what is passed over on the way; at most the size of the shard.
    """

    def __init__(self, shard: Shard, fields: FieldNames, wanted: Iterable[str], scratch: Path) -> None:
        self._rows = read_shard(shard, fields)
        self._left = Counter(map(_digest, wanted))
        self._file = (scratch / "originals").open("w+b")
        self._stored: dict[bytes, _Stored] = {}
        self._last: tuple[bytes, _Found] | None = None

    def take(self, key: str) -> _Found:
        """The sample's fields, or what is wrong with it; ``missing_original`` where there is none."""
        wanted = _digest(key)
        self._left[wanted] -= 1
        if self._last is not None and self._last[0] == wanted:
            return self._last[1]
        if (stored := self._stored.get(wanted)) is not None:
            return stored if isinstance(stored, Fault) else {role: self._read(*at) for role, at in stored.items()}
        self._keep()
        for row in self._rows:
            if row.key is None or (isinstance(row, BadSample) and row.fault.code == "duplicate_key"):
                continue  # a fault of the shard: what it cost is missing; the first sample of a key counts
            self._last = _digest(row.key), row.fault if isinstance(row, BadSample) else row.fields
            if self._last[0] == wanted:
                return self._last[1]
            self._keep()
        return Fault("missing_original")

    def _keep(self) -> None:
        """Write the last sample down, if it will be asked for again."""
        if self._last is not None and self._left[self._last[0]] > 0:
            digest, found = self._last
            if digest not in self._stored:
                self._stored[digest] = found if isinstance(found, Fault) else self._written(found)
        self._last = None

    def _written(self, fields: dict[Role, bytes]) -> _Stored:
        stored: dict[Role, tuple[int, int]] = {}
        for role, content in fields.items():
            stored[role] = (self._file.seek(0, 2), len(content))
            self._file.write(content)
        return stored

    def _read(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(length)

    def __enter__(self) -> KeyedSamples:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
