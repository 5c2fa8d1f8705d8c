"""One request of each sort, into a store that never answers: ``python -m tests.wire.requests URL FILE SORT ...``.

Prints a JSON object: for each sort the seconds until it gave up, and what it then said.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from asymvae.storage import filesystem
from tests.wire.proxy import Away

# What hangs in which black hole: an answer to an upload, for one, has no body to stop in.
SORTS: dict[Away, tuple[str, ...]] = {
    "connect": ("read", "stream", "list", "put", "multipart"),
    "head": ("read", "stream", "list", "put", "multipart"),
    "answer's body": ("read", "stream", "list", "multipart"),
    "upload's body": ("put", "multipart"),
}


def work(url: str, big: Path) -> dict[str, Callable[[], object]]:
    """By sort. Below ``url`` there is a file "there"; ``big`` is worth several pieces."""
    return {
        "read": lambda: filesystem.read_bytes(f"{url}/there"),
        "stream": lambda: filesystem.hash_stream(f"{url}/there"),
        "list": lambda: filesystem.list_files(url),
        "put": lambda: filesystem.put_if_absent(f"{url}/small", big.read_bytes()[: 3 * 2**22]),
        "multipart": lambda: filesystem.put_if_absent(f"{url}/big", big),
    }


def try_all(url: str, big: Path, sorts: Iterable[str]) -> dict[str, tuple[float, str]]:
    """Seconds and what was said ("" if nothing failed), of all sorts at the same time."""

    def until_it_fails(done: Callable[[], object]) -> tuple[float, str]:
        started = time.monotonic()
        try:
            done()
        except (ConnectionError, TimeoutError) as error:
            return time.monotonic() - started, f"{type(error).__name__}: {error}"
        return time.monotonic() - started, ""

    names = list(sorts)
    with ThreadPoolExecutor(len(names)) as pool:
        return dict(zip(names, pool.map(until_it_fails, map(work(url, big).get, names)), strict=True))


if __name__ == "__main__":
    print(json.dumps(try_all(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])))
