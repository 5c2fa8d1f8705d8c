"""How long fsspec's clients of the stores wait, and how often they repeat a request unseen.

By their own defaults a store that accepts and never answers holds s3fs for minutes, and an upload for ever. Here each
request gets the times of :mod:`asymvae.storage.retry`, whose back-off decides about another attempt. What a user set in
fsspec's configuration (``fsspec.config.conf``, its files, ``FSSPEC_*``) stands; credentials and endpoints aren't
touched.
"""

from __future__ import annotations

import logging
import re
from typing import Any

import fsspec
from fsspec.spec import AbstractFileSystem

from asymvae.storage import retry

_S3 = ("s3", "s3a")
_GCS = ("gs", "gcs")
_WEB = ("http", "https")


def file_system(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL (of each step, where it is a chain), with our times; and the path in it."""
    schemes = dict.fromkeys(re.findall(r"(?:^|::)([A-Za-z][A-Za-z0-9+.-]*)(?=::|://)", url))
    options = {scheme: found for scheme in schemes if (found := _options(scheme))}
    # Listings are never cached: other drivers write to the same place.
    fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False, **options)
    step: Any = fs
    while step is not None:
        if is_s3(step):
            step.retries = 1  # it has no option; more would multiply what botocore tries
        step = getattr(step, "fs", None)
    return fs, path


def protocols(fs: AbstractFileSystem) -> set[str]:
    """The schemes that a file system answers to."""
    return {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)


def is_s3(fs: AbstractFileSystem) -> bool:
    return not protocols(fs).isdisjoint(_S3)


def is_gcs(fs: AbstractFileSystem) -> bool:
    return not protocols(fs).isdisjoint(_GCS)


def _options(scheme: str) -> dict[str, Any]:
    """What a file system of this scheme is to be made with, less what the user configured."""
    if scheme in _S3:
        return {"config_kwargs": _s3() | _configured(_S3, "config_kwargs", {})}
    if scheme in _GCS:
        # It logs the traceback of each error that it raises; where nobody listens, that would go to stderr.
        if not (log := logging.getLogger("gcsfs")).handlers:
            log.addHandler(logging.NullHandler())
        if _configured(_GCS, "requests_timeout", None) is None:
            return {"requests_timeout": _timeout(retry.REQUEST_SECONDS)}
    if scheme in _WEB:
        # No time for the whole: a server without ranges gives a shard in one answer, at the pace of its reader.
        return {"client_kwargs": {"timeout": _timeout(None)} | _configured(_WEB, "client_kwargs", {})}
    return {}


def _configured(schemes: tuple[str, ...], option: str, default: Any) -> Any:
    for scheme in reversed(schemes):  # fsspec lets the later one win
        if option in fsspec.config.conf.get(scheme, {}):
            return fsspec.config.conf[scheme][option]
    return default


def _s3() -> dict[str, Any]:
    from asymvae.storage.s3_session import BoundedSession

    return {
        "connect_timeout": retry.CONNECT_SECONDS,
        "read_timeout": retry.SILENCE_SECONDS,
        # Some, for what is over at once: a file of 1,000 pieces would never go up whole where 1 in 100 is reset.
        "retries": {"mode": "standard", "total_max_attempts": retry.REQUEST_TRIES},
        "http_session_cls": BoundedSession,
    }


def _timeout(total: float | None) -> Any:
    import aiohttp

    return aiohttp.ClientTimeout(total=total, sock_connect=retry.CONNECT_SECONDS, sock_read=retry.SILENCE_SECONDS)
