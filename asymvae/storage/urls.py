"""Fetching what a column of URLs names: safely, bounded in bytes, several at once."""

from __future__ import annotations

import os
import re
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final
from urllib.parse import urlsplit

from asymvae.faults import Fault
from asymvae.storage.filesystem import is_local, open_stream, resolve
from asymvae.storage.retry import is_transient, retrying, server_answer
from asymvae.storage.samples import MAX_FIELD_BYTES

FETCHES_AT_ONCE: Final = 8

_WEB: Final = ("http", "https")
_BUCKET: Final = re.compile(r"(s3|gs|gcs)://[A-Za-z0-9][A-Za-z0-9._-]+/.")
_CHUNK: Final = 1024 * 1024


class Fetcher:
    """Fetches the URLs of one shard in a few threads. A context manager: leaving it gives up what is waiting.

    http, https, s3, gs and gcs are read. ``file://`` and paths (relative ones: to the shard's folder) are too,
    but only if the shard is a local file itself: one from elsewhere must not name files of this machine.
    """

    def __init__(self, shard_url: str) -> None:
        self._folder = os.path.dirname(resolve(shard_url)[1]) if is_local(shard_url) else None
        self._pool = ThreadPoolExecutor(FETCHES_AT_ONCE, thread_name_prefix="fetch")

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def submit(self, url: str, field: str) -> Future[bytes | Fault]:
        """The bytes behind ``url``, or the Fault of ``field`` if the URL is to blame. A time-out is raised."""
        return self._pool.submit(self._fetch, url, field)

    def _fetch(self, url: str, field: str) -> bytes | Fault:
        target = self._target(url)
        if target is None:
            return Fault("url_refused", {"field": field})
        try:
            data = retrying()(lambda: _read(target))
        except (FileNotFoundError, IsADirectoryError):
            return Fault("url_not_found", {"field": field})
        except ValueError:  # the client's: no host, no such port, a byte that no URL has
            return Fault("url_refused", {"field": field})
        except Exception as error:
            answer = server_answer(error)
            # A web server's final answer is about this URL alone; a bucket's (no permission) about the job.
            if not _is_web(target) or answer is None or answer[0] is None or is_transient(error):
                raise
            if answer[0] == 410:  # gone
                return Fault("url_not_found", {"field": field})
            return Fault("url_denied", {"field": field, "status": answer[0]})
        if len(data) > MAX_FIELD_BYTES:
            return Fault("url_too_large", {"field": field, "limit": MAX_FIELD_BYTES})
        return data

    def _target(self, url: str) -> str | None:
        """The URL or absolute path to read; None if it is refused."""
        # fsspec would take "::" for a chain of file systems, and "data:" for the content itself
        if "::" in url or "\0" in url or url.startswith("data:"):
            return None
        scheme, separator, rest = url.partition("://")
        if not separator:
            return None if self._folder is None else "file://" + os.path.join(self._folder, url)
        scheme = scheme.lower()
        if scheme == "file":
            return None if self._folder is None else f"file://{rest}"
        target = f"{scheme}://{rest}"
        if scheme in _WEB:
            return target if urlsplit(target).hostname else None
        return target if _BUCKET.match(target) else None


def _is_web(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _read(url: str) -> bytes:
    """Up to one byte more than a field may have."""
    if url.startswith("file://") and not os.path.isfile(resolve(url)[1]):
        raise FileNotFoundError  # nothing there, or a device or pipe that has no end
    data = bytearray()
    with _open(url) as stream:
        while len(data) <= MAX_FIELD_BYTES and (chunk := stream.read(_CHUNK)):
            data += chunk
    return bytes(data[: MAX_FIELD_BYTES + 1])


def _open(url: str) -> Any:
    if not _is_web(url):
        return open_stream(url)
    # One plain GET: many image hosts know neither HEAD nor ranges. fsspec asks for the size unless it is told
    # one, and with block_size 0 makes no use of it.
    fs, path = resolve(url)
    return fs.open(path, "rb", block_size=0, size=1)
