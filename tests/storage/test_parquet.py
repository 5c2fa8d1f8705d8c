"""Parquet: every kind of column, row numbers that survive damage, URLs that can't reach where they shouldn't."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tenacity

import asymvae.storage.columns as columns
import asymvae.storage.urls as urls
import asymvae.storage.watched as watched
from asymvae.faults import Fault
from asymvae.storage.parquet import read_parquet
from asymvae.storage.samples import BadSample, FieldNames, Sample
from asymvae.storage.shards import Shard

FIELDS = FieldNames(
    image=("jpg", "image"), mask=("mask.png", "mask"), prompt=("txt",), given=("given",), json=("json",), key="key"
)
NO_KEY = FieldNames(image=("image",), mask=("mask",), prompt=("txt",), given=(), json=())


def shard_of(path: Path | str) -> Shard:
    return Shard(str(path), "set~2Fx", "parquet", 0, "1")


def read(folder: Path, table: pa.Table, fields: FieldNames = NO_KEY, **options: Any) -> list[Sample | BadSample]:
    pq.write_table(table, folder / "x.parquet", **options)
    return list(read_parquet(shard_of(folder / "x.parquet"), fields))


def images(rows: list[Sample | BadSample]) -> list[bytes | str | None]:
    return [row.fields.get("image") if isinstance(row, Sample) else row.fault.code for row in rows]


# --- columns ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(2), pa.dictionary(pa.int32(), pa.binary())]
)
def test_columns_of_bytes(tmp_path: Path, kind: pa.DataType) -> None:
    table = pa.table({"image": pa.array([b"ab", None, b"\xff\0"], kind)})
    assert images(read(tmp_path, table)) == [b"ab", None, b"\xff\0"]


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
)
def test_strings_are_content_in_text_roles_and_urls_elsewhere(tmp_path: Path, kind: pa.DataType) -> None:
    (tmp_path / "ü.jpg").write_bytes(b"pixels")
    table = pa.table({"image": pa.array(["ü.jpg", None], kind), "txt": pa.array(["ein Hünd", None], kind)})
    assert read(tmp_path, table) == [
        Sample(0, "set~2Fx/0", {"image": b"pixels", "prompt": "ein Hünd".encode()}),
        Sample(1, "set~2Fx/1", {}),
    ]


def test_structs_of_bytes_and_path_as_hugging_face_writes_them(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"from the path")
    rows = [{"bytes": b"here", "path": "a.jpg"}, {"bytes": None, "path": "a.jpg"}, {"bytes": None, "path": None}, None]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(rows, kind)})
    assert images(read(tmp_path, table)) == [b"here", b"from the path", None, None]
    only_bytes = pa.table({"image": pa.array([{"bytes": b"x"}])})
    assert images(read(tmp_path, only_bytes)) == [b"x"]


def test_json_is_text_bytes_a_file_or_the_object_itself(tmp_path: Path) -> None:
    def jsons(column: pa.Array) -> list[bytes | str | None]:
        fields = FieldNames(image=(), mask=(), prompt=(), given=(), json=("meta",))
        rows = read(tmp_path, pa.table({"meta": column}), fields)
        return [row.fields.get("json") if isinstance(row, Sample) else row.fault.code for row in rows]

    assert jsons(pa.array(['{"a": 1}', None])) == [b'{"a": 1}', None]
    assert jsons(pa.array([b"\xff{", None])) == [b"\xff{", None]
    assert jsons(pa.array([{"bytes": b"{}", "path": None}])) == [b"{}"]
    assert jsons(pa.array([{"asymvae": {"seed": 7, "prompt": None}, "path": "a.jpg"}, None])) == [
        b'{"asymvae": {"seed": 7, "prompt": null}, "path": "a.jpg"}',
        None,
    ]
    times = pa.array([{"asymvae": None, "taken": 0}], pa.struct([("asymvae", pa.null()), ("taken", pa.timestamp("s"))]))
    assert jsons(times) == [b'{"asymvae": null, "taken": "1970-01-01 00:00:00"}']
    no_text = pa.array([b"\xff"]).cast(pa.binary()).view(pa.string())
    assert jsons(pa.StructArray.from_arrays([no_text], ["prompt"])) == ["json_invalid"]
    assert jsons(pa.array([7])) == ["field_wrong_type"]


def test_a_role_takes_the_first_of_its_columns_that_is_not_null(tmp_path: Path) -> None:
    table = pa.table(
        {
            "key": ["a", "b", "c"],
            "image": [b"1", b"2", None],
            "jpg": [b"3", None, None],
            "mask.png": [b"m", b"n", b"o"],
            "mask": [b"p", b"q", b"r"],
        }
    )
    rows = read(tmp_path, table, FIELDS)
    assert images(rows) == [b"3", b"2", None]
    assert [row.fields["mask"] for row in rows if isinstance(row, Sample)] == [b"m", b"n", b"o"]


def test_missing_columns_leave_their_roles_out_and_rows_still_count(tmp_path: Path) -> None:
    rows = read(tmp_path, pa.table({"other": range(1000)}), row_group_size=300)
    assert rows == [Sample(i, f"set~2Fx/{i}", {}) for i in range(1000)]
    assert read(tmp_path, pa.table({"image": pa.array([], pa.binary())})) == []


def test_wrong_types_are_faults_of_the_rows_that_have_a_value(tmp_path: Path) -> None:
    fault = Fault("field_wrong_type", {"field": "image"})
    for values in ([1, None], [[b"x"], None], [{"url": "x"}, None], [1.5, None], [True, None]):
        rows = read(tmp_path, pa.table({"image": values}))
        assert rows == [BadSample(0, "set~2Fx/0", fault), Sample(1, "set~2Fx/1", {})]


def test_keys_are_strings_bytes_or_integers(tmp_path: Path) -> None:
    def keys(values: list[Any], kind: pa.DataType) -> list[str | None]:
        rows = read(tmp_path, pa.table({"key": pa.array(values, kind), "image": [b"x"] * len(values)}), FIELDS)
        assert all(isinstance(row, Sample) or row.fault == Fault("missing_key") for row in rows)
        return [row.key for row in rows]

    assert keys(["a/b c\n", None, ""], pa.string()) == ["a/b c\n", None, ""]
    assert keys([b"a", b"\xff"], pa.binary()) == ["a", r"\xff"]
    assert keys([2**63, None], pa.uint64()) == [str(2**63), None]
    assert keys(["x", "x"], pa.dictionary(pa.int8(), pa.string())) == ["x", "x"]
    wrong = read(tmp_path, pa.table({"key": [1.5, None]}), FIELDS)
    assert wrong == [
        BadSample(0, None, Fault("field_wrong_type", {"field": "key"})),
        BadSample(1, None, Fault("missing_key")),
    ]
    assert read(tmp_path, pa.table({"image": [b"x"]}), FIELDS) == [BadSample(0, None, Fault("missing_key"))]


def test_strings_that_are_no_utf8_do_not_break_a_row(tmp_path: Path) -> None:
    raw = pa.array([b"\xffk", b"ok"]).view(pa.string())
    rows = read(tmp_path, pa.table({"key": raw, "txt": raw, "image": raw}), FIELDS)
    assert [row.key for row in rows] == [r"\xffk", "ok"]
    assert images(rows) == ["url_not_found", "url_not_found"]
    text = read(tmp_path, pa.table({"txt": raw}))
    assert [row.fields["prompt"] for row in text if isinstance(row, Sample)] == [b"\xffk", b"ok"]


def test_a_field_above_the_limit_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "MAX_FIELD_BYTES", 3)
    rows = read(tmp_path, pa.table({"image": [b"abc", b"abcd"]}))
    limits: dict[str, int | str] = {"field": "image", "size": 4, "limit": 3}
    assert rows[1] == BadSample(1, "set~2Fx/1", Fault("field_too_large", limits))


# --- damage -------------------------------------------------------------------------------------------------


def test_files_that_are_no_parquet(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [b"x"] * 100}), path)
    whole = path.read_bytes()
    broken_footer = bytearray(whole)
    broken_footer[-60:-20] = b"\xff" * 40
    wrong_length = whole[:-8] + b"\xff\xff\xff\x7fPAR1"
    for data in (b"PAR1", b"text" * 100, whole[:-1], whole[: len(whole) // 2], bytes(broken_footer), wrong_length):
        path.write_bytes(data)
        rows = list(read_parquet(shard_of(path), NO_KEY))
        assert rows == [BadSample(None, None, Fault("parquet_unreadable"))], data[-20:]
    path.write_bytes(b"")
    assert list(read_parquet(shard_of(path), NO_KEY)) == [BadSample(None, None, Fault("shard_empty"))]
    with pytest.raises(FileNotFoundError):
        list(read_parquet(shard_of(tmp_path / "gone.parquet"), NO_KEY))


def test_a_damaged_row_group_is_one_row_and_later_rows_keep_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(
        pa.table({"image": [os.urandom(500) for _ in range(100)]}), path, row_group_size=20, compression="NONE"
    )
    good = list(read_parquet(shard_of(path), NO_KEY))
    chunk = pq.ParquetFile(path).metadata.row_group(2).column(0)
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset : chunk.data_page_offset + 4] = b"\xff" * 4
    path.write_bytes(data)
    rows = list(read_parquet(shard_of(path), NO_KEY))
    assert rows == [*good[:40], BadSample(None, None, Fault("parquet_corrupt", {"row_group": 2})), *good[60:]]


def test_a_flipped_bit_is_found_by_the_page_checksum(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    content = [bytes([i]) * 5000 for i in range(8)]
    pq.write_table(
        pa.table({"image": content}), path, compression="NONE", use_dictionary=False, write_page_checksum=True,
        data_page_size=6000, write_batch_size=1,
    )  # fmt: skip
    data = bytearray(path.read_bytes())
    data[data.index(content[5]) + 100] ^= 1
    path.write_bytes(data)
    *kept, last = read_parquet(shard_of(path), NO_KEY)
    assert last == BadSample(None, None, Fault("parquet_corrupt", {"row_group": 0}))
    assert images(kept) == content[: len(kept)]


def test_no_damage_crashes_or_confuses_the_reader(tmp_path: Path) -> None:
    chance = random.Random(0)
    table = pa.table(
        {
            "key": [f"k{i}" for i in range(60)],
            "image": [{"bytes": chance.randbytes(40), "path": None} if i % 7 else None for i in range(60)],
            "txt": pa.array(["a", "b", None] * 20).dictionary_encode(),
        }
    )
    path = tmp_path / "x.parquet"
    pq.write_table(table, path, row_group_size=20)
    whole = path.read_bytes()
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for attempt in range(400):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(footer if attempt % 2 else 0, len(data))] = chance.randrange(256)
        path.write_bytes(data)
        rows = list(read_parquet(shard_of(path), FIELDS))
        numbers = [row.index for row in rows if row.index is not None]
        assert numbers == sorted(set(numbers))
        assert all(row.key is None or row.key.encode() is not None for row in rows)
        lost = any(isinstance(row, BadSample) and row.index is None for row in rows)
        assert lost or len(rows) == 60 or len(rows) % 20 == 0  # a damaged footer may name fewer row groups


class Failing:
    """A file whose store goes away after its footer was read."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "rb")  # noqa: SIM115
        self.fails = False

    def read(self, size: int = -1) -> bytes:
        if self.fails:
            raise OSError("the store is gone")
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_the_stores_errors_are_raised_and_not_taken_for_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"image": [os.urandom(1000) for _ in range(3000)]}), path, row_group_size=1000)
    file = Failing(str(path))
    monkeypatch.setattr(watched, "open_stream", lambda url: file)
    rows = read_parquet(shard_of(path), NO_KEY)
    assert isinstance(next(rows), Sample)
    file.fails = True
    with pytest.raises(OSError, match="the store is gone"):
        list(rows)
    file = Failing(str(path))
    file.fails = True
    with pytest.raises(OSError, match="the store is gone"):
        list(read_parquet(shard_of(path), NO_KEY))


def test_memory_does_not_grow_with_the_row_group(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    blob = os.urandom(64 * 1024)
    table = pa.table({"image": [blob] * 1500, "mask": [blob] * 1500})
    pq.write_table(table, path, row_group_size=1500, use_dictionary=False, compression="NONE", write_batch_size=8)
    del table
    before, most = pa.total_allocated_bytes(), 0
    for _ in read_parquet(shard_of(path), NO_KEY):
        most = max(most, pa.total_allocated_bytes() - before)
    assert path.stat().st_size > 180 * 2**20
    assert most < 48 * 2**20


def test_a_remote_file_is_read_by_ranges(monkeypatch: pytest.MonkeyPatch, server: str, tmp_path: Path) -> None:
    table = pa.table({"key": ["a", "b"], "image": [b"1", b"2"]})
    pq.write_table(table, tmp_path / "x.parquet")
    Server.files["/x.parquet"] = (tmp_path / "x.parquet").read_bytes()
    rows = list(read_parquet(shard_of(f"{server}/x.parquet"), FIELDS))
    assert rows == [Sample(0, "a", {"image": b"1"}), Sample(1, "b", {"image": b"2"})]


# --- URLs ---------------------------------------------------------------------------------------------------


class Server(BaseHTTPRequestHandler):
    """Answers /<status>/... with that status, /slow/<n> after a while, else with a file or the path itself."""

    files: dict[str, bytes] = {}  # noqa: RUF012
    lock = threading.Lock()
    now = 0
    most = 0
    methods: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        with Server.lock:
            Server.methods.append(self.command)
            Server.now += 1
            Server.most = max(Server.most, Server.now)
        kind, _, rest = self.path.lstrip("/").partition("/")
        if kind == "slow":
            time.sleep(0.05 if int(rest) % 3 else 0.15)
        data = Server.files.get(self.path, self.path.encode())
        with Server.lock:
            Server.now -= 1
        status = int(kind) if kind.isdigit() else 200
        start, end = 0, len(data)
        if self.path in Server.files and (wanted := self.headers.get("Range")):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start = int(first) if first else len(data) - int(last)
            end = int(last) + 1 if first and last else len(data)
            status = 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(data[start:end])))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.send_header("ETag", '"1"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[start:end])

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "retrying", lambda: tenacity.Retrying(stop=tenacity.stop_after_attempt(1), reraise=True))


def test_what_a_web_server_says_of_a_url(tmp_path: Path, server: str, impatient: None) -> None:
    Server.methods.clear()
    table = pa.table(
        {"image": [f"{server}/{path}" for path in ("a.jpg", "404/x", "410/x", "403/x", "451/x", "b c.jpg")]}
    )
    rows = read(tmp_path, table)
    assert images(rows) == [
        b"/a.jpg", "url_not_found", "url_not_found", "url_denied", "url_denied", b"/b%20c.jpg",
    ]  # fmt: skip
    assert rows[3] == BadSample(3, "set~2Fx/3", Fault("url_denied", {"field": "image", "status": 403}))
    assert set(Server.methods) == {"GET"}  # one plain GET each
    assert len(Server.methods) == 6


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_web_server_in_trouble_is_infrastructure(tmp_path: Path, server: str, impatient: None, status: int) -> None:
    with pytest.raises(Exception, match=str(status)):
        read(tmp_path, pa.table({"image": [f"{server}/{status}/x"]}))


def test_a_time_out_is_raised(tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(url: str) -> bytes:
        raise TimeoutError

    monkeypatch.setattr(urls, "_read", late)
    with pytest.raises(TimeoutError):
        read(tmp_path, pa.table({"image": ["https://host.invalid/x"]}))


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/x",
        "data:,x",
        "data://x",
        "memory://x",
        "simplecache::http://host/x",
        "zip://a::s3://bucket/x",
        "http://",
        "http:///x",
        "http://host:port/x",
        "s3://",
        "s3://bucket",
        "s3://../x/y",
        "gs:///x",
        "a\0b",
        "://x",
    ],
)
def test_urls_of_other_kinds_are_refused(tmp_path: Path, impatient: None, url: str) -> None:
    assert images(read(tmp_path, pa.table({"image": [url]}))) == ["url_refused"]


def test_a_remote_file_cannot_name_files_of_this_machine(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    paths = [str(secret), f"file://{secret}", f"FILE://{secret}", f"local://{secret}", "secret", "../secret", ""]
    remote = fsspec.filesystem("memory")
    pq.write_table(pa.table({"image": [{"bytes": None, "path": path} for path in paths]}), tmp_path / "x.parquet")
    remote.pipe_file("/remote/x.parquet", (tmp_path / "x.parquet").read_bytes())
    rows = list(read_parquet(shard_of("memory://remote/x.parquet"), NO_KEY))
    assert images(rows) == ["url_refused"] * len(paths)


def test_a_local_files_paths_are_relative_to_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "~a.jpg").write_bytes(b"a")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir("/")
    paths = ["sub/~a.jpg", f"{tmp_path}/sub/~a.jpg", f"file://{tmp_path}/sub/~a.jpg", "sub", "none", "pipe", "x" * 9999]
    rows = read(tmp_path, pa.table({"image": paths}))
    assert images(rows) == [b"a", b"a", b"a", *["url_not_found"] * 4]


def test_an_endless_url_is_cut_off(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "MAX_FIELD_BYTES", 5)
    (tmp_path / "long").write_bytes(bytes(1000))
    (tmp_path / "right").write_bytes(b"12345")
    rows = read(tmp_path, pa.table({"image": [f"{server}/{'x' * 1000}", "long", "right"]}))
    assert images(rows) == ["url_too_large", "url_too_large", b"12345"]


def test_urls_are_fetched_several_at_once_and_come_in_order(tmp_path: Path, server: str) -> None:
    Server.most = 0
    values = [f"{server}/slow/{i}" if i % 5 else None for i in range(40)]
    start = time.monotonic()
    rows = read(tmp_path, pa.table({"image": values}), row_group_size=40)
    assert images(rows) == [f"/slow/{i}".encode() if i % 5 else None for i in range(40)]
    assert 2 <= Server.most <= urls.FETCHES_AT_ONCE
    assert time.monotonic() - start < 40 * 0.05  # one after the other takes 2.7 s
