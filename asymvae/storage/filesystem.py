"""Where bytes live: local folders and object stores, through fsspec alone.

Every operation is retried with back-off where the error may pass (:mod:`asymvae.storage.retry`). Credentials
and endpoints come from fsspec's own configuration and environment, never from a URL of ours. Nothing that others
may read is ever written through ``fs.open(path, "wb")``: fsspec closes, and so publishes, on exceptions too.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

import tenacity
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractFileSystem

from asymvae.storage.clients import file_system, is_gcs, is_s3, protocols
from asymvae.storage.redaction import redact as redact
from asymvae.storage.redaction import redact_text as redact_text
from asymvae.storage.redaction import refuse_credentials
from asymvae.storage.retry import retrying, server_answer
from asymvae.storage.stream import ReopeningStream

READ_AHEAD_BYTES: Final = 8 * 2**20
UPLOAD_CHUNK_BYTES: Final = 8 * 2**20  # a file of two chunks or more goes up in pieces
UPLOADS_AT_ONCE: Final = 4
TEMPORARY = re.compile(r"^\.(?P<name>.+)\.[0-9a-f]{32}\.tmp$")  # what a crash may leave in a local folder
_COPY_BYTES: Final = 2**20
_WRITER: Final = "asymvae-writer"
_memory_lock = threading.Lock()
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FileInfo:
    """``size`` in bytes. ``etag`` changes with the content: the store's, or ``<size>-<mtime in ns>`` locally.

    ``changed``: when it was written, in s since 1970 by the store's clock; None where the store doesn't say.
    """

    size: int
    etag: str
    changed: float | None = field(default=None, compare=False)


def resolve(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL, and the path in it (absolute for local paths). No request of it waits for ever.

    ValueError for credentials in the URL of a bucket.
    """
    refuse_credentials(url)
    return file_system(url)


def is_local(url: str) -> bool:
    return isinstance(resolve(url)[0], LocalFileSystem)


def join(url: str, *names: str) -> str:
    """``url/name/name``."""
    return "/".join([url.rstrip("/") or url[:1], *names]) if url != "/" else "/" + "/".join(names)


def _retried(work: Callable[[], T]) -> T:
    return retrying()(work)


# --- reading ------------------------------------------------------------------------------------------------


def read_bytes(url: str) -> bytes:
    """The whole file. FileNotFoundError where there is none."""
    fs, path = resolve(url)
    whole = {"max_concurrency": 1} if is_s3(fs) else {}  # else it asks for the size first
    return bytes(_retried(lambda: fs.cat_file(path, **whole)))


def info(url: str) -> FileInfo:
    """Size and version of one file. FileNotFoundError where there is none."""
    fs, path = resolve(url)
    if isinstance(fs, LocalFileSystem):
        stat = os.stat(path)
        return FileInfo(stat.st_size, f"{stat.st_size}-{stat.st_mtime_ns}", stat.st_mtime)
    return _file_info(_retried(lambda: fs.info(path)))


def exists(url: str) -> bool:
    try:
        info(url)
    except FileNotFoundError:
        return False
    return True


def hash_stream(url: str) -> str:
    """sha256 in hex of a file's content, read in pieces."""
    digest = hashlib.sha256()
    with open_stream(url) as stream:
        while block := stream.read(_COPY_BYTES):
            digest.update(block)
    return digest.hexdigest()


def open_stream(url: str) -> BinaryIO:
    """Open for sequential reading, at most :data:`READ_AHEAD_BYTES` ahead. Seeking works, and costs a request.

    A transient error in the middle reopens the file where it stopped. A file that was replaced meanwhile is
    an OSError: its halves don't fit together.
    """
    fs, path = resolve(url)
    if isinstance(fs, LocalFileSystem):
        return open(path, "rb")
    if isinstance(fs, MemoryFileSystem):  # its open() hands out one shared position
        return io.BytesIO(fs.cat_file(path))
    # Buffered, for readers of 512 bytes at a time.
    return io.BufferedReader(ReopeningStream(lambda: _open_remote(fs, path), redact(url)), _COPY_BYTES)


def _open_remote(fs: AbstractFileSystem, path: str) -> tuple[Any, FileInfo]:
    file = fs.open(path, "rb", block_size=READ_AHEAD_BYTES, cache_type="readahead")
    if generation := file.details.get("generation"):
        # gcsfs would read whatever is there by now; s3fs asks for the ETag that it opened.
        file.cache.fetcher = lambda start, end: fs.cat_file(path, start, end, generation=generation)
    return file, _file_info(file.details)


# --- listing ------------------------------------------------------------------------------------------------


def list_files(url_folder: str, *, recursive: bool = False, prefix: str = "") -> dict[str, FileInfo]:
    """Files of a folder by their path below it, in order of name; {} where there is no such folder.

    ``prefix`` keeps those whose path below the folder begins so; a store answers with these alone.
    """
    return dict(sorted(iter_files(url_folder, recursive=recursive, prefix=prefix)))


def iter_files(url_folder: str, *, recursive: bool = False, prefix: str = "") -> Iterator[tuple[str, FileInfo]]:
    """:func:`list_files`, one by one and in no order: of a million files none is held."""
    fs, path = resolve(url_folder)
    if isinstance(fs, LocalFileSystem):
        yield from _list_local(path, "", recursive, prefix)
    elif is_s3(fs):
        yield from _list_s3(fs, path.strip("/"), recursive, prefix)
    else:
        yield from _retried(lambda: _list_remote(fs, path.rstrip("/"), recursive, prefix)).items()


def _list_local(root: str, below: str, recursive: bool, prefix: str) -> Iterator[tuple[str, FileInfo]]:
    try:
        entries = os.scandir(os.path.join(root, below))
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        for entry in entries:
            name = below + entry.name
            if not recursive and not name.startswith(prefix):  # nearly all, where a commit looks for its shard's others
                continue
            try:
                if entry.is_dir():
                    if recursive and (name.startswith(prefix) or prefix.startswith(name + "/")):
                        yield from _list_local(root, name + "/", recursive, prefix)
                elif name.startswith(prefix):
                    stat = entry.stat()
                    yield name, FileInfo(stat.st_size, f"{stat.st_size}-{stat.st_mtime_ns}", stat.st_mtime)
            except FileNotFoundError:  # removed since the folder was read
                continue


def _list_s3(fs: Any, path: str, recursive: bool, prefix: str) -> Iterator[tuple[str, FileInfo]]:
    from asymvae.storage.s3_listing import list_entries

    bucket, _, key = path.partition("/")
    folder = f"{key}/" if key else ""
    for entry in list_entries(fs, bucket, folder + prefix, recursive=recursive):
        name = entry["Key"].removeprefix(folder)
        if name and not name.endswith("/"):  # a key with a slash at its end stands for a folder
            entry["size"] = entry["Size"]
            yield name, _file_info(entry)


def _list_remote(fs: AbstractFileSystem, path: str, recursive: bool, prefix: str) -> dict[str, FileInfo]:
    if prefix and not isinstance(fs, MemoryFileSystem):
        entries = list(fs.find(path, detail=True, prefix=prefix).values())
    elif recursive:
        entries = list(fs.find(path, detail=True).values())
    else:
        try:
            entries = fs.ls(path, detail=True)
        except FileNotFoundError:
            return {}
    found = {}
    for entry in entries:
        name = entry["name"].removeprefix(path).lstrip("/")
        if entry["type"] == "file" and name and name.startswith(prefix) and (recursive or "/" not in name):
            found[name] = _file_info(entry)
    return found


def _file_info(entry: dict[str, Any]) -> FileInfo:
    size = int(entry["size"])
    tag = entry.get("ETag") or entry.get("etag")
    when = entry.get("LastModified") or entry.get("last_modified") or entry.get("created") or entry.get("mtime") or ""
    if isinstance(when, datetime):  # memory:// tells it in two ways
        when = when.timestamp()
    return FileInfo(size, str(tag).strip('"') if tag else f"{size}-{when}", when if isinstance(when, float) else None)


# --- writing ------------------------------------------------------------------------------------------------


def put_if_absent(url: str, source: bytes | Path) -> bool:
    """Create a file from bytes or from a local file. True: we made it; False: something is there, untouched.

    At every moment the file is either complete or not there. Local folders: a hidden temporary file in the
    same folder, fsync, a hard link. S3: If-None-Match, in pieces for large files. Google Cloud Storage: a
    generation match. Other stores are refused with a ValueError: an exists-check would not keep the promise.
    """
    fs, path = resolve(url)
    if isinstance(fs, LocalFileSystem):
        return _retried(lambda: _create_local(path, source))
    if isinstance(fs, MemoryFileSystem):
        with _memory_lock:  # its own check and creation are two steps
            if fs.exists(path):
                return False
            fs.pipe_file(path, _content(source))
            return True
    if is_s3(fs):
        return _create_s3(fs, path, source)
    if is_gcs(fs):
        return _create_other(fs, path, source)
    raise ValueError(
        f"{redact(url)}: output can go to local folders, s3:// and gs:// only; "
        f"{sorted(protocols(fs))[0]}:// can't create a file only where there is none"
    )


def replace(url: str, content: bytes) -> None:
    """Write a small file whether or not one is there; readers see the old or the new one, whole."""
    fs, path = resolve(url)
    if isinstance(fs, LocalFileSystem):
        _retried(lambda: _replace_local(path, content))
    else:
        _retried(lambda: fs.pipe_file(path, content))


def remove(url: str) -> None:
    """Remove a file; one that isn't there is fine."""
    fs, path = resolve(url)
    with contextlib.suppress(FileNotFoundError):
        _retried(lambda: fs.rm_file(path))


def _content(source: bytes | Path) -> bytes:
    return source.read_bytes() if isinstance(source, Path) else source


def _write_temporary(path: str, source: bytes | Path) -> str:
    """A complete, synced, hidden file beside ``path``; its name says whose it is, see :data:`TEMPORARY`."""
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    try:
        # Not mkstemp: its mode of 0600 would stay with the linked file.
        with open(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), "wb") as target:
            if isinstance(source, Path):
                with source.open("rb") as origin:
                    while block := origin.read(_COPY_BYTES):
                        target.write(block)
            else:
                target.write(source)
            target.flush()
            os.fsync(target.fileno())
    except BaseException:
        _unlink(temporary)
        raise
    return temporary


def _create_local(path: str, source: bytes | Path) -> bool:
    if os.path.lexists(path):
        return False
    temporary = _write_temporary(path, source)
    try:
        try:
            os.link(temporary, path)
        except FileExistsError:
            # NFS may lose the answer and find its own link at the second try.
            if os.stat(temporary).st_nlink != 2:
                return False
        except FileNotFoundError as error:
            raise tenacity.TryAgain(f"{temporary} was swept away by another driver") from error
        _sync_folder(os.path.dirname(path))
        return True
    finally:
        _unlink(temporary)


def _replace_local(path: str, content: bytes) -> None:
    temporary = _write_temporary(path, content)
    try:
        os.replace(temporary, path)
        _sync_folder(os.path.dirname(path))
    finally:
        _unlink(temporary)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _create_s3(fs: Any, path: str, source: bytes | Path) -> bool:
    # s3fs and botocore repeat requests unseen, so a refusal may be the echo of our own success. The object
    # says who made it.
    writer = uuid.uuid4().hex

    def attempt() -> bool:
        try:
            if isinstance(source, Path):
                fs.put_file(
                    os.fspath(source),
                    path,
                    mode="create",
                    chunksize=UPLOAD_CHUNK_BYTES,
                    max_concurrency=UPLOADS_AT_ONCE,
                    Metadata={_WRITER: writer},
                )
            else:
                fs.pipe_file(path, source, mode="create", Metadata={_WRITER: writer})
            return True
        except OSError as error:
            # Some servers' answer becomes FileExistsError, others' (SeaweedFS) OSError(EINVAL).
            status, code = server_answer(error) or (None, "")
            exists = isinstance(error, FileExistsError) or status == 412 or code == "PreconditionFailed"
            # An upload that isn't known any more was aborted, or completed by a request whose answer was lost.
            gone = code == "NoSuchUpload"
            if not exists and not gone:
                raise
            bucket, key, _ = fs.split_path(path)
            try:
                head = fs.call_s3("head_object", Bucket=bucket, Key=key)
            except FileNotFoundError as absent:
                raise tenacity.TryAgain(f"{path} was removed, or its upload aborted, meanwhile") from absent
            return bool(head.get("Metadata", {}).get(_WRITER) == writer)

    return _retried(attempt)


def _create_other(fs: AbstractFileSystem, path: str, source: bytes | Path) -> bool:
    tries = 0

    def attempt() -> bool:
        nonlocal tries
        tries += 1
        try:
            if isinstance(source, Path):
                fs.put_file(os.fspath(source), path, mode="create")
            else:
                fs.pipe_file(path, source, mode="create")
            return True
        except OSError as error:
            answer = server_answer(error)
            if not isinstance(error, FileExistsError) and (answer is None or answer[0] != 412):
                raise
            # After a lost answer what is there may be ours: then it has our bytes.
            return tries > 1 and bytes(fs.cat_file(path)) == _content(source)

    return _retried(attempt)
