"""Whole jobs over a bad road to a real S3 server, with the real times of retry.py: the long forms of test_wire.py."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asymvae.storage import filesystem, retry
from tests.object_store import BUCKET, ObjectStore, start_object_store
from tests.tiny import tiny_model
from tests.wire.jobs import Ran, parts, run_child, write_input, wrong
from tests.wire.proxy import Away, FaultProxy, Faults
from tests.wire.requests import SORTS

_DESCRIPTION = f"""\
Run jobs.inpaint in processes of its own, from and to a SeaweedFS on loopback, through a proxy that injects faults, and
compare every part with those of a run without faults. All scenarios run at the same time; with the real times
(an operation is given up after {retry.GIVE_UP_AFTER_SECONDS:g} s, and holds its shard for {retry.longest_hold():g} s \
at most) that takes about 8 minutes on two cores.

scenarios:
{{scenarios}}

Prints a Markdown table. exit codes: 0, all is as it should be; 1, something isn't: it is said below the table.
"""
_LARGE = (2, 6, 1100)  # shards, samples, side: 3.6 MB a result, so that a part goes up in pieces
_SMALL = (40, 2)  # for the bad road, beside the large ones: 25 requests each
_MOST_S = 900.0
_START_S = 300.0  # of a process, on a busy machine


@dataclass
class Row:
    """A line of the table; ``wrong`` is what isn't as it should be."""

    fault: str
    rate: str
    injected: str = ""
    seconds: float = 0.0
    ended: str = ""
    same: str = ""
    clean: str = ""
    wrong: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """What every scenario finds: a server, shards here and there, and the parts of a run without faults."""

    store: ObjectStore
    folder: Path
    checkpoint: Path
    root: str  # in the store
    expected: dict[str, dict[str, bytes]]  # of "in", some large shards, and "many"
    seed: int

    def run(self, endpoint: str, urls: str, out: str, *flags: str) -> Ran:
        env = os.environ | self.store.env | {"AWS_ENDPOINT_URL": endpoint}
        given = flags if any(flag.startswith("--executor") for flag in flags) else ("--executor=local", *flags)
        return run_child(self.checkpoint, env, f"--input.urls={urls}", f"--output.url={out}", *given, timeout_s=_MOST_S)

    def urls(self, name: str, where: str) -> str:
        return f"{self.folder if where == 'local' else self.root}/{name}/*.tar"

    def out(self, name: str, where: str) -> str:
        return f"{self.folder if where == 'local' else self.root}/{name}"


def _of_input(method: str, target: str) -> bool:
    return method == "GET" and target.split("?")[0].endswith(".tar")


def _of_results(method: str, target: str) -> bool:
    return method in ("PUT", "POST") and "/results/" in target


def _injected(road: FaultProxy) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(road.counts.items()))


def _judge(row: Row, out: str, urls: str, expected: Mapping[str, bytes]) -> None:
    try:
        found = wrong(out, urls, expected)
    except FileNotFoundError as error:  # the job never opened it
        found = [f"other bytes: none, {error}"]
    row.same = "no" if any(line.startswith("other bytes") for line in found) else "yes"
    row.clean = "no" if any(not line.startswith("other bytes") for line in found) else "clean"
    row.wrong += found


def _bad_road(place: Place, executor: str) -> Row:
    """1% resets of answers and of uploads, 5% 503 SlowDown"""
    row = Row(f"resets and 503 SlowDown, {executor} executor", "1% of answers, 1% of uploads; 5%")
    out = place.out(f"bad-road-{executor}", "s3")
    with FaultProxy(place.store.endpoint, seed=place.seed) as road:
        road.faults = Faults(slow_down=0.05, reset_answer=0.01, reset_upload=0.01)
        ran = place.run(road.url, place.urls("many", "s3"), out, f"--executor={executor}", "--workers.max=2")
        row.injected, row.seconds, row.ended = _injected(road), ran.seconds, f"exit {ran.code}"
        missed = [kind for kind in ("slow_down", "reset_answer", "reset_upload") if not road.counts[kind]]
        row.wrong += [f"{kind} was never injected" for kind in missed]
    if ran.code != 0:
        row.wrong.append(f"exit {ran.code}: {ran.err[-2000:]}")
    _judge(row, out, place.urls("many", "s3"), place.expected["many"])
    return row


def _away_for(place: Place, seconds: float, how: Away) -> Row:
    """OUT's store is away for a minute in the middle of the job"""
    row = Row(f"away ({how})", f"for {seconds:g} s")
    out = place.out(f"away-{how.replace(' ', '-')}", "s3")
    with FaultProxy(place.store.endpoint) as road:
        road.go_at(_of_results, how)
        ended = threading.Event()

        def come_back() -> None:
            while road.up and not ended.wait(0.1):
                pass
            time.sleep(seconds)
            road.back()

        thread = threading.Thread(target=come_back)
        thread.start()
        ran = place.run(road.url, place.urls("in", "s3"), out)
        ended.set()
        row.injected, row.seconds, row.ended = _injected(road), ran.seconds, f"exit {ran.code}"
        thread.join()
    if ran.code != 0 or ran.seconds < seconds:
        row.wrong.append(f"exit {ran.code} after {ran.seconds:.0f} s: {ran.err[-2000:]}")
    _judge(row, out, place.urls("in", "s3"), place.expected["in"])
    return row


def _away_for_good(place: Place, what: str, how: Away) -> Row:
    """a store goes away in the middle of the job and stays away; then the same command again"""
    row = Row(f"{what}'s store away ({how}), one try a shard", "for good")
    urls = place.urls("in", "s3" if what == "input" else "local")
    out = place.out(f"gone-{what}-{how.replace(' ', '-')}", "local" if what == "input" else "s3")
    with FaultProxy(place.store.endpoint) as road:
        road.go_at(_of_input if what == "input" else _of_results, how)
        ran = place.run(road.url, urls, out, "--ray.attempts=0")
        # Not from the process's start: a busy machine takes minutes to import torch.
        row.injected, row.seconds = _injected(road), time.monotonic() - road.gone_at
        road.back()
        again = place.run(road.url, urls, out, "--ray.attempts=0")
    row.ended = f"exit {ran.code}; rerun: exit {again.code}"
    said = [line for line in ran.err.splitlines() if line.startswith("failed: shard 000")]
    if ran.code != 1 or "Traceback" in ran.err or not said:
        row.wrong.append(f"exit {ran.code}: {ran.err[-2000:]}")
    # The shards one after another, or one and the record of its failure.
    if row.seconds > 2 * retry.longest_hold() + 60:
        row.wrong.append(f"it took {row.seconds:.0f} s")
    if again.code != 0:
        row.wrong.append(f"rerun: exit {again.code}: {again.err[-2000:]}")
    _judge(row, out, urls, place.expected["in"])
    return row


def _away_at_once(place: Place, how: Away) -> Row:
    """the input's store is away from the start"""
    row = Row(f"input's store away ({how}) from the start", "for good", same="-", clean="-")
    with FaultProxy(place.store.endpoint) as road:
        road.go(how)
        ran = place.run(road.url, place.urls("in", "s3"), place.out("never", "local"))
        row.injected, row.seconds, row.ended = _injected(road), ran.seconds, f"exit {ran.code}"
    lines = [line for line in ran.err.splitlines() if not line.startswith("storage: ")]
    if ran.code != 2 or len(lines) != 1 or ran.seconds > retry.longest_hold() + _START_S:
        row.wrong.append(f"exit {ran.code} after {ran.seconds:.0f} s: {ran.err[-2000:]}")
    return row


def _requests(place: Place, how: Away) -> Row:
    """reads, listings, uploads in one piece and in several, at the same time, each given up in the stated time"""
    row = Row(f"black hole ({how})", "single requests", same="-", clean="-")
    url = place.out(f"requests-{how.replace(' ', '-')}", "s3")
    filesystem.put_if_absent(f"{url}/there", b"there")
    with FaultProxy(place.store.endpoint) as road:
        road.go(how)
        env = os.environ | place.store.env | {"AWS_ENDPOINT_URL": road.url}
        command = [sys.executable, "-m", "tests.wire.requests", url, str(place.folder / "big"), *SORTS[how]]
        ended = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=_MOST_S)
        row.injected = _injected(road)
    took = json.loads(ended.stdout)
    row.seconds = max(seconds for seconds, _ in took.values())
    row.ended = ", ".join(f"{name} {seconds:.0f} s" for name, (seconds, _) in took.items())
    row.wrong += [
        f"{name}: {seconds:.0f} s, {said!r}"
        for name, (seconds, said) in took.items()
        if not said or seconds > retry.longest_hold() + 10
    ]
    return row


def _named(work: Callable[..., Row], *given: Any) -> Callable[[Place], Row]:
    return lambda place: work(place, *given)


SCENARIOS: dict[str, tuple[str, list[Callable[[Place], Row]]]] = {
    "bad-road": (
        "1% resets of answers and of uploads, 5% 503 SlowDown; in one process, and on Ray",
        [_named(_bad_road, "local"), _named(_bad_road, "ray")],
    ),
    "away": (
        "OUT's store is away for a minute: it refuses, or accepts and never answers",
        [_named(_away_for, 60.0, "refused"), _named(_away_for, 60.0, "head")],
    ),
    "gone": (
        "the input's store, or OUT's, stays away: the job ends and says why, and the same command completes it",
        [
            _named(_away_for_good, "input", "refused"),
            _named(_away_for_good, "input", "answer's body"),
            _named(_away_for_good, "output", "refused"),
            _named(_away_for_good, "output", "upload's body"),
        ],
    ),
    "start": (
        "the input's store is away from the start",
        [_named(_away_at_once, "refused"), _named(_away_at_once, "connect")],
    ),
    "requests": ("reads, listings and uploads into black holes", [_named(_requests, how) for how in SORTS]),
}


@contextlib.contextmanager
def _place(seed: int, *, many: bool) -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="asymvae-wire-") as made:
        folder = Path(made)
        store = start_object_store(folder / "store")
        try:
            os.environ |= store.env
            tiny_model().save_pretrained(str(folder / "model"))
            (folder / "big").write_bytes(os.urandom(3 * filesystem.UPLOAD_CHUNK_BYTES))
            root = f"s3://{BUCKET}/{uuid.uuid4().hex}"
            large = write_input(folder / "in", *_LARGE)
            made = {"in": large}
            if many:
                made["many"] = write_input(folder / "many", *_SMALL)
                for path in large:
                    made["many"].append(folder / "many" / f"large-{path.name}")
                    made["many"][-1].symlink_to(path)
            place = Place(store, folder, folder / "model", root, {}, seed)
            for name, paths in made.items():
                for path in paths:
                    filesystem.put_if_absent(f"{root}/{name}/{path.name}", path)
                ran = place.run(store.endpoint, place.urls(name, "local"), str(folder / f"out-{name}"))
                if ran.code != 0:
                    raise RuntimeError(f"the run without faults failed:\n{ran.err}")
                place.expected[name] = parts(str(folder / f"out-{name}"))
            yield place
        finally:
            store.stop()


def main(arguments: Sequence[str]) -> int:
    listed = "\n".join(f"  {name:10}{text}" for name, (text, _) in SCENARIOS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak.wire",
        description=_DESCRIPTION.format(scenarios=listed),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scenario", nargs="*", metavar="SCENARIO", choices=[[], *SCENARIOS], help="by default all")
    parser.add_argument("--seed", type=int, default=0, help="of the faults (default: 0)")
    given = parser.parse_args(arguments)
    work = [each for name in given.scenario or SCENARIOS for each in SCENARIOS[name][1]]
    many = "bad-road" in (given.scenario or SCENARIOS)
    with _place(given.seed, many=many) as place, ThreadPoolExecutor(len(work)) as pool:
        rows = list(pool.map(lambda each: each(place), work))
    print("| fault | rate | injected (of requests) | seconds | ended | same bytes | audit |")
    print("|---|---|---|---:|---|---|---|")
    for row in rows:
        print(
            f"| {row.fault} | {row.rate} | {row.injected} | {row.seconds:.0f} | {row.ended} | {row.same} "
            f"| {row.clean} |"
        )
    for row in rows:
        for line in row.wrong:
            print(f"\nwrong: {row.fault}, {row.rate}: {line}")
    return 1 if any(row.wrong for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
