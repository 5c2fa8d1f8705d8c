"""Rows -> one Parquet part, spooled on local disk. The same rows give the same bytes."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from asymvae.storage.schemas import LATENT_TYPES, kind_of


@dataclass(frozen=True, slots=True)
class Part:
    """One complete Parquet file on local disk; ``kind`` is its folder below OUT ("results")."""

    kind: str
    path: Path
    rows: int
    size: int
    sha256: str


class PartWriter:
    """Writes rows to a spool file; holds at most one row group of them.

    A row group closes with the row that brings it to ``row_group_rows`` rows or ``row_group_bytes`` bytes
    (of strings, images and arrays, 8 for other values), so where it closes depends on the rows alone.

    Args:
        path: a local file, made with the first row group; an older one is overwritten.
        schema: one of :mod:`asymvae.storage.schemas`.
        kind: the part's folder below OUT, where it isn't the schema's kind itself (``latents/bucket=512x512``).
    """

    def __init__(
        self, path: Path, schema: pa.Schema, *, kind: str | None = None, row_group_rows: int, row_group_bytes: int
    ) -> None:
        if row_group_rows < 1 or row_group_bytes < 1:
            raise ValueError("row_group_rows and row_group_bytes must be at least 1")
        self.path = path
        self._schema, self._names = schema, frozenset(schema.names)
        self._kind = kind or kind_of(schema)
        self._most_rows, self._most_bytes = row_group_rows, row_group_bytes
        self._pending: list[dict[str, Any]] = []
        self._pending_bytes = 0
        self._rows = 0
        self._sink: pa.NativeFile | None = None
        self._writer: pq.ParquetWriter | None = None

    def write(self, row: dict[str, Any]) -> None:
        """Add a row with exactly the schema's columns; ValueError for others."""
        if row.keys() != self._names:
            odd = sorted(self._names.symmetric_difference(row))
            raise ValueError(f"a row of {self._kind} must have its schema's columns; missing or unknown: {odd}")
        self._pending.append(row)
        self._pending_bytes += _size(row)
        if len(self._pending) >= self._most_rows or self._pending_bytes >= self._most_bytes:
            self._flush()

    def _flush(self) -> None:
        table = pa.Table.from_pylist(self._pending, self._schema)
        if self._writer is None:
            self._sink = pa.OSFile(str(self.path), "wb")
            self._writer = _writer(self._sink, self._schema)
        self._writer.write_table(table, row_group_size=len(self._pending))
        self._rows += len(self._pending)
        self._pending, self._pending_bytes = [], 0

    def close(self) -> Part | None:
        """Finish, read the footer back, and return the part; None if there was no row, and so no file."""
        if self._pending:
            self._flush()
        if self._writer is None or self._sink is None:
            return None
        self._writer.close()
        self._sink.close()
        self._writer = self._sink = None
        rows = pq.read_metadata(self.path).num_rows
        if rows != self._rows:
            raise OSError(f"{self.path.name} holds {rows} rows where {self._rows} were written")
        digest, size = hash_file(self.path)
        return Part(self._kind, self.path, rows, size, digest)

    def discard(self) -> None:
        """Give up: remove the spool file. Fine at any time, also after close()."""
        with contextlib.suppress(OSError):  # a full disk, say: what is unwritten isn't wanted
            if self._writer is not None:
                self._writer.close()
        with contextlib.suppress(OSError):
            if self._sink is not None:
                self._sink.close()
        self._writer = self._sink = None
        self._pending, self._pending_bytes = [], 0
        self.path.unlink(missing_ok=True)


def hash_file(path: Path) -> tuple[str, int]:
    """(sha256 in hex, size in bytes) of a local file, read in pieces."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
            size += len(block)
    return digest.hexdigest(), size


def _writer(sink: pa.NativeFile, schema: pa.Schema) -> pq.ParquetWriter:
    leaves = dict(_leaves(schema))
    return pq.ParquetWriter(
        sink,
        schema,
        version="2.6",
        data_page_version="1.0",
        # Encoded images don't shrink further.
        compression={name: "NONE" if pa.types.is_binary(column) else "ZSTD" for name, column in leaves.items()},
        compression_level={name: 3 for name, column in leaves.items() if not pa.types.is_binary(column)},
        use_dictionary=False,
        write_statistics=[name for name, column in leaves.items() if not _is_bulk(name, column)],
        # A page closes at a multiple of this many rows: 1,024 images would be one page of hundreds of MB.
        write_batch_size=16,
        store_schema=True,
    )


def _leaves(schema: pa.Schema) -> Iterator[tuple[str, pa.DataType]]:
    """The columns as Parquet knows them: ``image.bytes``, ``crop.list.element``."""
    stack = [(field.name, field.type) for field in reversed(schema)]
    while stack:
        name, column = stack.pop()
        if pa.types.is_struct(column):
            stack += [(f"{name}.{field.name}", field.type) for field in column]
        elif pa.types.is_list(column):
            stack.append((f"{name}.list.element", column.value_type))
        else:
            yield name, column


def _is_bulk(name: str, column: pa.DataType) -> bool:
    """Encoded images, and latents: nobody looks for the least of them, and finding it takes a fifth of writing them."""
    is_list_of_latents = name.endswith(".list.element") and column in LATENT_TYPES.values()
    return is_list_of_latents or bool(pa.types.is_binary(column))


def _size(value: Any) -> int:
    if isinstance(value, bytes | str):
        return len(value)
    if isinstance(value, dict):
        return sum(_size(inner) for inner in value.values())
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, list | tuple):
        return 8 * len(value)
    return 8
