"""Files of latents that are damaged or say what can't be: their rows are error rows, and the others are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import asymvae.storage.watched as watched
from asymvae.storage.latents import LatentColumns, LatentRow, Placed, read_latents
from asymvae.storage.samples import BadSample
from asymvae.storage.schemas import latents_schema
from asymvae.storage.shards import Shard

PLACED: dict[str, Any] = {
    "original_height": 20,
    "original_width": 28,
    "resized_height": 18,
    "resized_width": 25,
    "crop": [1, 0, 17, 24],
    "hflip": False,
}


def row(number: int, **changed: Any) -> dict[str, Any]:
    mean = np.full(24, number, np.float16)
    return {"key": f"k{number}", "variant": 0, "index": number, "shape": [4, 2, 3], "mean": mean} | PLACED | changed


def write(path: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None, **options: Any) -> Path:
    schema = schema or latents_schema("float16")
    table = pa.Table.from_pylist([dict.fromkeys(schema.names) | one for one in rows], schema=schema)
    pq.write_table(table, path, compression="none", use_dictionary=False, **options)
    return path


def read(path: Path, **columns: Any) -> list[LatentRow | BadSample]:
    names = LatentColumns(**({"column": "mean", "key": "key", "shape": None, "scaling": None} | columns))
    return list(read_latents(Shard(str(path), "z", "parquet", 0, ""), names, None, path.parent))


def said(rows: list[LatentRow | BadSample]) -> list[tuple[int | None, str | None]]:
    return [(one.index, one.fault.code if one.fault else one.key) for one in rows]


def at_page(path: Path, group: int, column: str) -> int:
    metadata = pq.read_metadata(path).row_group(group)
    of_it = [metadata.column(number) for number in range(metadata.num_columns)]
    return int(next(one for one in of_it if one.path_in_schema.startswith(column)).data_page_offset)


@pytest.mark.parametrize("column", ["mean", "key", "shape"])
def test_damage_costs_its_row_group_and_later_rows_keep_their_numbers(column: str, tmp_path: Path) -> None:
    path = write(tmp_path / "z.parquet", [row(number) for number in range(6)], row_group_size=2)
    data = bytearray(path.read_bytes())
    begin = at_page(path, 1, column)
    data[begin : begin + 16] = b"\xff" * 16
    path.write_bytes(data)
    rows = read(path)
    assert said(rows) == [(0, "k0"), (1, "k1"), (4, "k4"), (5, "k5"), (None, "parquet_corrupt")]
    assert isinstance(rows[2], LatentRow)
    assert (rows[2].values == 4).all()


def test_a_footer_of_no_sense_is_no_error_of_the_store(tmp_path: Path) -> None:
    path = write(tmp_path / "z.parquet", [row(0)])
    data = path.read_bytes()
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    path.write_bytes(data[:footer] + b"\xff" * 64 + data[footer + 64 :])
    assert said(read(path)) == [(None, "parquet_unreadable")]


def test_the_stores_errors_are_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "z.parquet", [row(number) for number in range(4)], row_group_size=2)
    opened = watched.WatchedFile

    class Failing(opened):  # type: ignore[misc, valid-type]
        fails = False

        def read(self, size: int = -1) -> bytes:
            if Failing.fails:
                self._error = ConnectionError("the store is gone")
                raise self._error
            return bytes(super().read(size))

    monkeypatch.setattr("asymvae.storage.latents.WatchedFile", Failing)
    columns = LatentColumns("mean", "key", None, None)
    rows = read_latents(Shard(str(path), "z", "parquet", 0, ""), columns, None, tmp_path)
    assert isinstance(next(rows), LatentRow)
    Failing.fails = True
    with pytest.raises(ConnectionError, match="the store is gone"):
        list(rows)


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"shape": [4, None, 3]}, "latents_shape"),
        ({"shape": [4, 2]}, "latents_shape"),
        ({"shape": [2**30, 2**30, 2**30]}, "latents_shape"),
        ({"shape": [1] * 5000}, "latents_shape"),
        ({"crop": [1, 0, 17]}, "placement_invalid"),
        ({"crop": [1, 0, 17, None]}, "placement_invalid"),
        ({"crop": [1, 0, 17, 26]}, "placement_invalid"),
        ({"crop": [17, 0, 17, 24]}, "placement_invalid"),
        ({"crop": [-1, 0, 15, 24]}, "placement_invalid"),
        ({"original_height": 0}, "placement_invalid"),
        ({"resized_width": -3}, "placement_invalid"),
    ],
)
def test_a_row_that_says_what_cannot_be_is_an_error_row(changed: dict[str, Any], code: str, tmp_path: Path) -> None:
    rows = read(write(tmp_path / "z.parquet", [row(0), row(1, **changed), row(2)]))
    assert said(rows) == [(0, "k0"), (1, code), (2, "k2")]
    bad = rows[1].fault
    assert bad is not None
    assert len(bad.message) < 200


def test_a_null_among_bits_makes_no_number_of_the_others(tmp_path: Path) -> None:
    ours = latents_schema("bfloat16")
    schema = ours.set(ours.get_field_index("mean"), pa.field("mean", pa.list_(pa.uint16())))
    rows = [row(0, mean=[None] + [0x3F80] * 23), row(1, mean=[0x3F80] * 24)]
    found = read(write(tmp_path / "z.parquet", rows, schema))
    assert said(found) == [(0, "missing_latents"), (1, "k1")]
    assert isinstance(found[1], LatentRow)
    assert (found[1].values == 1).all()


def test_columns_of_the_same_names_that_mean_something_else_are_not_read(tmp_path: Path) -> None:
    kinds = [("key", pa.binary()), ("mean", pa.list_(pa.float32())), ("variant", pa.string()), ("index", pa.string())]
    kinds += [("crop", pa.string()), ("caption", pa.string()), ("original_height", pa.string())]
    schema = pa.schema([*kinds, ("shape", pa.string())])
    first = {"key": b"a\xff", "mean": [1.0] * 24, "variant": "blue", "crop": "tight", "caption": "a dog"}
    path = write(tmp_path / "z.parquet", [first, first | {"key": b"b"}], schema)
    rows = read(path, shape=(4, 2, 3), scaling=2.0)
    assert said(rows) == [(0, r"a\xff"), (1, "b")]
    assert isinstance(rows[0], LatentRow)
    assert (rows[0].variant, rows[0].placed, rows[0].caption) == (0, None, "a dog")
    assert (rows[0].values == 0.5).all()
    assert said(read(path, scaling=2.0)) == [(None, "latents_column")]


def test_what_a_placement_may_say_is_kept(tmp_path: Path) -> None:
    (good,) = read(write(tmp_path / "z.parquet", [row(0, variant=2**31 - 1)]))
    assert isinstance(good, LatentRow)
    assert good.placed == Placed((20, 28), (18, 25), (1, 0, 17, 24), False)
    assert good.variant == 2**31 - 1


def test_a_page_that_says_it_has_a_gigabyte_takes_none(tmp_path: Path) -> None:
    path = write(tmp_path / "z.parquet", [row(number) for number in range(4)])
    data = path.read_bytes()
    begin = at_page(path, 0, "mean")
    # thrift: the page's type, its sizes uncompressed and compressed, each a number of 7 bits a byte
    assert data[begin : begin + 3] == b"\x15\x00\x15"
    end = begin + 3
    while data[end] & 0x80:
        end += 1
    last = end + 2
    while data[last] & 0x80:
        last += 1
    huge = b"\x15\x00" + (b"\x15" + b"\xfe\xff\xff\xff\x07") * 2  # 2**30 - 1
    path.write_bytes(data[:begin] + huge + data[last + 1 :])
    most = pa.default_memory_pool().max_memory()
    assert said(read(path))[-1] == (None, "parquet_corrupt")
    assert pa.default_memory_pool().max_memory() < most + 32 * 2**20
