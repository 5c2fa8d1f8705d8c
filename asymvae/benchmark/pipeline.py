"""What the pipeline makes of a network's speed: a plain loop, one worker in one process, and workers of Ray."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from asymvae.benchmark.loop import run_loop
from asymvae.benchmark.measured import RunFailedError
from asymvae.benchmark.turns import in_turns
from asymvae.config import InpaintJob
from asymvae.pipeline.allocator import KEEP_FREED_MEMORY
from asymvae.pipeline.executor import LocalExecutor, RayExecutor
from asymvae.pipeline.job import run_job
from asymvae.pipeline.plan import ConfigurationError, resolve
from asymvae.pipeline.worker import reason_of
from asymvae.storage.ledger import Ledger

T = TypeVar("T")

LOOP, LOOP_AS_IT_COMES, LOCAL = "loop", "loop, malloc as it comes", "local executor"


@dataclass(frozen=True, slots=True)
class PipelineTiming:
    """One run over all samples. ``seconds``: from the first byte read to the last commit (a loop: to the last image
    encoded), no start-up; ``whole`` with start-up, planning and audit. ``stages``: seconds by stage, summed over
    threads and shards; ``device`` is what the network takes, on a GPU the launching of it."""

    way: str
    workers: int
    gpus: float  # a worker
    round: int
    samples: int
    seconds: float
    whole: float
    stages: dict[str, float]

    @property
    def samples_per_s(self) -> float:
        return self.samples / self.seconds

    @property
    def samples_per_hour_and_unit(self) -> float:
        """A GPU's; where there is none, a worker's."""
        return 3600 * self.samples_per_s / (self.workers * (self.gpus or 1))


def measure(
    job: InpaintJob,
    *,
    ray_workers: Sequence[int],
    rounds: int,
    scratch: Path,
    tell: Callable[[str], None] = lambda said: None,
) -> Iterator[PipelineTiming]:
    """The job's shards by every way in turns, each in a fresh process; what they write below ``scratch`` is removed.

    Raises ConfigurationError for a job that can't be run, RunFailedError where one did not commit every shard.
    """
    on_cpu = job.workers.gpus == 0
    # A CPU actor sets malloc so, and so do all ways here but one: the loop that people have.
    kept = KEEP_FREED_MEMORY if on_cpu else {}
    ways: dict[str, Callable[[], PipelineTiming]] = {LOOP: partial(_in_process, _loop, job, LOOP, environment=kept)}
    if on_cpu:
        ways[LOOP_AS_IT_COMES] = partial(_in_process, _loop, job, LOOP_AS_IT_COMES)
    ways[LOCAL] = partial(_in_process, _job, job, LOCAL, 0, scratch, environment=kept)
    for workers in ray_workers:
        name = f"Ray, {workers} worker{'s' * (workers > 1)}"
        ways[name] = partial(_in_process, _job, job, name, workers, scratch)

    def announced(name: str) -> Callable[[], PipelineTiming]:
        def run() -> PipelineTiming:
            tell(name)
            try:
                return ways[name]()
            except ConfigurationError:
                raise
            except Exception as error:  # Ray, stores and torch raise what they like
                raise RunFailedError(f"{name}: {reason_of(error)}") from error

        return run

    for number, _, timing in in_turns({name: announced(name) for name in ways}, rounds):
        yield replace(timing, round=number)


def _loop(job: InpaintJob, name: str) -> PipelineTiming:
    started = perf_counter()
    ran = run_loop(resolve(job))
    return PipelineTiming(
        name, 1, job.workers.gpus, 0, ran.samples, ran.seconds, perf_counter() - started, dict(ran.stages)
    )


def _job(job: InpaintJob, name: str, workers: int, scratch: Path) -> PipelineTiming:
    """``workers`` 0: the local executor."""
    out = scratch / f"out-{os.getpid()}"
    update: dict[str, Any] = {"output": job.output.model_copy(update={"url": str(out)})}
    if workers:
        update["workers"] = job.workers.model_copy(update={"min": workers, "max": workers})
    started = perf_counter()
    try:
        result = run_job(job.model_copy(update=update), RayExecutor() if workers else LocalExecutor())
        whole = perf_counter() - started
        if result.failed or result.stopped:
            raise RunFailedError(result.stopped or str(result.failed))
        ledger = Ledger(str(out))
        commits = [ledger.read_commit(record) for record in ledger.committed()]
    finally:
        shutil.rmtree(out, ignore_errors=True)
    runs = [commit["run"] for commit in commits]
    begins = [datetime.fromisoformat(run["started"]).timestamp() for run in runs]
    ends = [begin + run["seconds"] for begin, run in zip(begins, runs, strict=True)]
    stages: Counter[str] = Counter()
    for run in runs:
        stages.update(run["stages"])
    del stages["wall"]
    samples = sum(commit["counts"]["samples"] for commit in commits)
    return PipelineTiming(
        name, workers or 1, job.workers.gpus, 0, samples, max(ends) - min(begins), whole, dict(stages)
    )


def _in_process(work: Callable[..., T], *args: Any, environment: Mapping[str, str] = {}) -> T:
    """Run ``work`` in a process of its own, which malloc and torch find as a worker's would be."""
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(work, *args).result()
    finally:
        os.environ.clear()
        os.environ.update(before)
