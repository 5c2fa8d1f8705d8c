"""Unfinished multipart uploads of a bucket: what a crash leaves that no listing of files shows, and that is paid for.

Only S3 has them as such; a resumable upload to Google's store ends by itself after a week. s3fs's own
``clear_multipart_uploads`` takes every upload of the bucket, other people's too: here each is named.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from asymvae.storage.clients import is_s3
from asymvae.storage.filesystem import resolve
from asymvae.storage.retry import retrying


@dataclass(frozen=True, slots=True)
class Upload:
    """``where``: path below the folder that was listed. ``started``: in s since 1970, by the store's clock."""

    where: str
    key: str
    id: str
    started: float


def list_uploads(url_folder: str) -> list[Upload]:
    """All that are under way or cut off below a folder, in order of name; [] where a store has no such thing."""
    found = _s3(url_folder)
    if found is None:
        return []
    fs, bucket, prefix = found
    return sorted(
        (
            Upload(each["Key"].removeprefix(prefix), each["Key"], each["UploadId"], each["Initiated"].timestamp())
            for each in _pages(fs, bucket, prefix)
            if each["Key"].startswith(prefix)
        ),
        key=lambda upload: (upload.where, upload.id),
    )


def uploaded_bytes(url_folder: str, upload: Upload) -> int:
    """What of an upload the store holds; 0 where it was finished or aborted meanwhile."""
    fs, bucket = _store_of(url_folder)
    total, page = 0, dict[str, Any]()
    while True:
        try:
            answer = retrying()(
                lambda: fs.call_s3("list_parts", Bucket=bucket, Key=upload.key, UploadId=upload.id, **page)  # noqa: B023
            )
        except FileNotFoundError:
            return 0
        total += sum(int(part["Size"]) for part in answer.get("Parts", []))
        if not answer.get("IsTruncated"):
            return total
        page = {"PartNumberMarker": answer["NextPartNumberMarker"]}


def abort(url_folder: str, upload: Upload) -> bool:
    """False: it was finished or aborted meanwhile."""
    fs, bucket = _store_of(url_folder)
    with contextlib.suppress(FileNotFoundError):
        retrying()(lambda: fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=upload.key, UploadId=upload.id))
        return True
    return False


def abort_uploads(url_folder: str, ours: Callable[[str], bool]) -> list[str]:
    """Abort those below a folder whose path below it ``ours`` accepts; returns these paths."""
    return [upload.where for upload in list_uploads(url_folder) if ours(upload.where) and abort(url_folder, upload)]


def _store_of(url_folder: str) -> tuple[Any, str]:
    """The file system and the bucket."""
    fs, path = resolve(url_folder)
    return fs, fs.split_path(path)[0]


def _s3(url_folder: str) -> tuple[Any, str, str] | None:
    """The file system, the bucket and the prefix of the keys below the folder."""
    fs, path = resolve(url_folder)
    if not is_s3(fs):
        return None
    bucket, prefix, _ = fs.split_path(path.rstrip("/") + "/")
    return fs, bucket, prefix


def _pages(fs: Any, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    page: dict[str, str] = {}
    while True:
        answer = retrying()(
            lambda: fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix, **page)  # noqa: B023
        )
        yield from answer.get("Uploads", [])
        # SeaweedFS goes by the id alone, and finds nothing behind a key that it didn't name.
        page = {name: answer[f"Next{name}"] for name in ("KeyMarker", "UploadIdMarker") if answer.get(f"Next{name}")}
        if not answer.get("IsTruncated") or not page:
            return
