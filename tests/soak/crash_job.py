"""The job that the soak of crashes disturbs: its input, its processes, and what an OUT must be in the end."""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import fsspec
import psutil

import jobs.audit
import jobs.inpaint
from asymvae.storage.filesystem import TEMPORARY, list_files
from asymvae.storage.ledger import Ledger
from tests.corpus.law import law_broken
from tests.forks import forks_that_have_imported
from tests.object_store import BUCKET, ObjectStore
from tests.tiny import tiny_model, write_shards
from tests.wire.jobs import parts, unfinished_uploads

SHARDS = 4
_FORKS = forks_that_have_imported(__name__, "asymvae.pipeline.kinds.inpaint")
_MARK = "SOAK_ROUND"  # in the environment of what a driver starts
_GONE_WITHIN_S = 30.0


@dataclass
class Place:
    """Where rounds happen: the input, the checkpoint, the parts that every run must give, and how long one takes."""

    folder: Path
    store: ObjectStore
    address: str  # of the cluster that is kept alive
    raylets: Callable[[], Sequence[int]]  # process ids of its nodes
    parts: dict[str, bytes] = field(default_factory=dict)
    samples: int = 12  # of a shard
    seconds: dict[str, float] = field(default_factory=dict)  # of an undisturbed run, by executor
    actors_after: float = 0.0  # seconds until an undisturbed run on the cluster has its first actor

    @property
    def local_input(self) -> str:
        return str(self.folder / "in" / "*.tar")

    @property
    def s3_input(self) -> str:
        return f"s3://{BUCKET}/in/*.tar"

    def make_inputs(self) -> None:
        tiny_model().save_pretrained(str(self.folder / "model"))
        write_shards(self.folder / "in", SHARDS, self.samples)
        s3 = fsspec.filesystem("s3")
        for tar in sorted((self.folder / "in").glob("*.tar")):
            s3.put_file(str(tar), f"{BUCKET}/in/{tar.name}")


@dataclass
class Job:
    """One command line, in one round. ``executor``: ``cluster``, ``ray`` (one of its own) or ``local`` (no Ray)."""

    place: Place
    folder: Path  # of the round: logs, spool, and OUT unless it is elsewhere
    executor: str = "cluster"
    urls: str = ""
    out: str = ""
    spool: Path | None = None
    flags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.urls = self.urls or self.place.local_input
        self.out = self.out or str(self.folder / "out")
        self.spool = self.spool or self.folder / "spool"

    def arguments(self, *more: str) -> list[str]:
        return [
            *(f"--input.urls={self.urls}", f"--output.url={self.out}", f"--model.path={self.place.folder / 'model'}"),
            *("--workers.gpus=0", "--workers.batch_size=4", "--max_error_fraction=0.5"),
            *(f"--workers.spool={self.spool}", f"--executor={'local' if self.executor == 'local' else 'ray'}"),
            *self.flags,
            *more,
        ]

    def start(self, log: str, *more: str) -> Driver:
        address = self.place.address if self.executor == "cluster" else "local"
        environment = {"RAY_ADDRESS": address, _MARK: str(self.folder)}
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / log
        path.touch()
        process = _FORKS.Process(target=_drive, args=(self.arguments(*more), environment, str(path)))
        process.start()
        return Driver(process, path)


def _drive(arguments: list[str], environment: dict[str, str], log: str) -> None:
    """``python -m jobs.inpaint``, in a process that has imported already: on few cores that is most of a job."""
    os.setsid()
    handle = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(handle, stream)
    os.environ.update(environment)
    os.chdir(Path(__file__).parents[2])
    sys.argv = [jobs.inpaint.__file__, *arguments]
    try:
        sys.exit(jobs.inpaint.main(arguments))
    finally:
        atexit._run_exitfuncs()  # as Python does at a process's end, and multiprocessing doesn't


@dataclass
class Driver:
    """A job's process, and what it says."""

    process: ForkServerProcess
    log: Path
    started: float = field(default_factory=time.monotonic)
    ended: float = 0.0

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def send(self, number: int) -> None:
        if self.alive and self.process.pid:
            os.kill(self.process.pid, number)

    def sleep_until(self, seconds: float) -> None:
        """Until so long after its start, or its end."""
        while self.alive and (left := self.started + seconds - time.monotonic()) > 0:
            time.sleep(min(left, 0.05))

    def wait(self, timeout: float) -> int:
        """Its exit code, minus a signal's number; one that doesn't end is an error of the round, and is killed with all
        that it started."""
        self.process.join(timeout)
        self.ended = time.monotonic()
        code = self.process.exitcode
        if code is None:
            said = self.said[-2000:]
            kill_family(self.process.pid or 0)
            raise TimeoutError(f"the driver had not ended after {timeout:.0f} s; it said: {said}")
        return code


def kill_family(process: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(process)
        for each in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()


def workers_of(raylets: Sequence[int]) -> list[psutil.Process]:
    """Actors that run shards, or could: Ray names its workers by what they hold."""
    found = []
    for raylet in raylets:
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in psutil.Process(raylet).children():
                with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    name = " ".join(each.cmdline())
                    if re.match(r"ray::(?!IDLE|Board)\S*(MapWorker|ShardWorker|Board)", name):
                        found.append(each)
    return found


def started_by(job: Job) -> list[psutil.Process]:
    """What drivers of the round started, its own Ray say, by what they gave to it."""
    found = []
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            if each.environ().get(_MARK) == str(job.folder):
                found.append(each)
    return found


def gone(look: Callable[[], Sequence[object]], within: float = _GONE_WITHIN_S) -> Sequence[object]:
    """What ``look`` still sees when so many seconds have passed; nothing as soon as it sees nothing."""
    end = time.monotonic() + within
    while (left := look()) and time.monotonic() < end:
        time.sleep(0.2)
    return left


def spools(folder: Path) -> list[Path]:
    return list(folder.glob("asymvae-spool-*"))


def temporaries(out: str) -> list[str]:
    return [name for name in list_files(out, recursive=True) if TEMPORARY.match(name.rpartition("/")[2])]


def wrong_with(job: Job, *, same_bytes: bool = True) -> Iterator[str]:
    """What a finished OUT has that it must not have, in words."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = jobs.audit.main([job.out, "--deep"])
    if code != 0:
        yield f"the audit ended with {code}: {said.getvalue()}"
        return
    ledger = Ledger(job.out)
    records = [ledger.read_commit(name) for name in ledger.committed()]
    samples = job.place.samples
    if len(records) != SHARDS:
        yield f"{len(records)} commits for {SHARDS} shards"
    for record in records:
        counts = record["counts"]
        expected = {"samples": samples, "planned": samples, "results": samples - 1, "errors": 1, "shard_errors": 0}
        if counts != expected:
            yield f"shard {record['shard']}: counts {json.dumps(counts)}"
    yield from law_broken(job.out, {record["shard"]: samples for record in records})
    if same_bytes and (there := parts(job.out)) != job.place.parts:
        odd = [name for name in there | job.place.parts if there.get(name) != job.place.parts.get(name)]
        yield f"other parts than the undisturbed run's: {odd}"
    if left := temporaries(job.out):
        yield f"temporary files: {left}"
    if uploads := unfinished_uploads(job.out):
        yield f"unfinished uploads: {uploads}"


def left_running(job: Job) -> Iterator[str]:
    """Processes and spool folders that outlive the round's jobs."""
    assert job.spool is not None
    if found := gone(lambda: started_by(job)):
        yield f"processes are left: {found}"
    if found := gone(lambda: workers_of(job.place.raylets())):
        yield f"workers are left: {found}"
    if found := gone(lambda: spools(job.spool or Path()), 5.0):
        yield f"spool folders are left: {[str(path) for path in found]}"


def clear(job: Job) -> None:
    """Make room: rounds of S3 share one small store."""
    if job.out.startswith("s3://"):
        with contextlib.suppress(FileNotFoundError):
            fsspec.filesystem("s3").rm(job.out, recursive=True)
    shutil.rmtree(job.folder, ignore_errors=True)
