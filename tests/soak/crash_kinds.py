"""The kinds of fault of the soak of crashes: each disturbs one job at a random moment, and says whether it did."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from ray.cluster_utils import Cluster

from tests.object_store import BUCKET
from tests.soak.crash_job import SHARDS, Driver, Job, Place, gone, spools, temporaries, workers_of

_ENDS_WITHIN_S = 240.0  # a job of seconds; a store that is away is waited for, and a node's death takes its time
KILLERS = "tests.pipeline.killers"


@dataclass
class Round:
    """One job, disturbed once. ``hit`` proves that the fault was one; ``problems`` are what must not be."""

    place: Place
    cluster: Cluster
    folder: Path
    rng: random.Random
    job: Job = field(init=False)
    same_bytes: bool = True
    hit: bool = False
    story: str = ""  # what was done, and when
    took: float = 0.0  # seconds, of the disturbed driver
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.job = Job(self.place, self.folder)

    def moment(self, executor: str = "cluster") -> float:
        """Seconds after the start, anywhere in the life of an undisturbed job on that executor."""
        return self.rng.uniform(0.0, self.place.seconds[executor])

    def end(self, driver: Driver, *allowed: int) -> int:
        code = driver.wait(_ENDS_WITHIN_S)
        self.took = self.took or driver.ended - driver.started
        if code not in allowed:
            self.problems.append(
                f"exit code {code}, not {' or '.join(map(str, allowed))}; it said: {driver.said[-2000:]}"
            )
        if "Traceback (most recent call last)" in driver.said and 1 not in allowed:
            self.problems.append(f"a traceback in {driver.log}")
        return code


def actor_killed(round_: Round) -> None:
    """SIGKILL of an actor that holds the model; the job itself must end well."""
    place = round_.place
    at = round_.rng.uniform(place.actors_after, place.seconds["cluster"])
    driver = round_.job.start("driver.log")
    driver.sleep_until(at)
    while driver.alive and not workers_of(place.raylets()):
        time.sleep(0.05)
    found = workers_of(place.raylets())
    if driver.alive and found:
        victim = round_.rng.choice(found)
        name = " ".join(victim.cmdline()).strip()
        round_.hit = killed(victim)
        round_.story = f"{name} after {time.monotonic() - driver.started:.1f} s"
    round_.end(driver, 0)


def driver_killed(round_: Round) -> None:
    """SIGKILL of the driver; the rerun may come while its actors still run."""
    round_.job.executor = round_.rng.choice(["cluster", "cluster", "ray", "local"])
    driver = round_.job.start("driver.log")
    at = round_.moment(round_.job.executor)
    driver.sleep_until(at)
    driver.send(signal.SIGKILL)
    round_.hit = round_.end(driver, -signal.SIGKILL, 0) == -signal.SIGKILL
    round_.story = f"driver of executor {round_.job.executor} after {at:.1f} s"
    if round_.rng.random() < 0.5:
        time.sleep(round_.rng.uniform(0, 10))


def raylet_killed(round_: Round) -> None:
    """SIGKILL of the raylet of the second node: its workers go with it; the node comes back for the rerun."""
    node = next(iter(round_.cluster.worker_nodes))
    raylet = next(iter(node.all_processes["raylet"])).process
    # Half of them once there are workers: before, the node has nothing to lose.
    at = round_.rng.choice(
        [round_.moment(), round_.rng.uniform(round_.place.actors_after, round_.place.seconds["cluster"])]
    )
    driver = round_.job.start("driver.log", "--workers.max=2", "--workers.min=2")
    driver.sleep_until(at)
    alive, workers = driver.alive, len(workers_of([raylet.pid]))
    raylet.kill()
    raylet.wait()
    round_.hit = alive
    round_.story = f"raylet with {workers} workers of ours after {at:.1f} s"
    try:
        round_.end(driver, 0)
    finally:
        round_.cluster.remove_node(node, allow_graceful=False)
        round_.cluster.add_node(num_cpus=1)


def store_killed(round_: Round) -> None:
    """SIGKILL of the object store, which comes back on the same ports with the same data."""
    place, rng = round_.place, round_.rng
    round_.job = Job(
        place,
        round_.folder,
        executor=rng.choice(["cluster", "local"]),
        urls=place.s3_input,
        out=f"s3://{BUCKET}/out/{round_.folder.name}",
    )
    at, away = round_.moment(round_.job.executor), rng.uniform(1.0, 12.0)
    driver = round_.job.start("driver.log")
    driver.sleep_until(at)
    round_.hit = driver.alive
    place.store.stop()
    time.sleep(away)
    restart(place)
    round_.story = f"executor {round_.job.executor}, after {at:.1f} s, away for {away:.1f} s"
    round_.end(driver, 0)


def signalled(round_: Round) -> None:
    """SIGTERM or SIGINT of the driver: nothing half written is left, nothing runs on, and the exit code says so."""
    rng = round_.rng
    number = rng.choice([signal.SIGTERM, signal.SIGTERM, signal.SIGINT])
    round_.job.executor = rng.choice(["cluster", "ray", "local"])
    again = rng.random() < 0.25
    at = round_.moment(round_.job.executor)
    driver = round_.job.start("driver.log")
    driver.sleep_until(at)
    early = not (round_.folder / "out").exists()
    driver.send(number)
    sent = time.monotonic()
    if again:
        driver.sleep_until(at + rng.uniform(0.05, 1.0))
        driver.send(number)
    # Before the job has read its settings there is no handler, and the signal itself ends it: the same to a shell.
    code = round_.end(driver, 128 + number, 0, *([-number] if early else []))
    took = driver.ended - sent
    round_.hit = code != 0
    round_.story = f"{'two ' if again else ''}{number.name} to executor {round_.job.executor} after {at:.1f} s"
    round_.story += f": {code} in {took:.1f} s"
    if took > 30:
        round_.problems.append(f"it took {took:.1f} s to end")
    if code == 128 + number and not again:
        if f"interrupted by {number.name}" not in driver.said or "the same command goes on" not in driver.said:
            round_.problems.append(f"it doesn't say what to do: {driver.said[-500:]}")
        if not early and (left := temporaries(round_.job.out)):
            round_.problems.append(f"temporary files after a clean end: {left}")
        if left := gone(lambda: spools(round_.folder / "spool"), 1.0):
            round_.problems.append(f"spool folders after a clean end: {left}")
        if left := gone(lambda: workers_of(round_.place.raylets()), 10.0):
            round_.problems.append(f"workers after a clean end: {left}")


def two_drivers(round_: Round) -> None:
    """Two drivers on one OUT, with the same settings or with threads that may make other bytes."""
    rng = round_.rng
    round_.same_bytes = rng.random() < 0.5
    # The cluster's nodes have one CPU each, as a worker of one thread wants.
    executors = [rng.choice(["cluster", "local"]), rng.choice(["cluster", "local"]) if round_.same_bytes else "local"]
    round_.job.executor = executors[0]
    other = Job(round_.place, round_.folder, executor=executors[1])
    threads = [] if round_.same_bytes else ["--workers.cpu_threads=2"]
    apart = rng.uniform(0.0, 0.5 * round_.place.seconds[executors[0]])
    first = round_.job.start("driver.log")
    first.sleep_until(apart)
    second = other.start("second.log", *threads)
    round_.end(first, 0)
    round_.end(second, 0)
    worked = [
        int(found[1]) if (found := re.search(r"^(\d+) samples in", each.said, re.M)) else 0 for each in (first, second)
    ]
    round_.hit = second.started < first.ended and min(worked) > 0
    round_.story = f"executors {executors}, {'the same' if round_.same_bytes else 'other'} threads, samples {worked}"


def disk_full(round_: Round) -> None:
    """The disk of OUT, or of the spool, is filled by somebody else; then it is enlarged."""
    rng = round_.rng
    executor, which = rng.choice(["cluster", "local"]), rng.choice(["out", "spool"])
    small = round_.folder / "small"
    small.mkdir(parents=True)
    mount(small, "160m")
    try:
        place = {"out": {"out": str(small / "out")}, "spool": {"spool": small}}[which]
        round_.job = Job(round_.place, round_.folder, executor=executor, **place)  # type: ignore[arg-type]
        at = round_.moment(executor)
        driver = round_.job.start("driver.log")
        driver.sleep_until(at)
        fill(small / "filler")
        code = round_.end(driver, 1, 0)
        round_.hit = code != 0
        round_.story = f"{which}, executor {executor}, after {at:.1f} s: {code}"
        if code:
            named = f"output.url {small}" if which == "out" else f"the spool folder {small}"
            remedy = "free some"
            if named not in driver.said or remedy not in driver.said:
                round_.problems.append(f"it names no folder and remedy: {driver.said[-1500:]}")
            if "Traceback" in driver.said:
                round_.problems.append(f"a traceback: {driver.said[-1500:]}")
            if left := temporaries(round_.job.out):
                round_.problems.append(f"half written: {left}")
        subprocess.run(["mount", "-o", "remount,size=400m", str(small)], check=True)
    except BaseException:
        unmount(round_)
        raise


def worker_hangs(round_: Round) -> None:
    """A worker that stops making progress: the watchdog ends it, and the shard is run again."""
    rng = round_.rng
    marker = round_.folder / "hung"
    key = f"s{rng.randrange(SHARDS)}-{rng.choice([0, 3, 5, 8, 11]):04d}"
    round_.job.flags = (
        f"--inpaint.method={KILLERS}:HungOnce",
        f'--inpaint.options={{"marker": "{marker}", "key": "{key}"}}',
        "--workers.stall_timeout_s=8",
    )
    round_.end(round_.job.start("driver.log"), 0)
    round_.hit = marker.exists()
    round_.story = f"at {key}"


def killed(process: psutil.Process) -> bool:
    """True: it was there, and SIGKILL ended it."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.01)
    return False


def restart(place: Place) -> None:
    """The store's own command again: the same ports, the same data."""
    log, command = place.folder / "store" / "log", place.store.process.args
    with log.open("ab") as target:
        place.store.process = subprocess.Popen(
            command, cwd=log.parent, stdout=target, stderr=subprocess.STDOUT, start_new_session=True
        )


def mount(folder: Path, size: str) -> None:
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if done.returncode != 0:
        raise SystemExit(
            f"a small disk can't be mounted at {folder} ({done.stderr.decode().strip()}): "
            "the kind disk_full needs root; leave it out with --without disk_full"
        )


def unmount(round_: Round) -> None:
    """Fine at any time."""
    small = round_.folder / "small"
    if small.is_dir() and os.path.ismount(small):
        subprocess.run(["umount", "--lazy", str(small)], check=False)


def fill(path: Path) -> None:
    """All that is free on the disk."""
    with path.open("wb", buffering=0) as target:
        block = bytes(2**16)
        while block:
            try:
                target.write(block)
            except OSError:
                block = block[: len(block) // 16]


KINDS: dict[str, Callable[[Round], None]] = {
    each.__name__: each
    for each in (
        actor_killed,
        driver_killed,
        raylet_killed,
        store_killed,
        signalled,
        two_drivers,
        disk_full,
        worker_hangs,
    )
}


def order(kinds: list[str], rng: random.Random) -> Iterator[str]:
    """All kinds, shuffled, again and again."""
    while True:
        yield from rng.sample(kinds, len(kinds))
