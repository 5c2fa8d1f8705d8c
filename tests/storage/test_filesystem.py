"""The door to files: atomic creation, retries, listings, and no secrets in what is written down."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tenacity
from fsspec.implementations.memory import MemoryFileSystem

from asymvae.storage import filesystem, retry
from asymvae.storage.stream import ReopeningStream


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without the waiting."""
    monkeypatch.setattr(tenacity.nap.time, "sleep", lambda _: None)


def at_once(count: int, work: Callable[[int], Any]) -> list[Any]:
    """``work(0) ... work(count - 1)``, started together."""
    barrier, results = threading.Barrier(count), [None] * count

    def run(number: int) -> None:
        barrier.wait()
        results[number] = work(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_of_many_that_create_a_file_at_once_exactly_one_is_told_it_did(out_url: str) -> None:
    for round_number in range(3):
        url = filesystem.join(out_url, f"{round_number}.bin")
        contents = [bytes([number]) * 1000 for number in range(4)]
        made = at_once(4, lambda number: filesystem.put_if_absent(url, contents[number]))  # noqa: B023
        assert made.count(True) == 1
        assert filesystem.read_bytes(url) == contents[made.index(True)]
    assert len(filesystem.list_files(out_url)) == 3


def test_the_same_bytes_from_two_writers_are_still_made_by_one(out_url: str) -> None:
    url = filesystem.join(out_url, "same.bin")
    assert sorted(at_once(2, lambda _: filesystem.put_if_absent(url, b"same"))) == [False, True]


def test_a_lost_answer_to_our_own_upload_is_not_taken_for_anothers(
    s3_url: str, monkeypatch: pytest.MonkeyPatch, impatient: None, tmp_path: Path
) -> None:
    import s3fs

    whole = s3fs.S3FileSystem._call_s3
    lost = []

    async def lose_first_answer(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        answer = await whole(self, method, *args, **kwargs)
        if method in ("put_object", "complete_multipart_upload") and method not in lost:
            lost.append(method)
            raise ConnectionResetError("the answer is lost")
        return answer

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", lose_first_answer)
    big = tmp_path / "big"
    big.write_bytes(bytes(2 * filesystem.UPLOAD_CHUNK_BYTES))
    assert filesystem.put_if_absent(f"{s3_url}/small", b"x") is True
    assert filesystem.put_if_absent(f"{s3_url}/big", big) is True
    assert lost == ["put_object", "complete_multipart_upload"]
    assert filesystem.put_if_absent(f"{s3_url}/small", b"x") is False


def test_an_upload_that_fails_for_good_leaves_nothing(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    whole = s3fs.S3FileSystem._call_s3

    async def refuse(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        if method == "put_object":
            raise PermissionError("403")
        return await whole(self, method, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "_call_s3", refuse)
        with pytest.raises(PermissionError):
            filesystem.put_if_absent(f"{s3_url}/x", b"x")
    assert filesystem.list_files(s3_url) == {}


def test_an_interrupted_local_write_leaves_neither_file_nor_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        filesystem.put_if_absent(str(tmp_path / "folder" / "file"), b"x")
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_local_file_is_written_again_if_its_temporary_is_swept_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    link, calls = os.link, []

    def swept_once(source: str, target: str) -> None:
        calls.append(source)
        if len(calls) == 1:
            os.unlink(source)
        link(source, target)

    monkeypatch.setattr(os, "link", swept_once)
    assert filesystem.put_if_absent(str(tmp_path / "file"), b"x") is True
    assert len(calls) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_local_file_gets_the_mode_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "usual").write_bytes(b"")
    filesystem.put_if_absent(str(tmp_path / "ours"), b"")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "ours")]
    assert modes[0] == modes[1]


def test_a_store_that_cannot_create_only_where_there_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="local folders, s3:// and gs://"):
        filesystem.put_if_absent("https://user:secret@host/out/file", b"x")


def test_memory_files_work_for_tests_of_others() -> None:
    MemoryFileSystem.store.clear()
    assert sorted(at_once(2, lambda _: filesystem.put_if_absent("memory://out/a", b"1"))) == [False, True]
    assert filesystem.list_files("memory://out") == {"a": filesystem.info("memory://out/a")}
    with filesystem.open_stream("memory://out/a") as one, filesystem.open_stream("memory://out/a") as other:
        assert (one.read(), other.read()) == (b"1", b"1")
    filesystem.remove("memory://out/a")
    assert filesystem.list_files("memory://out") == {}


def test_listings_give_names_below_the_folder_sizes_and_versions(out_url: str) -> None:
    assert filesystem.list_files(out_url) == {}
    for name in ("b", "a1", "a2", "deeper/a3", "deeper/c"):
        filesystem.put_if_absent(filesystem.join(out_url, name), name.encode())
    assert list(filesystem.list_files(out_url)) == ["a1", "a2", "b"]
    assert list(filesystem.list_files(out_url, prefix="a")) == ["a1", "a2"]
    assert list(filesystem.list_files(out_url, recursive=True)) == ["a1", "a2", "b", "deeper/a3", "deeper/c"]
    assert list(filesystem.list_files(out_url, recursive=True, prefix="deeper/a")) == ["deeper/a3"]
    before = filesystem.list_files(out_url)["b"]
    assert before == filesystem.info(filesystem.join(out_url, "b"))
    assert before.size == 1
    filesystem.replace(filesystem.join(out_url, "b"), b"other")
    assert filesystem.list_files(out_url)["b"].etag != before.etag


def test_removing_and_reading_what_is_not_there(out_url: str) -> None:
    filesystem.remove(filesystem.join(out_url, "nothing"))
    with pytest.raises(FileNotFoundError):
        filesystem.read_bytes(filesystem.join(out_url, "nothing"))
    with pytest.raises(FileNotFoundError):
        filesystem.open_stream(filesystem.join(out_url, "nothing"))


def test_a_stream_reads_and_seeks_like_a_file(out_url: str) -> None:
    content, url = os.urandom(300_000), filesystem.join(out_url, "file")
    filesystem.put_if_absent(url, content)
    with filesystem.open_stream(url) as stream:
        assert stream.read(1000) == content[:1000]
        buffer = bytearray(5000)
        assert stream.readinto(buffer) == 5000
        assert buffer == content[1000:6000]
        stream.seek(-10, os.SEEK_END)
        assert (stream.read(), stream.read()) == (content[-10:], b"")


class Cut:
    """A file whose connection is reset after every 1000 bytes it gave."""

    size = 10_000

    def __init__(self, content: bytes) -> None:
        self.content, self.position, self.given = content, 0, 0

    def seek(self, position: int) -> None:
        self.position = position

    def read(self, size: int) -> bytes:
        if self.given >= 1000:
            raise ConnectionResetError
        self.given += min(size, 400)
        return self.content[self.position : self.position + min(size, 400)]

    def close(self) -> None:
        pass


def test_a_stream_goes_on_at_the_byte_where_its_connection_was_reset(impatient: None) -> None:
    content = os.urandom(10_000)
    opened = []

    def open_file() -> tuple[Cut, filesystem.FileInfo]:
        opened.append(Cut(content))
        return opened[-1], filesystem.FileInfo(len(content), "v1")

    assert ReopeningStream(open_file, "file").readall() == content
    assert len(opened) > 5


def test_a_stream_of_a_file_replaced_meanwhile_is_an_error(impatient: None) -> None:
    versions = iter("12")

    def open_file() -> tuple[Cut, filesystem.FileInfo]:
        return Cut(bytes(10_000)), filesystem.FileInfo(10_000, next(versions))

    with pytest.raises(OSError, match="bucket/x was replaced"):
        ReopeningStream(open_file, "bucket/x").readall()


class Answer(Exception):
    """As botocore's ClientError."""

    def __init__(self, status: int, code: str) -> None:
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}


def from_server(error: Exception, status: int, code: str) -> Exception:
    error.__cause__ = Answer(status, code)
    return error


@pytest.mark.parametrize(
    ("error", "transient"),
    [
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (OSError(errno.EBUSY, "SlowDown"), True),
        (from_server(OSError(errno.EIO, "?"), 503, "SlowDown"), True),
        (from_server(OSError(errno.EIO, "?"), 409, "ConditionalRequestConflict"), True),
        (from_server(OSError(errno.EREMOTEIO, "?"), 500, "InternalError"), True),
        (from_server(OSError(errno.EINVAL, "?"), 412, "PreconditionFailed"), False),
        (from_server(FileNotFoundError(), 404, "NoSuchKey"), False),
        (from_server(PermissionError(), 403, "AccessDenied"), False),
        (from_server(OSError(errno.ENOSYS, "?"), 501, "NotImplemented"), False),
        (OSError(errno.ENOSPC, "full"), False),
        (OSError(errno.EIO, "disk"), False),
        (FileNotFoundError(), False),
        (ValueError(), False),
    ],
    ids=str,
)
def test_only_what_passes_by_itself_is_tried_again(error: Exception, transient: bool) -> None:
    assert retry.is_transient(error) is transient


def test_the_clients_own_network_errors_are_transient() -> None:
    import aiohttp
    import botocore.exceptions

    for error in (
        botocore.exceptions.EndpointConnectionError(endpoint_url="http://x"),
        botocore.exceptions.ReadTimeoutError(endpoint_url="http://x"),
        botocore.exceptions.ConnectionClosedError(endpoint_url="http://x"),
        aiohttp.ServerDisconnectedError(),
        aiohttp.ClientPayloadError(),
    ):
        assert retry.is_transient(error), error
    assert not retry.is_transient(botocore.exceptions.NoCredentialsError())


def test_a_store_that_stays_away_ends_with_its_error_after_the_stated_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(tenacity.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(tenacity.nap.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))

    def away() -> None:
        raise ConnectionRefusedError("away")

    with pytest.raises(ConnectionRefusedError, match="away"):
        retry.retrying()(away)
    assert retry.GIVE_UP_AFTER_SECONDS - retry.LONGEST_WAIT_SECONDS <= clock[0] < retry.GIVE_UP_AFTER_SECONDS


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/key-?.tar", "s3://bucket/key-?.tar"),
        ("s3://bucket/key?versionId=1", "s3://bucket/key"),
        ("s3://AKIA:se/cr+et@bucket/a@2x.tar", "s3://bucket/a@2x.tar"),
        ("gs://me@bucket/a:b@c", "gs://bucket/a:b@c"),
        ("s3://bucket/a:b@c", "s3://bucket/a:b@c"),
        ("s3://arn:aws:s3:eu-west-1:123:accesspoint/a/b@c", "s3://arn:aws:s3:eu-west-1:123:accesspoint/a/b@c"),
        ("https://user:p@ss@host/x.tar?X-Amz-Signature=abc#top", "https://host/x.tar"),
        ("simplecache::https://user:pass@host/x?sig=1", "simplecache::https://host/x"),
        ("/data/a@b/c?d#e.tar", "/data/a@b/c?d#e.tar"),
    ],
)
def test_redacted_urls_have_no_credentials_and_no_query(url: str, shown: str) -> None:
    assert filesystem.redact(url) == shown


@pytest.mark.parametrize("url", ["s3://AKIA:se/cr+et@bucket/a", "s3://me@bucket/a", "gs://me:secret@bucket/a"])
def test_credentials_in_a_buckets_url_are_refused_without_a_word_of_them(url: str) -> None:
    with pytest.raises(ValueError, match=r"bucket/a had credentials in it.*AWS_SECRET_ACCESS_KEY") as refused:
        filesystem.read_bytes(url)
    assert "AKIA" not in str(refused.value)
    assert "se" not in str(refused.value).partition(" had ")[0].removeprefix("s3://")


def test_urls_inside_a_text_are_redacted() -> None:
    text = "GET 'https://u:secret@host/a?sig=secret' failed, see s3://bucket/a"
    assert filesystem.redact_text(text) == "GET 'https://host/a' failed, see s3://bucket/a"


def test_joining_keeps_roots() -> None:
    assert filesystem.join("s3://bucket/out/", "results", "a.parquet") == "s3://bucket/out/results/a.parquet"
    assert filesystem.join("/", "a") == "/a"
