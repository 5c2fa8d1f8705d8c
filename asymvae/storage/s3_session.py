"""The HTTP session of s3fs's client, in which no request waits for ever."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import urlsplit

from aiobotocore.httpsession import AIOHTTPSession  # type: ignore[import-untyped]
from botocore.exceptions import ConnectTimeoutError, ReadTimeoutError  # type: ignore[import-untyped]

from asymvae.storage import retry


class BoundedSession(AIOHTTPSession):  # type: ignore[misc]
    """Bounds a request from its start to its answer's head by :data:`asymvae.storage.retry.REQUEST_SECONDS`.

    aiohttp begins to watch for silence when a request's body is sent, so a store that stops reading in the middle of
    an upload, or never asks for its body ("Expect: 100-continue"), would hold it for ever. What answers no more is
    Python's own ConnectionError here, which botocore doesn't repeat: our back-off does, and one silence an attempt is
    enough. (fsspec would make a TimeoutError one without words.)
    """

    async def send(self, request: Any) -> Any:
        try:
            async with asyncio.timeout(retry.REQUEST_SECONDS):
                return await super().send(request)
        except (TimeoutError, ConnectTimeoutError, ReadTimeoutError) as error:
            kind = "connection to" if isinstance(error, ConnectTimeoutError) else "answer from"
            url = urlsplit(request.url)  # its query may be signed
            raise ConnectionError(f"no {kind} {url.netloc}: {request.method} {url.path} timed out") from error
