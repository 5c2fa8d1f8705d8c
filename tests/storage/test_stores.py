"""What the jobs ask of a place for bytes, held to by each: a local folder, two S3 servers, one of Google's kind.

What a server itself doesn't keep is said where it is met, and asked of the others all the same.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tenacity

from asymvae.storage import filesystem
from asymvae.storage.retry import server_answer
from asymvae.storage.uploads import abort_uploads

PIECE = 5 * 2**20  # the least that S3 takes
BIG = 2 * PIECE + 12_345  # goes up in three pieces


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that little has to be moved."""
    monkeypatch.setattr(filesystem, "UPLOAD_CHUNK_BYTES", PIECE)
    monkeypatch.setattr(filesystem, "READ_AHEAD_BYTES", 2**20)


@pytest.fixture(params=["seaweedfs", "moto"])
def any_s3_url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue({"seaweedfs": "s3_url", "moto": "moto_url"}[request.param]))


@pytest.fixture(params=["bytes", "file", "file of several pieces"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], bytes | Path]:
    """Makes something to store, another each time."""

    def make() -> bytes | Path:
        content = os.urandom(BIG if "pieces" in request.param else 1000)
        if request.param == "bytes":
            return content
        path = tmp_path / f"source-{content[:8].hex()}"
        path.write_bytes(content)
        return path

    return make


def content_of(source: bytes | Path) -> bytes:
    return source.read_bytes() if isinstance(source, Path) else source


def goes_up_in_pieces(source: bytes | Path) -> bool:
    return isinstance(source, Path) and source.stat().st_size == BIG


def test_a_file_is_created_where_there_is_none_and_nowhere_else(
    store_url: str, source: Callable[[], bytes | Path]
) -> None:
    url, first, second = filesystem.join(store_url, "folder", "file"), source(), source()
    assert filesystem.put_if_absent(url, first) is True
    if store_url.startswith("gs://") and goes_up_in_pieces(second):
        # fake-gcs-server forgets the ifGenerationMatch of a resumable upload, which gcsfs makes of a file of 5 MiB
        # and more. Google's own service is documented to answer 412 at its end.
        return
    assert filesystem.put_if_absent(url, second) is False
    assert filesystem.read_bytes(url) == content_of(first)
    assert list(filesystem.list_files(store_url, recursive=True)) == ["folder/file"]
    assert not abort_uploads(store_url, lambda _: True), "the refused upload was left unfinished"


def race(url: str, folder: Path, count: int, size: int) -> list[bytes]:
    """Create one file from ``count`` others at once; the contents of those that were told they made it."""
    sources = [folder / str(number) for number in range(count)]
    for source in sources:
        source.write_bytes(os.urandom(size))
    barrier, made = threading.Barrier(count), [False] * count

    def create(number: int) -> None:
        barrier.wait()
        made[number] = filesystem.put_if_absent(url, sources[number])

    threads = [threading.Thread(target=create, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [source.read_bytes() for source, won in zip(sources, made, strict=True) if won]


def test_of_many_at_once_exactly_one_creates_the_file(store_url: str, tmp_path: Path) -> None:
    url = filesystem.join(store_url, "file")
    winners = race(url, tmp_path, 8, 1000)
    assert winners == [filesystem.read_bytes(url)]


def test_of_many_that_go_up_in_pieces_exactly_one_creates_the_file(moto_url: str, tmp_path: Path) -> None:
    url = filesystem.join(moto_url, "file")
    winners = race(url, tmp_path, 3, BIG)
    assert winners == [filesystem.read_bytes(url)]
    assert not abort_uploads(moto_url, lambda _: True), "a loser left an unfinished upload"


def test_on_seaweedfs_what_is_there_in_the_end_is_one_of_those_that_were_told_so(s3_url: str, tmp_path: Path) -> None:
    """SeaweedFS 4.48 keeps If-None-Match of PutObject at any pace, but at CompleteMultipartUpload it looks and then
    writes, in two steps: of several at once more than one may be told that it made the file."""
    url = filesystem.join(s3_url, "file")
    winners = race(url, tmp_path, 3, BIG)
    assert filesystem.read_bytes(url) in winners
    assert not abort_uploads(s3_url, lambda _: True), "a loser left an unfinished upload"


def test_s3_servers_refuse_in_two_ways_and_both_are_met_here(s3_url: str) -> None:
    """s3fs makes FileExistsError only of an answer that names the condition, as moto's and Amazon's do."""
    fs, path = filesystem.resolve(s3_url)
    fs.pipe_file(f"{path}/file", b"1", mode="create")
    with pytest.raises(OSError, match="pre-conditions") as refused:
        fs.pipe_file(f"{path}/file", b"2", mode="create")
    assert refused.value.errno == errno.EINVAL
    assert server_answer(refused.value) == (412, "PreconditionFailed")


def test_the_other_way(moto_url: str) -> None:
    fs, path = filesystem.resolve(moto_url)
    fs.pipe_file(f"{path}/file", b"1", mode="create")
    with pytest.raises(FileExistsError):
        fs.pipe_file(f"{path}/file", b"2", mode="create")


def test_listings_name_what_is_below_the_folder_and_begins_with_the_prefix(store_url: str) -> None:
    out, beside = f"{store_url}/out", f"{store_url}/out-2"
    assert filesystem.list_files(out) == {}
    assert filesystem.list_files(out, recursive=True, prefix="a") == {}
    names = ["a", "b.json", "b/1", "b/2", "b/deeper/1", "c~2Fd.x"]
    for name in names:
        filesystem.put_if_absent(filesystem.join(out, name), name.encode())
    filesystem.put_if_absent(filesystem.join(beside, "a"), b"another's")
    assert list(filesystem.list_files(out, recursive=True)) == names
    assert list(filesystem.list_files(out)) == ["a", "b.json", "c~2Fd.x"]
    assert list(filesystem.list_files(out, prefix="b")) == ["b.json"]
    assert list(filesystem.list_files(out, prefix="b", recursive=True)) == names[1:5]
    assert list(filesystem.list_files(out, prefix="b/d", recursive=True)) == ["b/deeper/1"]
    assert filesystem.list_files(out)["a"].size == 1


def test_listings_in_pages_are_read_to_their_end(any_s3_url: str) -> None:
    fs, path = filesystem.resolve(any_s3_url)
    fs.connect()
    for call, setting in (("ListObjectsV2", "MaxKeys"), ("ListMultipartUploads", "MaxUploads")):
        fs.s3.meta.events.register(
            f"provide-client-params.s3.{call}",
            lambda params, setting=setting, **_: params | {setting: 3},
        )
    bucket, _, folder = path.partition("/")
    names = [f"results/{number}" for number in range(10)]
    for name in names:
        filesystem.replace(filesystem.join(any_s3_url, name), b"")
        fs.call_s3("create_multipart_upload", Bucket=bucket, Key=f"{folder}/{name}")
    fs.call_s3("create_multipart_upload", Bucket=bucket, Key=f"{folder}/results/another")
    assert list(filesystem.list_files(any_s3_url, recursive=True)) == names
    assert list(filesystem.list_files(f"{any_s3_url}/results")) == [str(number) for number in range(10)]
    assert sorted(abort_uploads(any_s3_url, lambda where: where in names)) == names
    left = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{folder}/")["Uploads"]
    assert [upload["Key"] for upload in left] == [f"{folder}/results/another"]
    type(fs).clear_instance_cache()


def test_sizes_versions_and_hashes_are_those_of_the_content(store_url: str, source: Callable[[], bytes | Path]) -> None:
    url, made = filesystem.join(store_url, "file"), source()
    filesystem.put_if_absent(url, made)
    before = filesystem.info(url)
    assert before.size == len(content_of(made))
    assert before == filesystem.info(url) == filesystem.list_files(store_url)["file"]
    assert '"' not in before.etag
    assert filesystem.hash_stream(url) == hashlib.sha256(content_of(made)).hexdigest()
    filesystem.replace(url, b"other")
    assert filesystem.info(url).etag != before.etag
    assert filesystem.read_bytes(url) == b"other"


def test_what_is_not_there_can_be_removed_but_not_read(store_url: str) -> None:
    url = filesystem.join(store_url, "file")
    for _ in range(2):
        filesystem.remove(url)
        for read in (filesystem.read_bytes, filesystem.open_stream, filesystem.info, filesystem.hash_stream):
            with pytest.raises(FileNotFoundError):
                read(url)
        filesystem.replace(url, b"1")
    filesystem.remove(url)
    assert filesystem.list_files(store_url) == {}
    assert filesystem.put_if_absent(url, b"again") is True


def test_a_stream_reads_from_anywhere(store_url: str, tmp_path: Path) -> None:
    content = os.urandom(filesystem.READ_AHEAD_BYTES + 2**20)
    (tmp_path / "big").write_bytes(content)
    url = filesystem.join(store_url, "file")
    filesystem.put_if_absent(url, tmp_path / "big")
    with filesystem.open_stream(url) as stream:
        assert stream.read(512) == content[:512]
        assert stream.seek(-1000, os.SEEK_END) == len(content) - 1000
        assert stream.read() == content[-1000:]
        assert stream.read(1) == b""
        stream.seek(filesystem.READ_AHEAD_BYTES - 5)
        assert stream.read(10) == content[filesystem.READ_AHEAD_BYTES - 5 : filesystem.READ_AHEAD_BYTES + 5]
        stream.seek(0)
        assert stream.read() == content


@pytest.fixture
def cut_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The connection of every file that is opened first is lost after its first read; positions where it went on."""
    opened: list[int] = []
    whole = filesystem._open_remote

    def open_remote(fs: Any, path: str) -> tuple[Any, filesystem.FileInfo]:
        file, info = whole(fs, path)
        read, reads = file.read, []

        def cut(size: int = -1) -> bytes:
            reads.append(file.tell())
            if len(opened) == 1 and len(reads) > 1:
                raise ConnectionResetError("cut")
            return bytes(read(size))

        file.read = cut
        opened.append(0)
        return file, info

    monkeypatch.setattr(filesystem, "_open_remote", open_remote)
    monkeypatch.setattr(tenacity.nap.time, "sleep", lambda _: None)
    return opened


@pytest.fixture(params=["seaweedfs", "moto", "gcs"])
def remote_url(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue({"seaweedfs": "s3_url", "moto": "moto_url", "gcs": "gs_url"}[request.param]))


def test_a_stream_that_was_cut_goes_on_where_it_was(remote_url: str, cut_once: list[int]) -> None:
    content, url = os.urandom(3 * 2**20), filesystem.join(remote_url, "file")
    filesystem.put_if_absent(url, content)
    with filesystem.open_stream(url) as stream:
        assert stream.read() == content
    assert len(cut_once) == 2


def test_halves_of_two_versions_are_never_joined(remote_url: str) -> None:
    old, new = bytes(filesystem.READ_AHEAD_BYTES + 4 * 2**20), b"1" * (filesystem.READ_AHEAD_BYTES + 4 * 2**20)
    url = filesystem.join(remote_url, "file")
    filesystem.replace(url, old)
    stream = filesystem.open_stream(url)
    assert stream.read(1000) == old[:1000]
    filesystem.replace(url, new)
    with stream, pytest.raises(OSError):  # noqa: PT011  each client's own
        stream.read()


def test_unfinished_uploads_below_the_folder_are_aborted_where_they_are_ours(any_s3_url: str) -> None:
    fs, path = filesystem.resolve(any_s3_url)
    bucket, _, folder = path.partition("/")
    ours, others = ["out/results/a", "out/results/b"], ["out/notes", "out-2/results/a", "results/a"]
    for name in ours + others:
        upload = fs.call_s3("create_multipart_upload", Bucket=bucket, Key=f"{folder}/{name}")
        fs.call_s3(
            "upload_part",
            Bucket=bucket,
            Key=f"{folder}/{name}",
            UploadId=upload["UploadId"],
            PartNumber=1,
            Body=bytes(1000),
        )
    aborted = abort_uploads(f"{any_s3_url}/out", lambda where: where.startswith("results/"))
    assert sorted(aborted) == ["results/a", "results/b"]
    left = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{folder}/")["Uploads"]
    assert sorted(upload["Key"].removeprefix(f"{folder}/") for upload in left) == sorted(others)
