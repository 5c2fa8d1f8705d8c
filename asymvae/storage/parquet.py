"""Parquet files as a stream of samples: columns of bytes, of {bytes, path}, or of URLs.

A file is read by row group and, within it, by a few rows at a time; of each column a page is held, which is as
large as its writer made it (a writer that checks the size every 1,024 values makes pages of 1,024 images). What
is damaged costs the rest of its row group, and later rows keep their numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa

from asymvae.faults import Fault
from asymvae.storage.columns import Column, JsonColumn, KeyColumn, Url
from asymvae.storage.samples import ROLES, BadSample, FieldNames, Role, Sample
from asymvae.storage.shards import Shard
from asymvae.storage.urls import FETCHES_AT_ONCE, Fetcher
from asymvae.storage.watched import UNREADABLE, WatchedFile, WatchedParquet

_COLUMN_BUFFER: Final = 2 * 1024 * 1024
_BATCH_BYTES: Final = 8 * 1024 * 1024
_BATCH_ROWS: Final = 256
_LOOKED_AT: Final = 4  # files, before a job starts
_NAMED: Final = 20  # columns, in a message


@dataclass(frozen=True, slots=True)
class _Row:
    """A row whose URLs are still being fetched."""

    index: int
    key: str | Fault
    fields: dict[Role, bytes | Fault | Future[bytes | Fault]]

    @property
    def is_waiting(self) -> bool:
        return any(isinstance(value, Future) for value in self.fields.values())

    def result(self) -> Sample | BadSample:
        if isinstance(self.key, Fault):
            return BadSample(self.index, None, self.key)
        fields: dict[Role, bytes] = {}
        for role, value in self.fields.items():
            content = value.result() if isinstance(value, Future) else value
            if isinstance(content, Fault):
                return BadSample(self.index, self.key, content)
            fields[role] = content
        return Sample(self.index, self.key, fields)


def read_parquet(shard: Shard, fields: FieldNames) -> Iterator[Sample | BadSample]:
    """Stream the rows of one file; ``index`` is the row's number, and without a key column the key's end.

    A role takes the first of its columns that isn't null in the row. Bytes are content; so are strings in
    ``prompt`` and ``json``, elsewhere they are URLs, as is a struct's ``path`` where its ``bytes`` is null. Any other
    struct in ``json`` is the object itself.

    Raises whatever the store raises.
    """
    with WatchedFile(shard.url) as file, Fetcher(shard.url) as fetcher:
        if file.size == 0:
            yield BadSample(None, None, Fault("shard_empty"))
            return
        try:
            parquet = WatchedParquet(file, _COLUMN_BUFFER)
            columns = set(parquet.schema.names)
        except UNREADABLE as error:
            file.raise_own(error)
            yield BadSample(None, None, Fault("parquet_unreadable"))
            return
        roles = {role: [name for name in fields.of(role) if name in columns] for role in ROLES}
        first = 0
        for group in range(parquet.num_row_groups):
            rows = _rows(parquet, group, first, roles, fields.key, shard.name, fetcher)
            try:
                yield from _in_order(rows)
            except _Damage as damage:
                file.raise_own(damage.error)
                yield BadSample(None, None, Fault("parquet_corrupt", {"row_group": group}))
            first += max(0, parquet.metadata.row_group(group).num_rows)


def check_columns(shards: Sequence[Shard], wanted: Mapping[str, Sequence[str]]) -> None:
    """Whether the files have what the settings name: one of the columns of each. ``wanted``: columns by setting.

    A few files are looked at, and one that has them is enough: what is missing in others are error rows.

    Raises:
        ValueError: none of them has; the message names the setting, its columns, and those that there are.
        Whatever the store raises.
    """
    files = [shard for shard in shards if shard.format == "parquet"]
    looked = files[:: max(1, -(-len(files) // _LOOKED_AT))]
    found = {shard.name: columns for shard in looked if (columns := _columns_of(shard)) is not None}
    for setting, names in wanted.items():
        if found and not any(columns & set(names) for columns in found.values()):
            shard, columns = next(iter(found.items()))
            there = ", ".join(sorted(columns)[:_NAMED]) + (", ..." if len(columns) > _NAMED else "")
            meant = ", ".join(names) or "no column"
            raise ValueError(
                f"{setting} names {meant}, and the file {shard} has none of these; it has {there or 'none'}"
            )


def _columns_of(shard: Shard) -> set[str] | None:
    """None: it is no Parquet file that can be read, which is that shard's fault, and a row of its own."""
    with WatchedFile(shard.url) as file:
        try:
            return set(WatchedParquet(file, _COLUMN_BUFFER).schema.names)
        except UNREADABLE as error:
            file.raise_own(error)
            return None


class _Damage(Exception):
    """Arrow could not read on: for ``error``, which may be the file's or the store's."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _in_order(rows: Iterator[_Row]) -> Iterator[Sample | BadSample]:
    """The rows as they come, while the URLs of a few rows ahead are fetched."""
    waiting: deque[_Row] = deque()
    damage: _Damage | None = None
    try:
        for row in rows:
            waiting.append(row)
            while waiting and (len(waiting) > FETCHES_AT_ONCE or not waiting[0].is_waiting):
                yield waiting.popleft().result()
    except _Damage as error:
        damage = error  # what was read before it is good
    while waiting:
        yield waiting.popleft().result()
    if damage:
        raise damage


def _rows(
    parquet: WatchedParquet,
    group: int,
    first: int,
    roles: dict[Role, list[str]],
    key: str | None,
    shard_name: str,
    fetcher: Fetcher,
) -> Iterator[_Row]:
    wanted = list(dict.fromkeys([*(name for names in roles.values() for name in names), *([key] if key else [])]))
    metadata = parquet.metadata.row_group(group)
    index, end = first, first + metadata.num_rows
    try:
        for batch in parquet.batches(group, _batch_rows(metadata), wanted):
            cells = {role: [(name, _column(batch, name, role)) for name in names] for role, names in roles.items()}
            keys = KeyColumn(batch, key) if key else None
            for row in range(min(batch.num_rows, end - index)):
                yield _Row(index, keys[row] if keys else f"{shard_name}/{index}", _fields(cells, row, fetcher))
                index += 1
    except UNREADABLE as error:
        raise _Damage(error) from error
    if index != end:
        raise _Damage(ValueError("the footer promises more rows"))


def _column(batch: pa.RecordBatch, name: str, role: Role) -> Column | JsonColumn:
    # Of a prompt strings are the content, of the others URLs.
    return JsonColumn(batch, name) if role == "json" else Column(batch, name, is_text=role == "prompt")


def _fields(
    cells: dict[Role, list[tuple[str, Column | JsonColumn]]], row: int, fetcher: Fetcher
) -> dict[Role, bytes | Fault | Future[bytes | Fault]]:
    found: dict[Role, bytes | Fault | Future[bytes | Fault]] = {}
    for role, columns in cells.items():
        for name, column in columns:
            cell = column[row]
            if cell is not None:
                found[role] = fetcher.submit(cell.text, name) if isinstance(cell, Url) else cell
                break
    return found


def _batch_rows(group: Any) -> int:
    """Rows a batch, so that it holds a bounded number of bytes on the average of its row group.

    Other columns count too: asking a damaged footer for one column's size can abort the process (pyarrow 26).
    """
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES * int(group.num_rows) // max(int(group.total_byte_size), 1)))
