"""Parquet files: nulls, types, nesting, damage, keys. Each is a shard of its own."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from tests.corpus.case import Came, Case, Expects, Job, ShardCase, hole, photo, png, shard

_IMAGE: Final = png(photo())
_MASK: Final = png(hole(None))
_STRUCT: Final = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def cases() -> Iterator[Case]:
    yield from _nulls()
    yield from _types()
    yield from _structs()
    yield from _groups()
    yield from _damaged()
    yield from _keys()


def _file(columns: dict[str, Any], **options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, **options)
    return out.getvalue()


def _case(name: str, data: bytes, expects: Expects, job: Job = "plain", ending: str = "parquet") -> ShardCase:
    return ShardCase("parquet", name, data, expects, ending, job)


def _rows(*outcomes: str) -> Expects:
    """What became of each row, in order: "ok" or an error's code. The keys end in the rows' numbers."""

    def check(came: Came) -> str:
        found = {row["index"]: "ok" for row in came.results} | {row["index"]: row["code"] for row in came.errors}
        keys = {row["index"]: row["key"] for row in [*came.results, *came.errors]}
        if [found.get(index) for index in range(len(found))] != list(outcomes) or came.faults:
            return f"{found}: {came}"
        wrong = [key for index, key in keys.items() if not key.endswith(f"/{index}")]
        return f"keys are {wrong}" if wrong else ""

    return check


def _images(values: Any, kind: pa.DataType | None = None) -> bytes:
    images = pa.array(values, kind)
    return _file({"png": images, "mask.png": [_MASK] * len(images)})


def _nulls() -> Iterator[Case]:
    three = {"png": [_IMAGE] * 3, "mask.png": [_MASK] * 3}
    yield _case("plain", _file(three), _rows("ok", "ok", "ok"))
    yield _case("named .pq", _file(three), _rows("ok", "ok", "ok"), ending="pq")
    yield _case("no rows", _file({name: pa.array([], pa.binary()) for name in three}), _rows())
    yield _case("a null image", _images([_IMAGE, None, _IMAGE]), _rows("ok", "missing_image", "ok"))
    yield _case("an empty image", _images([_IMAGE, b"", _IMAGE]), _rows("ok", "image_empty", "ok"))
    masks = _file({"png": [_IMAGE] * 2, "mask.png": [None, _MASK]})
    yield _case("a null mask", masks, _rows("missing_mask", "ok"))
    nulls = _file({"png": pa.nulls(2), "mask.png": [_MASK] * 2})
    yield _case("a column of the type null", nulls, _rows("missing_image", "missing_image"))
    first = _file({"jpg": [None, _IMAGE], "png": [_IMAGE, b"bad"], "mask.png": [_MASK] * 2})
    yield _case("a null where another column has the image", first, _rows("ok", "ok"))
    yield _case("other columns of every kind", _file(three | _others(3)), _rows("ok", "ok", "ok"))
    truncated = _images([_IMAGE[:99], _IMAGE])
    yield _case("a cut image", truncated, _rows("image_truncated", "ok"))


def _others(rows: int) -> dict[str, Any]:
    return {
        "id": range(rows),
        "when": pa.array([0] * rows, pa.timestamp("ns", "Europe/Berlin")),
        "price": pa.array([None] * rows, pa.decimal128(38, 2)),
        "tags": [["a", None]] * rows,
        "deep": [{"a": [{"b": 1}]}] * rows,
        "map": pa.array([[("k", 1)]] * rows, pa.map_(pa.string(), pa.int8())),
        "half": pa.array([1.5] * rows, pa.float16()),
    }


def _types() -> Iterator[Case]:
    fine = _rows("ok", "missing_image", "ok")
    for kind in (
        pa.large_binary(),
        pa.binary_view(),
        pa.binary(len(_IMAGE)),
        pa.dictionary(pa.int32(), pa.binary()),
        pa.dictionary(pa.int64(), pa.large_binary()),
    ):
        yield _case(f"images as {kind}", _images([_IMAGE, None, _IMAGE], kind), fine)
    wrong = _rows("field_wrong_type", "missing_image")
    values: dict[str, list[Any]] = {
        "integers": [1, None],
        "floats": [1.5, None],
        "booleans": [True, None],
        "lists of bytes": [[_IMAGE], None],
        "lists of numbers": [[1, 2, 3], None],
        "structs of other members": [{"url": "x"}, None],
        "structs whose bytes are numbers": [{"bytes": 3, "path": None}, None],
    }
    for name, column in values.items():
        yield _case(f"images as {name}", _images(column), wrong)
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())):
        paths = pa.array(["gone.png", "data:image/png;base64,AAAA", ""], kind)
        missing = _rows("url_not_found", "url_refused", "url_not_found")
        yield _case(f"images as {kind}, which are paths", _images(paths), missing)
    odd = [
        "ftp://host/a.png",
        "http:///a.png",
        "s3://",
        "../" * 40 + "etc",
        "a\0b",
        "/dev/zero",
        "simplecache::a",
        "x" * 5000,
    ]
    codes = ["url_refused"] * 3 + ["url_not_found", "url_refused", "url_not_found", "url_refused", "url_not_found"]
    yield _case("odd URLs", _images(odd), _rows(*codes))
    text = pa.array([b"\xff.png", b"b.png"]).view(pa.string())
    yield _case("URLs that are no UTF-8", _images(text), _rows("url_not_found", "url_not_found"))


def _structs() -> Iterator[Case]:
    cells = [
        {"bytes": _IMAGE, "path": None},
        {"bytes": _IMAGE, "path": "elsewhere.png"},
        {"bytes": None, "path": "gone.png"},
        {"bytes": None, "path": None},
        None,
        {"bytes": b"", "path": None},
    ]
    outcomes = _rows("ok", "ok", "url_not_found", "missing_image", "missing_image", "image_empty")
    yield _case("{bytes, path} as Hugging Face has it", _images(cells, _STRUCT), outcomes)
    masks = pa.array([{"bytes": _MASK, "path": "m.png"}, None], _STRUCT)
    both = _file({"png": pa.array([cells[0], cells[1]], _STRUCT), "mask.png": masks})
    yield _case("masks as {bytes, path}", both, _rows("ok", "missing_mask"))
    swapped = pa.array([{"path": None, "bytes": _IMAGE}], pa.struct([("path", pa.string()), ("bytes", pa.binary())]))
    yield _case("{path, bytes}", _images(swapped), _rows("ok"))
    large = pa.array([cells[0]], pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())]))
    yield _case("{bytes, path} of large types", _images(large), _rows("ok"))
    yield _case("{bytes} alone", _images([{"bytes": _IMAGE}]), _rows("ok"))
    yield _case("{path} alone", _images([{"path": "gone.png"}]), _rows("url_not_found"))


def _groups() -> Iterator[Case]:
    rows = 60
    columns = {"png": [_IMAGE] * rows, "mask.png": [_MASK] * rows}
    fine = _rows(*["ok"] * rows)
    yield _case("a row group a row", _file(columns, row_group_size=1), fine)
    yield _case("row groups of seven", _file(columns, row_group_size=7), fine)
    out = io.BytesIO()
    schema = pa.schema([("png", pa.binary()), ("mask.png", pa.binary())])
    with pq.ParquetWriter(out, schema) as writer:
        for part in (0, 2, 0, 1, 0):
            writer.write_table(pa.table({"png": [_IMAGE] * part, "mask.png": [_MASK] * part}, schema))
    yield _case("row groups of no rows between", out.getvalue(), _rows("ok", "ok", "ok"))
    for compression in ("NONE", "GZIP", "BROTLI", "ZSTD", "LZ4"):
        yield _case(f"{compression} pages", _file(columns, compression=compression), fine)
    plain = _file(columns, use_dictionary=False, data_page_version="2.0", version="1.0")
    yield _case("pages of version 2, no dictionary", plain, fine)


def _damaged() -> Iterator[Case]:
    rows = 30
    chance = random.Random(1)
    columns = {
        "png": [_IMAGE] * rows,
        "mask.png": [_MASK] * rows,
        "noise": [chance.randbytes(300) for _ in range(rows)],
    }
    whole = _file(columns, row_group_size=10, compression="NONE", use_dictionary=False)
    unreadable = shard(fault="parquet_unreadable")
    for share in (0.02, 0.2, 0.5, 0.8, 0.99):
        yield _case(f"cut at {share}", whole[: int(share * len(whole))], unreadable)
    yield _case("cut in its last byte", whole[:-1], unreadable)
    yield _case("an empty file", b"", shard(fault="shard_empty"))
    yield _case("its mark alone", b"PAR1", unreadable)
    yield _case("its mark twice", b"PAR1PAR1", unreadable)
    yield _case("text", b"key,image\n1,a.png\n" * 50, unreadable)
    yield _case("a footer of 2 GiB", whole[:-8] + b"\xff\xff\xff\x7fPAR1", unreadable)
    yield _case("a footer of no bytes", whole[:-8] + bytes(4) + b"PAR1", unreadable)
    length = int.from_bytes(whole[-8:-4], "little")
    noise = whole[: -8 - length] + chance.randbytes(length) + whole[-8:]
    yield _case("a footer of noise", noise, unreadable)
    zeros = whole[: -8 - length] + bytes(length) + whole[-8:]
    yield _case("a footer of zeros", zeros, unreadable)
    yield _case("encrypted, by its mark", whole[:-4] + b"PARE", unreadable)
    for group in range(3):
        column = pq.ParquetFile(io.BytesIO(whole)).metadata.row_group(group).column(0)
        data = bytearray(whole)
        data[column.data_page_offset : column.data_page_offset + 6] = b"\xff" * 6
        yield _case(f"row group {group} is damaged", bytes(data), _lost(group))
    checked = _file(columns, compression="NONE", use_dictionary=False, write_page_checksum=True, write_statistics=False)
    at = checked.index(_IMAGE) + 40
    flipped = checked[:at] + bytes([checked[at] ^ 1]) + checked[at + 1 :]
    yield _case("a bit in a page that has a checksum", flipped, shard(fault="parquet_corrupt"))
    other = bytearray(whole)
    at = whole.index(columns["noise"][3])
    other[at : at + 50] = bytes(50)
    yield _case("damage in a column that nobody reads", bytes(other), _rows(*["ok"] * rows))
    yield _case("garbage before it", b"garbage!" + whole, unreadable_or_lost)
    yield _case("a tar named .parquet", b"a.png".ljust(2048, b"\0"), unreadable)


def _lost(group: int) -> Expects:
    kept = [index for index in range(30) if index // 10 != group]

    def check(came: Came) -> str:
        own = [(row["code"], row["index"]) for row in came.faults]
        fits = [row["index"] for row in came.results] == kept and own == [("parquet_corrupt", None)] and not came.errors
        return "" if fits else str(came)

    return check


def unreadable_or_lost(came: Came) -> str:
    """Every offset is off: nothing of it can be read, and whether the file or its row groups say so is Arrow's."""
    codes = {row["code"] for row in came.faults}
    fits = codes and codes <= {"parquet_unreadable", "parquet_corrupt"} and not came.results and not came.errors
    return "" if fits else str(came)


def _keys() -> Iterator[Case]:
    def keyed(keys: Any, kind: pa.DataType | None = None) -> bytes:
        column = pa.array(keys, kind)
        return _file({"id": column, "png": [_IMAGE] * len(column), "mask.png": [_MASK] * len(column)})

    def case(name: str, data: bytes, expects: Expects) -> ShardCase:
        return _case(f"keys: {name}", data, expects, "keyed")

    odd = ["a b", "ключ", "a/../b", "", "line\nend", "k" * 1000, "é", "e\u0301"]
    yield case("odd strings", keyed(odd), shard(odd))
    yield case("large strings", keyed(odd[:3], pa.large_string()), shard(odd[:3]))
    yield case("a dictionary", keyed(odd[:3], pa.dictionary(pa.int8(), pa.string())), shard(odd[:3]))
    yield case("not unique", keyed(["a", "b", "a"]), shard(["a", "b"], {"a": "duplicate_key"}))
    yield case("not unique across types of the same text", keyed(["1", "01", "1 "]), shard(["1", "01", "1 "]))
    yield case("a null", keyed(["a", None, "b"]), shard(["a", "b"], {None: "missing_key"}))
    yield case("bytes that are no UTF-8", keyed([b"\xff", b"ok"]), shard([r"\xff", "ok"]))
    raw = pa.array([b"\xffk", b"ok"]).view(pa.string())
    yield case("strings that are no UTF-8", keyed(raw), shard([r"\xffk", "ok"]))
    yield case("integers", keyed([7, -1, 2**62]), shard(["7", "-1", str(2**62)]))
    yield case("unsigned integers", keyed([2**64 - 1], pa.uint64()), shard([str(2**64 - 1)]))
    yield case("floats", keyed([1.5]), shard([], {None: "field_wrong_type"}))
    yield case("lists", keyed([["a"]]), shard([], {None: "field_wrong_type"}))
