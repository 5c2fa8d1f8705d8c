"""How well the executor keeps many workers busy: real actors on Ray nodes of one machine, whose device is a clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, median
from typing import Any

import ray
from ray.cluster_utils import Cluster

from asymvae.benchmark.measured import RunFailedError
from asymvae.benchmark.simulated_worker import SIZE_OF_A_SECOND, SimulatedWorker
from asymvae.config import InpaintJob
from asymvae.pipeline.executor import RayExecutor
from asymvae.pipeline.progress import Board, Tally
from asymvae.pipeline.recipe import Recipe
from asymvae.pipeline.tail import Tail
from asymvae.storage.ledger import Ledger
from asymvae.storage.shard_table import ShardTable
from asymvae.storage.shards import Shard

_FINGERPRINT = "0" * 32
_NEWS = 2000


@dataclass(frozen=True, slots=True)
class SimulatedTiming:
    """One run of ``workers`` over ``shards`` of ``shard_s`` seconds each, by their mean.

    ``busy``: the share of the time from each worker's first shard to the end of the last one in which its device had
    work. ``idle``: the share in which it had no shard. ``largest``: of the shards, over a worker's part of all.
    ``whole``: seconds with the start of the workers, of which the last was ready after ``ready``. ``seconds``: from the
    first shard's start to the end of the last. ``commit`` and ``resident`` (MiB) are medians over reports. ``driver``:
    CPU seconds of the driver.
    """

    workers: int
    nodes: int
    round: int
    shards: int
    shard_s: float
    busy: float
    idle: float
    largest: float
    seconds: float
    whole: float
    ready: float
    commit: float
    resident: float
    driver: float

    @property
    def shards_per_s(self) -> float:
        return self.shards / self.seconds

    @property
    def ideal(self) -> float:
        """Seconds that these shards take workers that never wait."""
        return self.shards * self.shard_s / self.workers


def measure(
    workers: Sequence[int],
    *,
    nodes: int,
    shards: int,
    shard_s: float,
    spread: float,
    empty: int,
    rounds: int,
    scratch: Path,
    tell: Callable[[str], None] = lambda said: None,
) -> tuple[list[SimulatedTiming], float]:
    """(a timing of every number of workers and round, then those of ``empty`` shards of no time; how many news a second
    the board takes). ``shards``: a worker's. ``spread``: of their sizes, see :func:`_shards`.

    Raises RunFailedError where a shard isn't committed.
    """
    most = max(workers)
    tell(f"{nodes} nodes for {most} workers")
    each = -(-most // nodes)
    # Without idle processes that Ray starts ahead of any work, one a CPU.
    head: dict[str, Any] = {"_system_config": {"enable_worker_prestart": False}, "include_dashboard": False}
    cluster = Cluster()
    try:
        try:
            for node in range(nodes):
                cluster.add_node(num_cpus=each, num_gpus=each, **({} if node else head))
        except Exception as error:  # Ray raises no narrower one
            raise RunFailedError(f"the cluster did not start: {error}") from error
        timings = []
        executor = RayExecutor(SimulatedWorker)
        for number in range(rounds):
            for count in workers:
                tell(f"{count} workers")
                timed = list(_shards(shards * count, shard_s, spread))
                timings.append(_run(executor, cluster.address, count, nodes, number, timed, shard_s, scratch))
        for number in range(rounds if empty else 0):
            for count in workers:
                tell(f"{count} workers, shards of no time")
                timeless = list(_shards(empty, 0.0, 0.0))
                timings.append(_run(executor, cluster.address, count, nodes, number, timeless, 0.0, scratch))
        return timings, _news_per_s()
    finally:
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]


def _run(
    executor: RayExecutor,
    address: str,
    workers: int,
    nodes: int,
    number: int,
    shards: Sequence[Shard],
    shard_s: float,
    scratch: Path,
) -> SimulatedTiming:
    out = scratch / f"{workers}-{number}-{shard_s}"
    settings: dict[str, Any] = {
        "input": {"urls": "none"},
        "output": {"url": str(out)},
        "workers": {"min": workers, "max": workers, "gpus": 1},
        "ray": {"address": address},
    }
    job = InpaintJob(**settings)
    Ledger(str(out)).open_job({"fingerprint": _FINGERPRINT})
    todo = ShardTable(shards)
    executor.start(job)
    tally = Tally()
    ended, begun, tail = dict[str, float](), dict[str, float](), Tail()
    commits, resident, ready = [], list[float](), 0.0
    started, cpu = time.time(), time.process_time()
    for report in executor.run(Recipe(job, _FINGERPRINT, ""), todo, tally):
        if report is None:
            continue
        if not report.committed:
            raise RunFailedError(f"{workers} workers: {report.reason}")
        now = report.stages["ended"]  # by the worker: a report that was late here would make its shard begin late, too
        begun.setdefault(report.worker, now - report.seconds)
        ended[report.worker] = now
        tail.add(report.worker, report.seconds, now)
        commits.append(report.stages["commit"])
        resident.append(report.stages["resident"])
        ready = max(ready, report.stages["ready"] - started)
    whole, cpu = time.time() - started, time.process_time() - cpu
    last = max(ended.values())
    at_hand = sum(last - begin for begin in begun.values())
    return SimulatedTiming(
        workers=workers,
        nodes=nodes,
        round=number,
        shards=len(shards),
        shard_s=shard_s,
        busy=sum(shard.size for shard in shards) / SIZE_OF_A_SECOND / at_hand,
        idle=tail.idle_share,
        largest=workers * max(shard.size for shard in shards) / max(1, sum(shard.size for shard in shards)),
        seconds=last - min(begun.values()),
        whole=whole,
        ready=ready,
        commit=median(commits),
        resident=median(resident),
        driver=cpu,
    )


def _shards(count: int, seconds: float, spread: float) -> Iterator[Shard]:
    """``count`` shards that take ``seconds`` on average. ``spread``: the standard deviation of their sizes' logarithms,
    as a normal distribution has them at evenly spaced probabilities; 0: all alike."""
    sizes = [math.exp(spread * NormalDist().inv_cdf((number + 0.5) / count)) for number in range(count)]
    unit = seconds * SIZE_OF_A_SECOND * count / sum(sizes)
    for number, size in enumerate(sizes):
        name = f"{number:07d}"
        yield Shard(f"simulated://{name}.tar", name, "webdataset", round(size * unit), "v1")


def _news_per_s() -> float:
    board = Board.remote()  # type: ignore[attr-defined]
    ray.get(board.take.remote())
    started = time.perf_counter()
    for number in range(_NEWS):
        board.tell.remote(f"{number:07d}", 1, {})
    ray.get(board.take.remote())
    return _NEWS / (time.perf_counter() - started)
