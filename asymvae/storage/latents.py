"""Parquet files of latents as a stream of rows, joined by key with the images that they were made of."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from asymvae.faults import Fault
from asymvae.storage.filesystem import info, join, read_bytes
from asymvae.storage.keyed_samples import KeyedSamples
from asymvae.storage.ledger import COMMITS
from asymvae.storage.ranges import open_parquet
from asymvae.storage.samples import BadSample, FieldNames, Role
from asymvae.storage.schemas import latent_dtype_of
from asymvae.storage.shards import Format, Shard

_BATCH_BYTES: Final = 2**20  # of latents, a part: a shard has a part a bucket, all read side by side
_COLUMN_BUFFER: Final = 2**18
_PLACED: Final = ("original_height", "original_width", "resized_height", "resized_width", "crop", "hflip")


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
        return self.fault is None or self.fault.code != "missing_key"


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
        for number, (_, row) in enumerate(rows):
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


def _place(entry: tuple[tuple[int, int], LatentRow]) -> tuple[int, int]:
    return entry[0]


class _Part:
    """One file, read a few rows at a time. ``fault``: it can't be read as latents."""

    def __init__(self, stack: ExitStack, url: str, columns: LatentColumns) -> None:
        self.columns = columns
        self.fault: Fault | None = None
        try:
            self.file = stack.enter_context(open_parquet(url, info(url).size, buffer_bytes=_COLUMN_BUFFER))
            schema = self.file.schema_arrow
        except (pa.ArrowException, ValueError):
            self.fault = Fault("parquet_unreadable")
            return
        self.names = set(schema.names)
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
        elif not _is_list_of_numbers(schema.field(columns.column).type):
            self.fault = Fault("latents_column", {"column": columns.column})

    def all_keys(self) -> Iterator[str]:
        for batch in self.file.iter_batches(batch_size=4096, columns=[self.columns.key], use_threads=False):
            yield from map(str, batch.column(0).to_pylist())

    def rows(self) -> Iterator[tuple[tuple[int, int], LatentRow]]:
        """((index, variant) to order rows of several parts by, row)."""
        wanted = [self.columns.column, self.columns.key, "variant", "index", "shape", "caption", *_PLACED]
        number = 0
        for group in range(self.file.num_row_groups):
            metadata = self.file.metadata.row_group(group)
            size = max(1, _BATCH_BYTES * metadata.num_rows // max(1, metadata.total_byte_size))
            present = [name for name in dict.fromkeys(wanted) if name in self.names]
            for batch in self.file.iter_batches(size, row_groups=[group], columns=present, use_threads=False):
                latents = batch.column(self.columns.column)
                others = batch.drop_columns([self.columns.column]).to_pylist()
                for place, cells in enumerate(others):
                    row = self._row(number, cells, latents[place])
                    index = cells.get("index")
                    yield (number if index is None else index, row.variant), row
                    number += 1

    def _row(self, number: int, cells: dict[str, Any], latents: pa.Scalar) -> LatentRow:
        raw, variant = cells[self.columns.key], cells.get("variant") or 0
        key, nothing = str(raw), np.zeros((1, 1, 1), np.float32)
        shape = self.columns.shape or cells["shape"]
        if raw is None:
            return LatentRow(number, str(number), variant, nothing, fault=Fault("missing_key"))
        if not latents.is_valid or shape is None:
            return LatentRow(number, key, variant, nothing, fault=Fault("missing_latents"))
        values = latents.values.to_numpy(zero_copy_only=False)
        if len(shape) != 3 or min(shape) < 1 or values.size != np.prod(shape):
            said = "x".join(map(str, shape))
            fault = Fault("latents_shape", {"values": values.size, "shape": said})
            return LatentRow(number, key, variant, nothing, fault=fault)
        if self.bits and values.dtype == np.uint16:
            values = (values.astype(np.uint32) << 16).view(np.float32)
        values = values.astype(np.float32).reshape(shape)
        if self.scaling != 1.0:
            values = values / np.float32(self.scaling)
        caption = cells.get("caption")
        return LatentRow(number, key, variant, values, _placed(cells), caption if isinstance(caption, str) else None)


def _is_list_of_numbers(column: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(is_one(column) for is_one in lists):
        return False
    return bool(pa.types.is_floating(column.value_type) or column.value_type == pa.uint16())


def _placed(cells: dict[str, Any]) -> Placed | None:
    if any(cells.get(name) is None for name in _PLACED):
        return None
    top, left, bottom, right = cells["crop"]
    return Placed(
        (cells["original_height"], cells["original_width"]),
        (cells["resized_height"], cells["resized_width"]),
        (top, left, bottom, right),
        bool(cells["hflip"]),
    )
