"""What time it is at a store, whose own times of its files can be compared with that alone."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from email.utils import parsedate_to_datetime
from typing import Any, Final

from fsspec.implementations.local import LocalFileSystem

from asymvae.storage.clients import is_gcs, is_s3
from asymvae.storage.filesystem import resolve
from asymvae.storage.retry import retrying

PROBE: Final = "clock"  # the name in a temporary file's, see :data:`asymvae.storage.filesystem.TEMPORARY`


def store_time(url_folder: str) -> float:
    """In s since 1970, by the clock of the store; by ours where it can't be asked.

    S3 and Google's store answer with a Date. A folder may be another machine's: an empty hidden file is made in it
    for a moment, where that is allowed.
    """
    fs, path = resolve(url_folder)
    if isinstance(fs, LocalFileSystem):
        with contextlib.suppress(OSError):
            return _folder_time(path)
        return time.time()
    headers: dict[str, Any] = {}
    if is_s3(fs):
        bucket, key, _ = fs.split_path(path)
        answer = retrying()(lambda: fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=f"{key}/", MaxKeys=1))
        headers = answer["ResponseMetadata"]["HTTPHeaders"]
    elif is_gcs(fs):
        bucket, _, key = path.partition("/")
        headers, _ = retrying()(lambda: fs.call("GET", "b/{}/o", bucket, prefix=f"{key}/", maxResults=1))
    date = {name.lower(): value for name, value in headers.items()}.get("date")
    return parsedate_to_datetime(date).timestamp() if date else time.time()


def _folder_time(folder: str) -> float:
    probe = os.path.join(folder, f".{PROBE}.{uuid.uuid4().hex}.tmp")
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        return os.stat(probe).st_mtime
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(probe)
