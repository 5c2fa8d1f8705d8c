"""python -m tests.soak.million: what planning, resuming and auditing a job of many shards takes, step by step."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tests.object_store import BUCKET, ObjectStore, start_object_store

T = TypeVar("T")

HELP = """\
Make an input of many shards and an output of which all but --left are committed, local or on SeaweedFS, and measure
what the driver of a job does with them before and after its workers run:

  list       the input's listing to shards: names made safe, checked, sorted
  plan       python -m jobs.inpaint --dry-run: settings, listing, ids, the listing of commits, what is left
  audit      every commit record is read, every object that it names is looked for

Each step runs in a fresh process. MiB: the most that was resident in it, imports and all; before: imports alone.
Nothing is computed: shards are empty files, parts are links to one. What it makes is removed at the end.
"""


@dataclass
class Meter:
    """Seconds, peak of resident memory and requests of each step."""

    requests: Counter[str] = field(default_factory=Counter)

    def measure(self, name: str, work: Callable[[], T]) -> T:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
        before = _memory("VmRSS")
        self.requests.clear()
        started, cpu = time.perf_counter(), time.process_time()
        made = work()
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        asked = ", ".join(f"{count} {name}" for name, count in sorted(self.requests.items()))
        print(
            f"| {name:34} | {seconds:8.1f} | {cpu:8.1f} | {before:10.0f} | {_memory('VmHWM'):8.0f} | {asked} |",
            flush=True,
        )
        return made


def _memory(name: str) -> float:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":")]
    return int(line.split()[1]) / 1024


def count_requests(requests: Counter[str]) -> None:
    """Of S3, by operation, in this process."""
    from aiobotocore.client import AioBaseClient

    call = AioBaseClient._make_api_call

    async def counted(self: Any, operation: str, arguments: Any) -> Any:
        requests[operation] += 1
        return await call(self, operation, arguments)

    AioBaseClient._make_api_call = counted


# --- what there is to measure


def shard_url(root: str, number: int) -> str:
    return f"{root}/in/{number // 1000:04d}/shard-{number:07d}.tar"


def make_input(root: Path, shards: int) -> None:
    """Empty tars, 1,000 a folder and all in one folder: ``in/0000/shard-0000000.tar``, ``flat/0000000.tar``."""
    print(f"making {shards:,} shards", file=sys.stderr)
    (root / "flat").mkdir(parents=True)
    for start in range(0, shards, 1000):
        (root / f"in/{start // 1000:04d}").mkdir(parents=True)
        for number in range(start, min(shards, start + 1000)):
            for name in (shard_url(str(root), number), f"{root}/flat/{number:07d}.tar"):
                os.close(os.open(name, os.O_CREAT | os.O_WRONLY))


def make_commits(out: Path, settings: Any, left: int) -> None:
    """A commit for every shard but the last ``left``, each with a part of results and one of metrics: below ``out``,
    a local folder, as they lie below the job's output."""
    from asymvae.pipeline.plan import make_plan, open_output
    from asymvae.storage.ledger import commit_id

    plan = make_plan(settings)
    open_output(plan)
    for kind in ("_commits", "results", "metrics"):
        (out / kind).mkdir(parents=True, exist_ok=True)
    body = {
        "format_version": 1, "fingerprint": plan.recipe.fingerprint, "errors_by_code": {}, "degraded": False,
        "counts": {"samples": 1000, "planned": 1000, "results": 1000, "errors": 0, "shard_errors": 0},
        "complete": True, "run": {"seconds": 1.0, "stages": {"device": 1.0}},
    }  # fmt: skip
    part = {"rows": 1000, "size": 7, "sha256": "0" * 64}
    print(f"making {len(plan.shards) - left:,} commits", file=sys.stderr)
    link_from = ""
    for number, shard in enumerate(plan.shards):
        if number >= len(plan.shards) - left:
            break
        found = commit_id(plan.recipe.fingerprint, shard)
        parts = []
        for kind in ("results", "metrics"):
            name = f"{kind}/{shard.name}.parquet"
            parts.append({"kind": kind, "object": name, **part})
            if number % 20_000 == 0 and kind == "results":  # ext4 takes 65,000 links to a file
                link_from = str(out / name)
                Path(link_from).write_bytes(b"nothing")
            else:
                os.link(link_from, out / name)
        record = body | {
            "shard": shard.name, "id": found, "parts": parts,
            "input": {"url": shard.url, "size": shard.size, "version": shard.version},
        }  # fmt: skip
        (out / "_commits" / f"{shard.name}.{found}.json").write_text(json.dumps(record))


# --- the steps, each in a process of its own


def step(name: str, root: str, out: str, checkpoint: str, shards: int, left: int) -> None:
    meter = Meter()
    if root.startswith("s3://"):
        count_requests(meter.requests)
    from asymvae.pipeline.plan import make_plan
    from asymvae.storage.audit import audit
    from asymvae.storage.ledger import Ledger, commit_name
    from asymvae.storage.shards import list_shards
    from tests.tiny import job

    last = shards - 1
    patterns = {
        "flat glob": f"{root}/flat/*.tar",
        "flat braces": f"{root}/flat/{{0000000..{last:07d}}}.tar",
        "glob over folders": f"{root}/in/*/*.tar",
        "braces over folders": f"{root}/in/{{0000..{last // 1000:04d}}}/shard-*.tar",
    }

    def settings() -> Any:
        return job(patterns["flat glob"], out, checkpoint, input={"root": root})

    if name == "make commits":
        make_commits(Path(checkpoint).parent / "commits" / "out" if "://" in out else Path(out), settings(), left)
    elif name.startswith("list "):
        pattern = patterns[name.removeprefix("list ")]
        found = meter.measure(name, lambda: list_shards(pattern, root=root, format="auto"))
        assert len(found) == shards, len(found)
    elif name == "ids":
        listed = list_shards(patterns["flat glob"], root=root, format="auto")
        meter.measure(name, lambda: sum(len(commit_name("f" * 32, shard)) for shard in listed))
    elif name == "commits":
        assert len(meter.measure(name, lambda: Ledger(out).committed())) == shards - left
    elif name == "plan":
        plan = meter.measure(name, lambda: make_plan(settings()))
        assert (len(plan.shards), len(plan.left)) == (shards, left), (len(plan.shards), len(plan.left))
    elif name == "audit":
        plan = make_plan(settings())
        report = meter.measure(name, lambda: audit(out, deep=False, shards=plan.shards))
        assert (report.shards, len(report.missing), report.orphaned) == (shards - left, left, []), report.missing[:3]


STEPS = (
    *(f"list {pattern}" for pattern in ("flat glob", "flat braces", "glob over folders", "braces over folders")),
    *("ids", "commits", "plan", "audit"),
)


@contextlib.contextmanager
def local_place(folder: Path) -> Iterator[tuple[str, dict[str, str], Callable[[], None]]]:
    yield str(folder), {}, lambda: None


@contextlib.contextmanager
def s3_place(folder: Path) -> Iterator[tuple[str, dict[str, str], Callable[[], None]]]:
    """A bucket on SeaweedFS with what is below the folder."""
    store = start_object_store(folder.parent / "weed")
    try:
        copy(store, folder)
        yield f"s3://{BUCKET}", store.env, lambda: copy(store, folder.parent / "commits")
    finally:
        store.stop()


def copy(store: ObjectStore, folder: Path) -> None:
    """By the server's own tool: it takes thousands a second, where a client in Python takes hundreds."""
    command = Path(f"/proc/{store.process.pid}/cmdline").read_text().split("\0")
    ports = dict(part.removeprefix("-").split("=", 1) for part in command if ".port" in part)
    weed = Path(sys.executable).with_name("weed")
    into = f"http://127.0.0.1:{ports['filer.port']}.{ports['filer.port.grpc']}/buckets/{BUCKET}/"
    started = time.perf_counter()
    what = [str(weed), "filer.copy", "-c=32", *(str(path) for path in sorted(folder.iterdir())), into]
    subprocess.run(what, check=True, stdout=subprocess.DEVNULL)
    print(f"copied in {time.perf_counter() - started:.0f} s", file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak.million", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--where", choices=("local", "s3"), default="local")
    parser.add_argument("--shards", type=int, default=1_000_000, help="in the input (1,000,000: 5 million files)")
    parser.add_argument("--left", type=int, default=1000, help="of them without a commit (1,000)")
    parser.add_argument("--steps", default=",".join(STEPS), help="with commas between; by default all")
    parser.add_argument("--folder", type=Path, help="where to make it; by default a temporary folder")
    parser.add_argument("--kept", action="store_true", help="take what an earlier run left in --folder, and leave it")
    parser.add_argument("--step", nargs=6, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        name, *rest = given.step
        step(name, *rest[:3], int(rest[3]), int(rest[4]))
        return
    folder: Path = given.folder or Path(tempfile.mkdtemp(prefix="asymvae-million-"))
    try:
        _run(folder, given)
    finally:
        if not given.kept:
            shutil.rmtree(folder)


def _run(folder: Path, given: argparse.Namespace) -> None:
    from tests.tiny import tiny_model

    data, checkpoint = folder / "data", folder / "checkpoint"
    if not checkpoint.exists():
        tiny_model().save_pretrained(checkpoint)
        make_input(data, given.shards)
    place = local_place if given.where == "local" else s3_place
    with place(data) as (root, environment, put_commits):

        def run(name: str) -> None:
            arguments = [name, root, f"{root}/out", str(checkpoint), str(given.shards), str(given.left)]
            command = [sys.executable, "-m", "tests.soak.million", "--step", *arguments]
            subprocess.run(command, check=True, env=os.environ | environment)

        if not (data / "out").exists():
            run("make commits")
            put_commits()
        print("| step                               |        s |    CPU s | MiB before | MiB peak | requests |")
        print(
            "|------------------------------------|----------|----------|------------|----------|----------|",
            flush=True,
        )
        for name in given.steps.split(","):
            run(name)


if __name__ == "__main__":
    main()
