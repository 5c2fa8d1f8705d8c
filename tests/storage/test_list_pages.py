"""Lists read page by page are what pyarrow reads, and what isn't so is refused."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asymvae.storage.list_pages import ListPages
from asymvae.storage.parts import PartWriter
from asymvae.storage.schemas import LATENT_TYPES

ROWS = 40


def write(path: Path, lists: list[Any], kind: pa.DataType, **how: Any) -> Path:
    """One row group, as parts are written; ``how``: but for that."""
    schema = pa.schema([pa.field("mean", pa.list_(pa.field("item", kind, nullable=how.pop("nullable", False))))])
    with pytest.MonkeyPatch.context() as patch:

        def writer(*arguments: Any, **usual: Any) -> pq.ParquetWriter:
            return original(*arguments, **usual | how)

        original = pq.ParquetWriter
        patch.setattr(pq, "ParquetWriter", writer)
        part = PartWriter(path, schema, kind="latents", row_group_rows=10**6, row_group_bytes=10**9)
        for values in lists:
            part.write({"mean": values})
        part.close()
    return path


def some(kind: pa.DataType, length: int, rows: int = ROWS) -> list[Any]:
    values = np.random.default_rng(length).normal(0, 5, (rows, length))
    return list(values.view(np.uint16)[:, ::4] if kind == pa.uint16() else values.astype(kind.to_pandas_dtype()))


def opened(path: Path, length: int, buffer_bytes: int = 1000) -> ListPages:
    return ListPages(pa.OSFile(str(path)), pq.read_metadata(path).row_group(0).column(0), length, buffer_bytes)


def read(pages: ListPages, rows: int) -> list[Any]:
    found: list[Any] = []
    while len(found) < rows:
        found += pages.take(min(pages.fill(), rows - len(found))).tolist()
    return found


@pytest.mark.parametrize("dtype", LATENT_TYPES)
@pytest.mark.parametrize("length", [1, 7, 8, 9, 12, 64, 1000])
@pytest.mark.parametrize("page_bytes", [1, 300, None])
def test_what_is_read_is_what_pyarrow_reads(tmp_path: Path, dtype: Any, length: int, page_bytes: int | None) -> None:
    kind = LATENT_TYPES[dtype]
    path = write(tmp_path / "z.parquet", some(kind, length), kind, data_page_size=page_bytes)
    expected = pq.read_table(path)["mean"].to_pylist()
    for first in (0, 1, 2, 17, ROWS - 1):
        pages = opened(path, length)
        pages.skip(first)
        assert read(pages, ROWS - first) == expected[first:]
        with pytest.raises(OSError, match="cut off"):
            pages.fill()


def test_pages_that_are_passed_by_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "z.parquet", some(pa.float16(), 12), pa.float16(), data_page_size=1)
    unpacked: list[Any] = []
    unpack = ListPages._unpack
    monkeypatch.setattr(ListPages, "_unpack", lambda self, page: unpacked.append(page) or unpack(self, page))
    pages = opened(path, 12)
    pages.skip(31)
    assert len(unpacked) == 1
    assert pages.fill() == 1


def test_a_part_of_ours_has_several_pages(tmp_path: Path) -> None:
    path = write(tmp_path / "z.parquet", some(pa.float16(), 2**14), pa.float16())
    assert opened(path, 2**14).fill() < ROWS


@pytest.mark.parametrize(
    "lengths", [[12, 12, 13], [11, 13, 12], [12, 0, 24], [24, 12], [6, 6], [12, 12, 0], [0, 12]], ids=str
)
def test_lists_of_other_lengths_are_refused(tmp_path: Path, lengths: list[int]) -> None:
    path = write(tmp_path / "z.parquet", [np.ones(length, np.float16) for length in lengths], pa.float16())
    with pytest.raises(ValueError, match=r"mean\.list\.element has nulls, or lists that don't hold 12 numbers"):
        read(opened(path, 12), 3)


def test_nulls_are_refused(tmp_path: Path) -> None:
    for lists in ([[1.0, 2.0], None, [3.0, 4.0]], [[1.0, 2.0], [None, 4.0]]):
        path = write(tmp_path / "z.parquet", lists, pa.float32(), nullable=True)
        with pytest.raises(ValueError, match="has nulls"):
            read(opened(path, 2), 2)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"data_page_version": "2.0"}, "a page of another kind or encoding"),
        ({"use_byte_stream_split": True}, "a page of another kind or encoding"),
        ({"use_dictionary": True}, "without dictionaries"),
        ({"compression": "SNAPPY", "compression_level": None}, "by SNAPPY; asymvae writes"),
    ],
    ids=str,
)
def test_what_asymvae_does_not_write_is_refused(tmp_path: Path, how: dict[str, Any], said: str) -> None:
    path = write(tmp_path / "z.parquet", some(pa.float32(), 12), pa.float32(), **how)
    with pytest.raises(OSError, match=said):
        opened(path, 12).fill()


def test_statistics_in_a_page_s_header_are_passed_by(tmp_path: Path) -> None:
    path = write(tmp_path / "z.parquet", some(pa.float32(), 12), pa.float32(), write_statistics=True)
    assert read(opened(path, 12), ROWS) == pq.read_table(path)["mean"].to_pylist()


def test_damage_is_an_error_or_another_number_and_never_more(tmp_path: Path) -> None:
    path = write(tmp_path / "z.parquet", some(pa.float16(), 12), pa.float16(), data_page_size=300)
    whole, column = path.read_bytes(), pq.read_metadata(path).row_group(0).column(0)
    begin, end = column.data_page_offset, column.data_page_offset + column.total_compressed_size
    rng = random.Random(0)
    most = pa.default_memory_pool().max_memory()
    open_ = partial(ListPages, column=column, length=12, buffer_bytes=1000)
    for _ in range(3000):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 1, 8))):
            damaged[rng.randrange(begin, min(begin + 60, end) if rng.random() < 0.7 else end)] = rng.randrange(256)
        try:
            rows = read(open_(pa.BufferReader(bytes(damaged))), ROWS)
        except (OSError, ValueError):
            continue
        assert len(rows) == ROWS
    assert pa.default_memory_pool().max_memory() < most + 2**20
    for cut in range(begin, end):
        with pytest.raises((OSError, ValueError)):
            read(open_(pa.BufferReader(whole[:cut])), ROWS)
