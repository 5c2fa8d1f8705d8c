"""python -m tests.soak.million_listed: planning a job of a million shards in an S3 bucket, of which all but --left are
committed.

No store here can be filled with so many objects in useful time, so a server answers list requests for objects that
don't exist, a thousand a page as S3 does, and nothing else: the client, the pages and the planning are the real ones.
What a real store's distance adds is a page's time over the network, two thousand times: --delay. What the server takes
of the machine, 1 ms a page, is said apart: it is in the seconds, not in the planning's CPU seconds.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from asymvae.storage.ledger import commit_name
from asymvae.storage.shards import Shard
from tests.soak.million import Meter

BUCKET = "listed"
CHECKPOINT = Path(__file__).parents[2] / "configs" / "demo-checkpoint"
_PAGE = 1000
_SIZE = 10**9
_ENTRY = (
    b"<Contents><Key>%s</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;%032d&quot;</ETag>"
    b"<Size>%d</Size><StorageClass>STANDARD</StorageClass></Contents>"
)


def _shard(number: int) -> Shard:
    name = f"{number:07d}"
    return Shard(f"s3://{BUCKET}/in/{name}.tar", name, "webdataset", _SIZE, f"{number:032d}")


class _Bucket(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    count = 0
    commits: Sequence[bytes] = ()
    delay = 0.0

    def do_GET(self) -> None:
        asked = parse_qs(urlsplit(self.path).query)
        if "list-type" not in asked:
            self._answer(404, b"<Error><Code>NoSuchKey</Code><Message>none</Message></Error>")
            return
        time.sleep(self.delay)
        first = int(asked.get("continuation-token", ["0"])[0])
        numbers = range(first, first)
        name: Callable[[int], bytes] = b"in/%07d.tar".__mod__
        if (folder := asked.get("prefix", [""])[0]) == "in/":
            numbers = range(first, self.count)
        elif folder == "out/_commits/":
            numbers, name = range(first, len(self.commits)), self.commits.__getitem__
        entries = b"".join([_ENTRY % (name(number), number, _SIZE) for number in numbers[:_PAGE]])
        more = len(numbers) > _PAGE
        token = f"<NextContinuationToken>{first + _PAGE}</NextContinuationToken>" if more else ""
        head = f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}".encode()
        self._answer(200, head + entries + b"</ListBucketResult>")

    def do_HEAD(self) -> None:
        self._answer(404, b"")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def _serve(count: int, left: int, fingerprint: str, delay: float, ports: Any) -> None:
    _Bucket.count, _Bucket.delay = count, delay
    if fingerprint:
        names = (commit_name(fingerprint, _shard(number)) for number in range(count - left))
        _Bucket.commits = [f"out/_commits/{name}.json".encode() for name in names]
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Bucket)
    ports.put(server.server_address[1])
    server.serve_forever()


def _plan(count: int, left: int, fingerprint: str, meter: Meter | None, delay: float = 0) -> Iterator[Any]:
    """The plan of a job over ``count`` shards, once; ``delay`` in s, of each page."""
    from asymvae.config import InpaintJob
    from asymvae.pipeline.plan import make_plan

    ports: Any = multiprocessing.Queue()
    server = multiprocessing.get_context("fork").Process(target=_serve, args=(count, left, fingerprint, delay, ports))
    server.start()
    os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{ports.get()}"
    settings: dict[str, Any] = {
        "input": {"urls": f"s3://{BUCKET}/in/*.tar"},
        "output": {"url": f"s3://{BUCKET}/out"},
        "model": {"path": str(CHECKPOINT)},
        "workers": {"gpus": 0},
    }
    try:
        job = InpaintJob(**settings)
        if meter is None:
            yield make_plan(job)
            return
        before = _cpu_seconds(server.pid)
        made = meter.measure(f"plan, {count:,} shards", lambda: make_plan(job))
        print(f"The server took {_cpu_seconds(server.pid) - before:.1f} s of CPU.")
        yield made
    finally:
        server.terminate()


def _cpu_seconds(pid: int | None) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.million_listed", description=__doc__)
    parser.add_argument("--shards", type=int, default=1_000_000, help="in the input (1,000,000)")
    parser.add_argument("--left", type=int, default=1000, help="of them without a commit (1,000)")
    parser.add_argument("--delay", type=float, default=0, help="ms that each page comes later, for the distance (0)")
    flags = parser.parse_args()
    os.environ |= {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}
    (small,) = _plan(1, 0, "", None)  # for the fingerprint that the commits' names hang on
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    print(f"| {'step':34} | {'s':8} | {'CPU s':8} | MiB before | MiB peak | requests |\n|---|---|---|---|---|---|")
    (plan,) = _plan(flags.shards, flags.left, small.recipe.fingerprint, Meter(), flags.delay / 1000)
    assert (len(plan.shards), len(plan.left)) == (flags.shards, flags.left), (len(plan.shards), len(plan.left))
    assert re.fullmatch(r"\d{7}", plan.left[0].name)


if __name__ == "__main__":
    main()
