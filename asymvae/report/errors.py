"""Error rows of a job: examples of every code, and the first rows, reading no more parts than these need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from asymvae.report.digest import ShardRecord
from asymvae.storage import filesystem

_EXAMPLES: Final = 3
_BATCH: Final = 256


@dataclass(slots=True)
class Errors:
    """``rows``: the first ones, with their shard's name as ``shard``. ``examples``: by code, the first few rows."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)


def read_errors(out_url: str, shards: Sequence[ShardRecord], *, most: int) -> Errors:
    """The first ``most`` rows in order of shards, and three examples of every code that the commits count."""
    errors = Errors()
    for shard in shards:
        if shard.errors_part is None or _enough(errors, shard, most):
            continue
        try:
            with filesystem.open_stream(filesystem.join(out_url, shard.errors_part)) as stream:
                for batch in pq.ParquetFile(stream).iter_batches(batch_size=_BATCH):
                    _add(errors, batch.to_pylist(), shard, most)
                    if _enough(errors, shard, most):
                        break
        except (OSError, pa.ArrowException) as error:
            errors.unreadable.append(f"{shard.errors_part}: {type(error).__name__}")
    return errors


def _enough(errors: Errors, shard: ShardRecord, most: int) -> bool:
    """Nothing of this shard's is wanted any more."""
    known = (len(errors.examples.get(code, ())) >= _EXAMPLES for code in shard.errors_by_code)
    return len(errors.rows) >= most and all(known)


def _add(errors: Errors, rows: list[dict[str, Any]], shard: ShardRecord, most: int) -> None:
    for row in rows:
        row["shard"] = shard.name
        if len(errors.rows) < most:
            errors.rows.append(row)
        examples = errors.examples.setdefault(row["code"], [])
        if len(examples) < _EXAMPLES:
            examples.append(row)
