"""``python -m tests.jobs.stalled_upload MARKER FLAGS``: ``jobs.inpaint`` that stalls while a part goes up in pieces.

The first piece is up, the second isn't; MARKER is made then, and nothing follows.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import s3fs

from asymvae.storage import filesystem
from jobs.inpaint import main

PIECE = 5 * 2**20  # the least that S3 takes


def stall(marker: Path) -> None:
    filesystem.UPLOAD_CHUNK_BYTES = PIECE  # type: ignore[misc]
    call, first = s3fs.S3FileSystem._call_s3, asyncio.Event()

    async def stalling(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        if method == "upload_part" and kwargs["PartNumber"] > 1:
            await first.wait()
            marker.touch()
            await asyncio.Event().wait()
        answer = await call(self, method, *args, **kwargs)
        if method == "upload_part":
            first.set()
        return answer

    s3fs.S3FileSystem._call_s3 = stalling


if __name__ == "__main__":
    stall(Path(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
