"""Where shards run: in this process, or on actors of a Ray cluster. The parts are the same bytes."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Generator, Sequence
from typing import Any, Protocol

import ray
import torch
from ray.exceptions import RayError

from asymvae.config import ShardJob
from asymvae.pipeline.allocator import KEEP_FREED_MEMORY
from asymvae.pipeline.capacity import DeviceMemory, device_memory
from asymvae.pipeline.cluster import check_output_is_shared, check_placement, check_resources, connect, placement
from asymvae.pipeline.plan import ConfigurationError
from asymvae.pipeline.pool import GRACE_S, LOOK_EVERY_S, Pool, last_line
from asymvae.pipeline.progress import Board, Tally
from asymvae.pipeline.recipe import Recipe
from asymvae.pipeline.reports import Report
from asymvae.pipeline.tail import largest_first
from asymvae.pipeline.worker import RayShardWorker, ShardWorker
from asymvae.storage.shard_table import ShardTable
from asymvae.storage.shards import Shard

_LISTEN_EVERY_S = 0.5
_TELL_OF_WAITING_EVERY_S = 60.0


class WorkersFailedError(RuntimeError):
    """No worker can be started, or none kept: what they die of isn't one shard's doing. The message says why."""


class Executor(Protocol):
    """Runs shards and yields what becomes of each."""

    def start(self, job: ShardJob) -> None:
        """Get ready, before anything is written. Raises ConfigurationError where the job can't run here."""
        ...

    def device_memory(self, job: ShardJob) -> DeviceMemory:
        """Of the device that a worker of ``job`` has, before there is any."""
        ...

    def run(self, recipe: Recipe, shards: Sequence[Shard], tally: Tally) -> Generator[Report | None, None, None]:
        """A report a shard, in any order; None now and then meanwhile, so that the caller can look at the tally.
        Closed early, it ends what is still at work: that leaves no part half written."""
        ...


class LocalExecutor:
    """One shard after another, in this process, without Ray: for debugging, profiling and notebooks."""

    def start(self, job: ShardJob) -> None:
        if job.workers.gpus > 0 and not torch.cuda.is_available():
            raise ConfigurationError("workers.gpus asks for a GPU and torch sees none here; set workers.gpus=0")

    def device_memory(self, job: ShardJob) -> DeviceMemory:
        return device_memory(job)

    def run(self, recipe: Recipe, shards: Sequence[Shard], tally: Tally) -> Generator[Report | None, None, None]:
        worker = ShardWorker(recipe)
        for shard in shards:
            yield self._run(worker, shard, tally, recipe.job.ray.attempts)

    def _run(self, worker: ShardWorker, shard: Shard, tally: Tally, attempts: int) -> Report:
        for _ in range(1 + attempts):
            report = worker.attempt(shard, lambda s, samples, errors, _: tally.tell(s.name, samples, errors))
            if report.committed:
                break
        return report


class RayExecutor:
    """A pool of Ray's actors, each of which streams its shards itself.

    Shards lost to a dying worker, or failed, are then run alone, one to a fresh actor, ``ray.attempts`` times: so a
    shard that kills its worker takes no neighbour along.

    Args:
        worker: the actors' class; the benchmark has one that waits where this computes.
    """

    def __init__(self, worker: type[Any] = RayShardWorker) -> None:
        self.worker = worker

    def start(self, job: ShardJob) -> None:
        if not ray.is_initialized():
            connect(job.ray.address)
        check_placement(job)
        check_resources(job)
        check_output_is_shared(job.output.url)

    def device_memory(self, job: ShardJob) -> DeviceMemory:
        """Asked where a worker would run: the driver's own node may have no GPU, or another."""
        # Its process ends after the call, and with it what CUDA keeps of the GPU for it.
        look: Any = ray.remote(max_calls=1, **placement(job))(device_memory)
        try:
            memory: DeviceMemory = ray.get(look.remote(job))
        except RayError as error:
            raise ConfigurationError(f"no worker's device can be looked at: {last_line(error)}") from error
        return memory

    def run(self, recipe: Recipe, shards: Sequence[Shard], tally: Tally) -> Generator[Report | None, None, None]:
        board = Board.remote()  # type: ignore[attr-defined]
        left: Sequence[Shard] = largest_first(shards)
        reasons: dict[str, str] = {}
        listened = 0.0
        for round_ in range(1 + recipe.job.ray.attempts):
            run = self._alone(recipe, left, board) if round_ else self._pool(recipe, left, board)
            again: list[Shard] = []
            with contextlib.closing(run) as news:
                for of_a_shard in news:
                    if time.monotonic() - listened >= _LISTEN_EVERY_S:  # the answer takes as long as a report
                        _listen(board, tally)
                        listened = time.monotonic()
                    if of_a_shard is None or of_a_shard[1].committed:
                        yield of_a_shard and of_a_shard[1]
                    else:
                        again.append(of_a_shard[0])
                        reasons[of_a_shard[0].name] = of_a_shard[1].reason
            left = again
        for shard in left:
            yield Report(shard.name, False, reasons[shard.name])

    def _pool(
        self, recipe: Recipe, shards: Sequence[Shard], board: Any
    ) -> Generator[tuple[Shard, Report] | None, None, None]:
        workers = recipe.job.workers
        actor = self._actor(recipe, max_concurrency=workers.shards_in_flight)
        pool = Pool(
            lambda: actor.remote(recipe, board),
            shards,
            len(shards),
            int(ShardTable.of(shards).sizes.clip(min=1).sum()),
            least=workers.min,
            most=workers.max,
            in_flight=workers.shards_in_flight,
            stop=board.stop.remote,
        )
        wait_told = time.monotonic()
        try:
            for news in pool.run():
                if pool.has_started:
                    wait_told = math.inf
                elif time.monotonic() - wait_told >= _TELL_OF_WAITING_EVERY_S:
                    wait_told = time.monotonic()
                    print(_waiting(recipe.job), file=sys.stderr)
                yield news
        except RayError as error:  # shards' own errors come as reports
            raise WorkersFailedError(f"the workers failed: {last_line(error)}") from error

    def _actor(self, recipe: Recipe, **options: Any) -> Any:
        return ray.remote(self.worker).options(
            **placement(recipe.job),
            runtime_env=_runtime_env(recipe.job),
            # A shard that kills its worker would loop for ever: who dies is replaced, and his shards tried again, here.
            max_restarts=0,
            max_task_retries=0,
            **options,
        )

    def _alone(
        self, recipe: Recipe, shards: Sequence[Shard], board: Any
    ) -> Generator[tuple[Shard, Report] | None, None, None]:
        most, actor_class = recipe.job.workers.max, self._actor(recipe)
        waiting, running = list(shards), dict[Any, tuple[Shard, Any]]()
        try:
            while waiting or running:
                while waiting and len(running) < most:
                    shard, actor = waiting.pop(0), actor_class.remote(recipe, board)
                    running[actor.run.remote(shard)] = (shard, actor)
                ready, _ = ray.wait(list(running), num_returns=1, timeout=LOOK_EVERY_S)
                if not ready:
                    yield None
                    continue
                shard, actor = running.pop(ready[0])
                try:
                    report = ray.get(ready[0])
                except RayError as error:
                    report = Report(shard.name, False, f"its worker died: {last_line(error)}")
                finally:
                    ray.kill(actor)
                yield shard, report
        finally:
            if running:  # the caller has had enough
                board.stop.remote()
                ray.wait(list(running), num_returns=len(running), timeout=GRACE_S)
                for _, actor in running.values():
                    ray.kill(actor)


def _runtime_env(job: ShardJob) -> dict[str, Any]:
    """Of an actor, beside what the job was submitted with."""
    return {"env_vars": KEEP_FREED_MEMORY} if job.workers.gpus == 0 else {}


def _waiting(job: ShardJob) -> str:
    wants = ", ".join(f"{name} {wanted}" for name, wanted in placement(job).items() if wanted)
    return f"no worker has started yet: it loads the model, or waits for a node with {wants} (`ray status` says which)"


def _listen(board: Any, tally: Tally) -> None:
    with contextlib.suppress(RayError):  # the board was lost with its node: news are a comfort, and reports count
        for shard, (samples, errors) in ray.get(board.take.remote()).items():
            tally.tell(shard, samples, errors)
