"""Parquet files of latents as a stream of rows, joined by key with the images that they were made of.

What is damaged costs the rest of its row group, and a fault of the shard behind the rows.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from asymvae.faults import Fault
from asymvae.storage.columns import Column, KeyColumn
from asymvae.storage.filesystem import join, read_bytes
from asymvae.storage.keyed_samples import KeyedSamples
from asymvae.storage.ledger import COMMITS
from asymvae.storage.samples import BadSample, FieldNames, Role, safe_key
from asymvae.storage.schemas import latent_dtype_of
from asymvae.storage.shards import Format, Shard
from asymvae.storage.watched import UNREADABLE, WatchedFile, WatchedParquet

_BATCH_BYTES: Final = 2**20  # of latents, a part: a shard has a part a bucket, all read side by side
_COLUMN_BUFFER: Final = 2**18
_SIDES: Final = ("original_height", "original_width", "resized_height", "resized_width")
_PLACED: Final = (*_SIDES, "crop", "hflip")
_BATCH_ROWS: Final = 4096
_MOST_SIDE: Final = 2**31 - 1  # what the columns of a result hold


@dataclass(frozen=True, slots=True)
class LatentColumns:
    """Which columns hold what; see the settings ``latents.*``. ``scaling`` None: as the file's metadata says."""

    column: str
    key: str
    shape: tuple[int, int, int] | None
    scaling: float | None


@dataclass(frozen=True, slots=True)
class Placed:
    """How an image was brought to the pixels of its latents: ``original`` was resized to ``resized``, (height, width),
    cut to ``crop`` (top, left, bottom, right) and then perhaps mirrored."""

    original: tuple[int, int]
    resized: tuple[int, int]
    crop: tuple[int, int, int, int]
    hflip: bool


@dataclass(frozen=True, slots=True)
class LatentRow:
    """``values``: (C, h, w) float32, unscaled. ``placed``: None where the file doesn't say. ``fields``: of the
    original. ``fault``: what makes the row an error row."""

    index: int
    key: str
    variant: int
    values: NDArray[np.float32]
    placed: Placed | None = None
    caption: str | None = None
    fields: dict[Role, bytes] = field(default_factory=dict)
    fault: Fault | None = None

    @property
    def has_key(self) -> bool:
        return self.fault is None or self.fault.code not in ("missing_key", "field_wrong_type")


def part_urls(shard: Shard) -> list[str]:
    """The Parquet files of one shard of latents."""
    if shard.format != "latents":
        return [shard.url]
    out = shard.url.rpartition(f"/{COMMITS}/")[0]
    record = json.loads(read_bytes(shard.url))
    return [join(out, part["object"]) for part in record["parts"] if part["kind"].startswith("latents/")]


def read_latents(
    shard: Shard, columns: LatentColumns, originals: tuple[Format, FieldNames] | None, scratch: Path
) -> Iterator[LatentRow | BadSample]:
    """The rows of one shard: of one file in its order; of several parts in the order of (index, variant).

    With ``originals`` each row brings the fields of the sample of its key in ``shard.beside``. ``scratch``: a local
    folder, for samples that come before they are needed. A (key, variant) that came before is an error row.

    Raises whatever the store raises.
    """
    with ExitStack() as stack:
        parts = [_Part(stack, url, columns) for url in part_urls(shard)]
        for part in parts:
            if part.fault is not None:
                yield BadSample(None, None, part.fault)
        parts = [part for part in parts if part.fault is None]
        samples = None
        if originals is not None and shard.beside is not None:
            format, names = originals
            beside = Shard(shard.beside, shard.name, format, 0, "")
            wanted = (key for part in parts for key in part.all_keys())
            samples = stack.enter_context(KeyedSamples(beside, names, wanted, scratch))
        rows = parts[0].rows() if len(parts) == 1 else heapq.merge(*(part.rows() for part in parts), key=_place)
        seen: set[bytes] = set()
        for count, (_, row) in enumerate(rows):
            number = row.index if len(parts) == 1 else count  # of one file the row's, whatever is lost before it
            fault, fields = row.fault, row.fields
            digest = hashlib.blake2b(f"{row.variant} {row.key}".encode(), digest_size=16).digest()
            if digest in seen:
                fault = Fault("duplicate_key")
            seen.add(digest)
            if samples is not None and row.has_key:
                # Taken whether it is needed or not: the samples count how often each is still to come.
                original = samples.take(row.key)
                if isinstance(original, Fault):
                    fault = fault or original
                else:
                    fields = original
            yield LatentRow(number, row.key, row.variant, row.values, row.placed, row.caption, fields, fault)
        for part in parts:
            for group in part.damaged:
                yield BadSample(None, None, Fault("parquet_corrupt", {"row_group": group}))


def _place(entry: tuple[tuple[int, int], LatentRow]) -> tuple[int, int]:
    return entry[0]


class _Part:
    """One file, read a few rows at a time. ``fault``: it can't be read as latents. ``damaged``: the row groups that
    rows were lost of, as far as :meth:`rows` has come."""

    def __init__(self, stack: ExitStack, url: str, columns: LatentColumns) -> None:
        self.columns = columns
        self.damaged: list[int] = []
        self.fault: Fault | None = None
        self._watched = stack.enter_context(WatchedFile(url))
        try:
            self.file = WatchedParquet(self._watched, _COLUMN_BUFFER)
            schema = self.file.schema
        except UNREADABLE as error:
            self._watched.raise_own(error)
            self.fault = Fault("parquet_unreadable")
            return
        self.names = {name for name in schema.names if schema.names.count(name) == 1 and _is_readable(schema, name)}
        needed = [columns.column, columns.key, *([] if columns.shape else ["shape"])]
        missing = [name for name in needed if name not in self.names]
        if missing:
            self.fault = Fault("latents_column", {"column": missing[0]})
            return
        try:
            self.bits = latent_dtype_of(schema) == "bfloat16"
            self.scaling: float | None = 1.0 if columns.scaling is None else columns.scaling
        except ValueError:  # not of ours
            self.bits, self.scaling = False, columns.scaling
        if self.scaling is None:
            self.fault = Fault("latents_unscaled")
        elif not _is_list(schema.field(columns.column).type, _is_latent):
            self.fault = Fault("latents_column", {"column": columns.column})

    def all_keys(self) -> Iterator[str]:
        for group in range(self.file.num_row_groups):
            try:
                for batch in self.file.batches(group, _BATCH_ROWS, [self.columns.key]):
                    keys = KeyColumn(batch, self.columns.key)
                    yield from (key for key in map(keys.__getitem__, range(len(batch))) if isinstance(key, str))
            except UNREADABLE as error:
                self._watched.raise_own(error)  # else rows() comes upon it, too

    def rows(self) -> Iterator[tuple[tuple[int, int], LatentRow]]:
        """((index, variant) to order rows of several parts by, row)."""
        wanted = [self.columns.column, self.columns.key, "variant", "index", "shape", "caption", *_PLACED]
        present = [name for name in dict.fromkeys(wanted) if name in self.names]
        first = 0
        for group in range(self.file.num_row_groups):
            metadata = self.file.metadata.row_group(group)
            size = max(1, min(_BATCH_ROWS, _BATCH_BYTES * metadata.num_rows // max(1, metadata.total_byte_size)))
            number, first = first, first + max(0, metadata.num_rows)
            try:
                for batch in self.file.batches(group, size, present):
                    for index, row in self._rows(batch.slice(0, first - number), number):
                        yield (number if index is None else index, row.variant), row
                        number += 1
            except UNREADABLE as error:
                self._watched.raise_own(error)
            if number < first:
                self.damaged.append(group)

    def _rows(self, batch: pa.RecordBatch, number: int) -> Iterator[tuple[int | None, LatentRow]]:
        """(the column ``index``, the row) of each."""
        latents, keys = _column(batch, self.columns.column), KeyColumn(batch, self.columns.key)
        captions = Column(batch, "caption", is_text=True)
        numbers = [name for name in ("variant", "index", "shape", *_PLACED) if name in self.names]
        for place, cells in enumerate(batch.select(numbers).to_pylist() if numbers else [{}] * len(batch)):
            caption = captions[place]
            row = self._row(number + place, keys[place], cells, latents[place])
            yield cells.get("index"), replace(row, caption=safe_key(caption) if isinstance(caption, bytes) else None)

    def _row(self, number: int, key: str | Fault, cells: dict[str, Any], latents: pa.Scalar) -> LatentRow:
        variant, nothing = cells.get("variant") or 0, np.zeros((1, 1, 1), np.float32)
        if not 0 <= variant <= _MOST_SIDE:
            variant = 0
        if isinstance(key, Fault):
            return LatentRow(number, str(number), variant, nothing, fault=key)
        shape = self.columns.shape or cells["shape"]
        if not latents.is_valid or shape is None or latents.values.null_count:
            return LatentRow(number, key, variant, nothing, fault=Fault("missing_latents"))
        values = latents.values.to_numpy(zero_copy_only=False)
        if len(shape) != 3 or None in shape or min(shape) < 1 or values.size != math.prod(shape):
            said = "x".join(map(str, shape[:4])) + ("x..." if len(shape) > 4 else "")
            fault = Fault("latents_shape", {"values": values.size, "shape": said})
            return LatentRow(number, key, variant, nothing, fault=fault)
        if self.bits and values.dtype == np.uint16:
            values = (values.astype(np.uint32) << 16).view(np.float32)
        values = values.astype(np.float32).reshape(shape)
        if self.scaling != 1.0:
            values = values / np.float32(self.scaling)
        placed = _placed(cells)
        if isinstance(placed, Fault):
            return LatentRow(number, key, variant, nothing, fault=placed)
        return LatentRow(number, key, variant, values, placed)


def _is_readable(schema: pa.Schema, name: str) -> bool:
    """Whether a column that we give a meaning to can have it: else it is as if it were not there."""
    kind = schema.field(name).type
    if name in ("variant", "index", *_SIDES):
        return bool(pa.types.is_integer(kind))
    if name in ("shape", "crop"):
        return _is_list(kind, pa.types.is_integer)
    return name != "hflip" or bool(pa.types.is_boolean(kind) or pa.types.is_integer(kind))


def _is_latent(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or kind == pa.uint16())


def _is_list(kind: pa.DataType, of: Callable[[pa.DataType], bool]) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_one(kind) for is_one in lists) and bool(of(kind.value_type))


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    place = batch.schema.get_field_index(name)
    if place < 0:
        raise pa.ArrowInvalid("the file's columns are not what its schema says")
    return batch.column(place)


def _placed(cells: dict[str, Any]) -> Placed | Fault | None:
    if any(cells.get(name) is None for name in _PLACED):
        return None
    crop, sides = cells["crop"], [cells[name] for name in _SIDES]
    if len(crop) != 4 or None in crop or not all(1 <= side <= _MOST_SIDE for side in sides):
        return Fault("placement_invalid")
    top, left, bottom, right = crop
    if not (0 <= top < bottom <= sides[2] and 0 <= left < right <= sides[3]):
        return Fault("placement_invalid")
    return Placed((sides[0], sides[1]), (sides[2], sides[3]), (top, left, bottom, right), bool(cells["hflip"]))
