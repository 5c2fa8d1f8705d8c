"""A shard as a stream of samples: the types, and :func:`read_shard`, which knows both formats."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, get_args

from asymvae.faults import Fault
from asymvae.storage.shards import Shard

Role = Literal["image", "mask", "prompt", "given", "json"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)

# One field is held in memory whole; what is larger is no photograph but a mistake (or an attack).
MAX_FIELD_BYTES: Final = 512 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class FieldNames:
    """Where each role's bytes are found: names of fields (tar) or columns (Parquet), the preferred one first.

    In a tar a name matches, in any case, the field of that name and fields ending in "." + name; the longest
    matching name decides the role, so that "mask.png" is a mask although "png" is an image. In Parquet a name
    is a column's, exactly. ``key`` is the column of the sample's key: Parquet only.
    """

    image: tuple[str, ...]
    mask: tuple[str, ...]
    prompt: tuple[str, ...]
    given: tuple[str, ...]
    json: tuple[str, ...]
    key: str | None = None

    def of(self, role: Role) -> tuple[str, ...]:
        """The names of one role."""
        names: tuple[str, ...] = getattr(self, role)
        return names


@dataclass(frozen=True, slots=True)
class Sample:
    """``index`` counts a shard's samples from 0 in input order, bad ones too. ``fields`` holds the roles found."""

    index: int
    key: str
    fields: dict[Role, bytes]


@dataclass(frozen=True, slots=True)
class BadSample:
    """A sample that can't be read or, where ``index`` is None, a fault of the shard itself."""

    index: int | None
    key: str | None
    fault: Fault


def read_shard(shard: Shard, fields: FieldNames) -> Iterator[Sample | BadSample]:
    """Stream one shard's samples in input order; memory does not grow with its length, but for a hash a key.

    A key that came before is a ``duplicate_key``: the first sample of a key stays, bad or good. Which roles a
    job needs is the job's to say: a sample without any is a sample.

    Raises what the store raises (time-outs, a shard that is gone); damage of the file's format is a row.
    """
    rows: Iterator[Sample | BadSample]
    # Imported late: both take their types from this module, and webdataset's import alone takes a second.
    if shard.format == "webdataset":
        from asymvae.storage.webdataset import read_tar

        rows = read_tar(shard.url, fields)
    else:
        from asymvae.storage.parquet import read_parquet

        rows = read_parquet(shard, fields)

    seen: set[bytes] = set()
    for row in rows:
        if row.key is not None:
            digest = hashlib.blake2b(row.key.encode(), digest_size=16).digest()
            if digest in seen:
                yield BadSample(row.index, row.key, Fault("duplicate_key"))
                continue
            seen.add(digest)
        yield row


def safe_key(raw: bytes) -> str:
    r"""A key as text that UTF-8 and Parquet can hold: bytes that are no UTF-8 become ``\xNN``."""
    return raw.decode("utf-8", "backslashreplace")
