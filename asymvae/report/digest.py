"""What the commit records of a job say, added up: the numbers of a report, and where its parts lie."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from asymvae.storage.ledger import Ledger

Progress = Callable[[str, int, int], None]  # (what is read, done, in all)

_RECORDS_AT_ONCE: Final = 16  # small reads: a store's latency, not its bandwidth
_CHUNK: Final = 1000
_BUCKET: Final = "latents/bucket="


@dataclass(frozen=True, slots=True)
class LatentsPart:
    """A part of one bucket ("512x768", height x width); ``name`` is its path below OUT, ``size`` in bytes."""

    bucket: str
    name: str
    rows: int
    size: int


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """One commit, as far as a report needs it. Parts are paths below OUT, None where the shard has none."""

    name: str
    input_url: str
    input_version: str
    samples: int
    results: int
    errors_by_code: dict[str, int]
    started: datetime | None
    seconds: float
    results_part: str | None
    metrics_part: str | None
    errors_part: str | None
    latents: tuple[LatentsPart, ...] = ()


@dataclass(frozen=True, slots=True)
class Digest:
    """A job's records. ``shards`` are in order of name, so that all that is picked by it is deterministic.

    ``unreadable`` says in words which commit records could not be read: they are counted nowhere else.
    """

    job: dict[str, Any]
    shards: list[ShardRecord]
    failed: dict[str, dict[str, Any]]
    counts: Counter[str] = field(default_factory=Counter)  # samples, planned, results, errors, shard_errors
    errors_by_code: Counter[str] = field(default_factory=Counter)
    bytes_by_kind: Counter[str] = field(default_factory=Counter)
    incomplete: list[str] = field(default_factory=list)  # shards with a fault of their own, a cut tar
    degraded: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def read_digest(ledger: Ledger, progress: Progress | None = None) -> Digest:
    """Read every record of OUT once; memory holds a few hundred bytes a shard.

    Raises:
        FileNotFoundError: no job was ever opened in OUT. ValueError: ``_job.json`` or a failure's record is damaged.
    """
    job = ledger.read_job()
    names = sorted(ledger.committed())
    digest = Digest(job, [], _failed(ledger))

    def read(name: str) -> dict[str, Any] | str | None:
        try:
            return ledger.read_commit(name)
        except FileNotFoundError:  # withdrawn since the listing
            return None
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(_RECORDS_AT_ONCE) as pool:
        for begin in range(0, len(names), _CHUNK):
            chunk = names[begin : begin + _CHUNK]
            for number, record in enumerate(pool.map(read, chunk), begin + 1):
                if isinstance(record, str):
                    digest.unreadable.append(record)
                elif record is not None:
                    _add(digest, record)
                if progress:
                    progress("commits", number, len(names))
    for name in {shard.name for shard in digest.shards}:
        digest.failed.pop(name, None)  # outlived by a commit: a crash kept it from being removed
    return digest


def _failed(ledger: Ledger) -> dict[str, dict[str, Any]]:
    while True:
        with contextlib.suppress(FileNotFoundError):  # removed since the listing, by a commit
            return ledger.failed()


def _add(digest: Digest, record: dict[str, Any]) -> None:
    run = record["run"]
    objects = {part["kind"]: part["object"] for part in record["parts"]}
    digest.shards.append(
        ShardRecord(
            name=record["shard"],
            input_url=record["input"]["url"],
            input_version=record["input"]["version"],
            samples=record["counts"]["samples"],
            results=record["counts"]["results"],
            errors_by_code=record["errors_by_code"],
            started=_time(run.get("started")),
            seconds=float(run.get("seconds") or 0),
            results_part=objects.get("results"),
            metrics_part=objects.get("metrics"),
            errors_part=objects.get("errors"),
            latents=tuple(
                LatentsPart(part["kind"].removeprefix(_BUCKET), part["object"], part["rows"], part["size"])
                for part in record["parts"]
                if part["kind"].startswith(_BUCKET)
            ),
        )
    )
    digest.counts.update(record["counts"])
    digest.errors_by_code.update(record["errors_by_code"])
    for part in record["parts"]:
        digest.bytes_by_kind[part["kind"].partition("/")[0]] += part["size"]
    if not record["complete"]:
        digest.incomplete.append(record["shard"])
    if record["degraded"]:
        digest.degraded.append(record["shard"])


def _time(text: Any) -> datetime | None:
    """The run object is free-form: what is no time is none."""
    with contextlib.suppress(TypeError, ValueError):
        time = datetime.fromisoformat(text)
        return time if time.tzinfo else time.replace(tzinfo=UTC)
    return None
