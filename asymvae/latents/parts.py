"""What there is to read: the latents parts that commits name, all of one kind."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from asymvae.storage.filesystem import join, list_files, redact
from asymvae.storage.ledger import Ledger
from asymvae.storage.ranges import read_footer
from asymvae.storage.schemas import FORMAT_VERSION, LATENT_TYPES

_FOLDER: Final = "latents"
_BUCKET: Final = f"{_FOLDER}/bucket="
_AT_ONCE: Final = 16  # small reads: a store's latency, not its bandwidth
_NAMED: Final = 3  # of many parts, in a message
_VALUE_BYTES: Final = {"float16": 2, "bfloat16": 2, "float32": 4}


@dataclass(frozen=True, slots=True)
class Stamp:
    """What must be the same for all latents of a training run."""

    weights_sha256: str
    scaling_factor: str
    latent_dtype: str
    format_version: str


@dataclass(frozen=True, slots=True)
class LatentPart:
    """One committed Parquet file. ``name`` is its path below OUT; ``group_rows`` the rows of its row groups."""

    name: str
    url: str
    bucket: str  # "512x768": the images' height and width
    size: int
    sha256: str
    group_rows: tuple[int, ...]
    row_bytes: int  # of one mean, as it is stored

    @property
    def rows(self) -> int:
        return sum(self.group_rows)


@dataclass(frozen=True, slots=True)
class BucketGroups:
    """All row groups of one bucket, in the order of the parts' names: arrays of the same length."""

    bucket: str
    part: NDArray[np.int32]  # number in Latents.parts
    group: NDArray[np.int32]  # number in the part
    first: NDArray[np.int64]  # the group's first row, counted in the part
    rows: NDArray[np.int64]
    row_bytes: int

    @property
    def total(self) -> int:
        return int(self.rows.sum())


@dataclass(frozen=True, slots=True)
class Latents:
    parts: tuple[LatentPart, ...]
    stamp: Stamp

    @property
    def digest(self) -> str:
        """32 hex digits that change with any part, and so with every row's place."""
        content = "".join(f"{part.name}\n{part.sha256}\n{part.group_rows}\n" for part in self.parts)
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    def by_bucket(self) -> list[BucketGroups]:
        """In order of the buckets' names."""
        numbers: dict[str, list[int]] = {}
        for number, part in enumerate(self.parts):
            numbers.setdefault(part.bucket, []).append(number)
        return [self._groups(bucket, of) for bucket, of in sorted(numbers.items())]

    def _groups(self, bucket: str, numbers: Sequence[int]) -> BucketGroups:
        sizes = [np.array(self.parts[number].group_rows, np.int64) for number in numbers]
        return BucketGroups(
            bucket,
            np.repeat(np.array(numbers, np.int32), [len(rows) for rows in sizes]),
            np.concatenate([np.arange(len(rows), dtype=np.int32) for rows in sizes]),
            np.concatenate([np.cumsum(rows) - rows for rows in sizes]),
            np.concatenate(sizes),
            max(self.parts[number].row_bytes for number in numbers),
        )


def read_parts(url: str, bucket: str | None) -> Latents:
    """The parts that the commits of OUT name, of ``bucket`` or of all.

    Reads each commit's record and each part's footer, several at once.

    Raises:
        FileNotFoundError: nothing is committed, or a part that a commit names isn't there.
        ValueError: no such bucket, or parts that can't be mixed. The message names them.
        OSError: a part isn't what its commit says.
    """
    ledger = Ledger(url)
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="latents") as pool:
        records = list(pool.map(ledger.read_commit, sorted(ledger.committed())))
        named = sorted(
            ((part, record) for record in records for part in record["parts"] if part["kind"].startswith(_BUCKET)),
            key=lambda pair: str(pair[0]["object"]),
        )
        if not named:
            raise FileNotFoundError(_nothing(url, len(records)))
        buckets = sorted({_bucket_of(part) for part, _ in named})
        if bucket is not None and bucket not in buckets:
            raise ValueError(f"{redact(url)} has no bucket {bucket!r}; it has {', '.join(buckets)}")
        wanted = [pair for pair in named if bucket in (None, _bucket_of(pair[0]))]
        footers = list(pool.map(lambda pair: _footer(url, *pair), wanted))
    stamps = [_stamp(part["object"], footer) for (part, _), footer in zip(wanted, footers, strict=True)]
    parts = tuple(_part(url, part, footer) for (part, _), footer in zip(wanted, footers, strict=True))
    _refuse_a_mixture(parts, stamps)
    return Latents(parts, stamps[0])


def _bucket_of(part: Mapping[str, Any]) -> str:
    return str(part["kind"]).removeprefix(_BUCKET)


def _nothing(url: str, commits: int) -> str:
    shown = redact(url)
    if commits:
        return f"{shown}: the {commits} commits name no latents; is it the output of jobs.precompute_latents?"
    if any(True for _ in _uncommitted(url)):
        return f"{shown}: latents/ holds parts, but none is committed; run jobs.precompute_latents again, it goes on"
    return f"{shown}: nothing is committed; give the output.url of a jobs.precompute_latents that has run"


def _uncommitted(url: str) -> Iterator[str]:
    yield from list_files(join(url, _FOLDER), recursive=True)


def _footer(url: str, part: Mapping[str, Any], record: Mapping[str, Any]) -> pq.FileMetaData:
    where = f"{part['object']} of shard {record['shard']}"
    remedy = f"look with `python -m jobs.audit {redact(url)}`"
    try:
        footer = read_footer(join(url, part["object"]), part["size"])
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where} is committed, and isn't there; {remedy}") from error
    except (OSError, ValueError) as error:
        raise OSError(f"{where} is not what its commit says: {error}; {remedy}") from error
    if footer.num_rows != part["rows"]:
        raise OSError(f"{where} holds {footer.num_rows} rows, {part['rows']} are committed; {remedy}")
    return footer


def _stamp(name: str, footer: pq.FileMetaData) -> Stamp:
    metadata: Mapping[bytes, bytes] = footer.metadata or {}
    values = {field.name: metadata.get(f"asymvae.{field.name}".encode(), b"").decode() for field in fields(Stamp)}
    missing = [f"asymvae.{key}" for key, value in values.items() if not value]
    if missing:
        raise ValueError(f"{name} doesn't say {', '.join(missing)}: it is no latents part of ours")
    stamp = Stamp(**values)
    if stamp.latent_dtype not in LATENT_TYPES:
        raise ValueError(f"{name}: latent_dtype {stamp.latent_dtype!r} is none of {', '.join(LATENT_TYPES)}")
    if int(stamp.format_version) > FORMAT_VERSION:
        raise ValueError(f"{name}: format {stamp.format_version} is newer than this asymvae's, {FORMAT_VERSION}")
    return stamp


def _part(url: str, part: Mapping[str, Any], footer: pq.FileMetaData) -> LatentPart:
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    columns = [groups[0].column(number) for number in range(footer.num_columns)]
    values = next((column.num_values for column in columns if column.path_in_schema.split(".")[0] == "mean"), 0)
    stamp = _stamp(part["object"], footer)
    return LatentPart(
        part["object"],
        join(url, part["object"]),
        _bucket_of(part),
        part["size"],
        part["sha256"],
        tuple(group.num_rows for group in groups),
        max(1, values // groups[0].num_rows) * _VALUE_BYTES[stamp.latent_dtype],
    )


def _refuse_a_mixture(parts: Sequence[LatentPart], stamps: Sequence[Stamp]) -> None:
    for field in fields(Stamp):
        names: dict[str, list[str]] = {}
        for part, stamp in zip(parts, stamps, strict=True):
            names.setdefault(getattr(stamp, field.name), []).append(part.name)
        if len(names) > 1:
            lines = [f"  {value}: {_some(of)}" for value, of in sorted(names.items())]
            raise ValueError(f"latents of different {field.name} can't be mixed:\n" + "\n".join(lines))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
