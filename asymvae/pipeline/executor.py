"""Where shards run: in this process, or on actors of a Ray cluster. The parts are the same bytes."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import re
import signal
import socket
import threading
import uuid
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import ray
import torch
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.exceptions import RayError
from ray.util.annotations import RayDeprecationWarning
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from asymvae.config import ShardJob
from asymvae.pipeline.allocator import KEEP_FREED_MEMORY
from asymvae.pipeline.capacity import DeviceMemory, device_memory
from asymvae.pipeline.plan import ConfigurationError, Recipe
from asymvae.pipeline.progress import Board, Tally
from asymvae.pipeline.worker import RayShardWorker, Report, ShardWorker
from asymvae.storage.filesystem import is_local, redact_text, resolve
from asymvae.storage.shards import Shard

_LOOK_EVERY_S = 1.0
_ANSWERS_WITHIN_S = 10.0
# That workers get to give their shards up, where a run is ended; then they are killed. Schedulers give 30 s in all.
GRACE_S = 15.0


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
            report = worker.attempt(shard, lambda s, samples, errors: tally.tell(s.name, samples, errors))
            if report.committed:
                break
        return report


class RayExecutor:
    """Ray Data with the shard as the row: it places and scales the actors, which stream the shards themselves.

    Shards lost to a dying worker, or failed, are then run alone, one to a fresh actor, ``ray.attempts`` times: so a
    shard that kills its worker takes no neighbour along.
    """

    def start(self, job: ShardJob) -> None:
        if not ray.is_initialized():
            _connect(job.ray.address)
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        # It warns that its bars are off, as _set_context wants them.
        logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
        _check_resources(job)
        _check_output_is_shared(job.output.url)

    def device_memory(self, job: ShardJob) -> DeviceMemory:
        """Asked where a worker would run: the driver's own node may have no GPU, or another."""
        look: Any = ray.remote(
            num_gpus=job.workers.gpus,
            num_cpus=job.workers.cpu_threads,
            max_calls=1,  # its process ends, and with it what CUDA keeps of the GPU for it
        )(device_memory)
        try:
            memory: DeviceMemory = ray.get(look.remote(job))
        except RayError as error:
            raise ConfigurationError(f"no worker's device can be looked at: {_last_line(error)}") from error
        return memory

    def run(self, recipe: Recipe, shards: Sequence[Shard], tally: Tally) -> Generator[Report | None, None, None]:
        board = Board.remote()  # type: ignore[attr-defined]
        left = {shard.name: shard for shard in shards}
        reasons: dict[str, str] = {}
        for round_ in range(1 + recipe.job.ray.attempts):
            tried = list(left.values())
            run = self._alone(recipe, tried, board) if round_ else self._pool(recipe, tried, board)
            with contextlib.closing(run) as reports:
                for report in reports:
                    _listen(board, tally)
                    if report is None or report.committed:
                        if report is not None:
                            left.pop(report.shard, None)
                        yield report
                    else:
                        reasons[report.shard] = report.reason
        for name in left:
            yield Report(name, False, reasons.get(name, "its worker died"))

    def _pool(self, recipe: Recipe, shards: Sequence[Shard], board: Any) -> Generator[Report | None, None, None]:
        _set_context()
        rows = [{"shard": json.dumps(asdict(shard))} for shard in shards]
        with warnings.catch_warnings():
            # max_restarts has no named parameter yet, and the general one is announced to go with Ray 2.64.
            warnings.simplefilter("ignore", RayDeprecationWarning)
            dataset = self._dataset(rows, recipe, board)
        reports = (Report(**json.loads(row["report"])) for row in dataset.iter_rows())
        try:
            yield from _every(_LOOK_EVERY_S, reports, lambda: board.stop.remote())
        except RayError as error:  # shards' own errors come as reports, and as rows that are missing
            raise WorkersFailedError(f"the workers failed: {_last_line(error)}") from error

    def _dataset(self, rows: list[dict[str, str]], recipe: Recipe, board: Any) -> Dataset:
        workers = recipe.job.workers
        return ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            RayShardWorker,
            fn_constructor_args=(recipe, board),
            batch_size=1,
            compute=ActorPoolStrategy(
                min_size=min(workers.min, len(rows)),
                max_size=min(workers.max, len(rows)),
                # A second shard in flight fills the device while the first one's end is encoded and uploaded.
                max_tasks_in_flight_per_actor=workers.shards_in_flight,
                max_concurrent_calls_per_actor=workers.shards_in_flight,
                enable_true_multi_threading=True,
            ),
            num_gpus=workers.gpus,
            num_cpus=workers.cpu_threads,
            runtime_env=_runtime_env(recipe.job),
            # Both are infinite by default, and a shard that kills its worker would loop for ever. A death costs the
            # shards in flight one try, so restarts are bounded by the shards as well.
            max_restarts=len(rows),
            max_task_retries=1,
        )

    def _alone(self, recipe: Recipe, shards: Sequence[Shard], board: Any) -> Generator[Report | None, None, None]:
        workers = recipe.job.workers
        remote: Any = ray.remote(RayShardWorker).options(
            num_gpus=workers.gpus,
            num_cpus=workers.cpu_threads,
            runtime_env=_runtime_env(recipe.job),
            max_restarts=0,
            max_task_retries=0,
        )
        waiting, running = list(shards), dict[Any, tuple[Shard, Any]]()
        try:
            while waiting or running:
                while waiting and len(running) < workers.max:
                    shard, actor = waiting.pop(0), remote.remote(recipe, board)
                    running[actor.run.remote(shard)] = (shard, actor)
                ready, _ = ray.wait(list(running), num_returns=1, timeout=_LOOK_EVERY_S)
                if not ready:
                    yield None
                    continue
                shard, actor = running.pop(ready[0])
                try:
                    report = ray.get(ready[0])
                except RayError as error:
                    report = Report(shard.name, False, f"its worker died: {_last_line(error)}")
                finally:
                    ray.kill(actor)
                yield report
        finally:
            if running:  # the caller has had enough
                board.stop.remote()
                ray.wait(list(running), num_returns=len(running), timeout=GRACE_S)
                for _, actor in running.values():
                    ray.kill(actor)


def _runtime_env(job: ShardJob) -> dict[str, Any]:
    """Of an actor, beside what the job was submitted with."""
    return {"env_vars": KEEP_FREED_MEMORY} if job.workers.gpus == 0 else {}


def _set_context() -> None:
    """Ray Data's traps (seen with 2.60), each set once, here."""
    context = DataContext.get_current()
    # A shard whose worker died is an errored block; drop it here, since it is run again, alone, and then audited.
    context.max_errored_blocks = -1
    # 30 minutes without a block would end the run, and a large shard takes longer; workers have their own watchdog.
    context.execution_no_progress_timeout_s = -1
    # With every slot taken, utilisation is exactly 1: a higher threshold would never let the pool grow.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    # 0 by default: one spot node lost while it loads the model would end the job. A worker that can't start anywhere
    # ends it after this many, each having loaded the model.
    context.max_consecutive_actor_init_deaths = 3
    # Our own display shows samples; Ray's would show shards, between its lines.
    context.enable_progress_bars = False


def _connect(address: str | None) -> None:
    """Join the cluster at ``address``, or RAY_ADDRESS, or start a Ray of this machine.

    Raises:
        ConfigurationError: it isn't an address, or nothing answers there.
    """
    setting, wanted = "ray.address", address
    if wanted is None:
        # "local" where nothing is said: Ray would join the cluster that was last started here, whoever's it is.
        setting, wanted = "RAY_ADDRESS", os.environ.get("RAY_ADDRESS") or "local"
    if host := re.fullmatch(r"(?:ray://)?\[?(?P<name>[^/\[\]]+?)\]?:(?P<port>[0-9]{1,5})", wanted):
        try:
            # Ray itself tries for more than three minutes, and doesn't say what the address was.
            socket.create_connection((host["name"], int(host["port"])), timeout=_ANSWERS_WITHIN_S).close()
        except (OSError, OverflowError) as error:
            raise ConfigurationError(
                f"{setting} {wanted}: no Ray answers there ({error}); start it, correct the address, or leave it out "
                "to start one on this machine"
            ) from error
    on_terminate, terminated = signal.getsignal(signal.SIGTERM), False
    try:
        ray.init(address=wanted, logging_level=logging.WARNING)
    except (ValueError, ConnectionError) as error:
        raise ConfigurationError(f"{setting} {wanted}: {error}") from error
    except SystemExit:
        terminated = True  # by Ray's own handler, see below
    finally:
        # Ray puts a handler there, which ends the process with 1 in the middle of anything.
        if threading.current_thread() is threading.main_thread() and on_terminate is not None:
            signal.signal(signal.SIGTERM, on_terminate)
    if terminated:
        signal.raise_signal(signal.SIGTERM)


def _every(
    seconds: float, reports: Generator[Report, None, None], stop: Callable[[], object]
) -> Generator[Report | None, None, None]:
    """The reports, and None whenever ``seconds`` pass without one.

    They are waited for in a thread of its own, since Ray Data's iterators can't be polled. Where the caller stops
    early, ``stop`` makes the workers give up, the reports of that end the thread, and it ends the actors; it is
    waited for, but not for longer than GRACE_S: a worker may hang.
    """
    arrived: queue.SimpleQueue[Report | BaseException | None] = queue.SimpleQueue()
    stopped = threading.Event()

    def wait() -> None:
        try:
            for report in reports:
                arrived.put(report)
                if stopped.is_set():
                    reports.close()
                    break
            arrived.put(None)
        except BaseException as error:  # noqa: BLE001  raised again where the reports are read
            arrived.put(error)

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    try:
        while True:
            try:
                report = arrived.get(timeout=seconds)
            except queue.Empty:
                yield None
                continue
            if report is None:
                return
            if isinstance(report, BaseException):
                raise report
            yield report
    finally:
        stopped.set()
        if waiter.is_alive():
            stop()
            waiter.join(GRACE_S)
        # Where the process ends before that thread, Ray Data would put a traceback below the job's own last word.
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def _nodes() -> list[str]:
    """Ids of the nodes that are up."""
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _check_resources(job: ShardJob) -> None:
    """On a Ray of this machine, which won't grow: does an actor fit at all? Ray would wait for ever, and say little."""
    address = job.ray.address or os.environ.get("RAY_ADDRESS") or "local"
    if len(_nodes()) > 1 or address != "local":
        return
    has = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for setting, resource, wanted in (
        ("workers.gpus", "GPU", job.workers.gpus),
        ("workers.cpu_threads", "CPU", job.workers.cpu_threads),
    ):
        if wanted > has.get(resource, 0):
            raise ConfigurationError(
                f"{setting} is {wanted:g} and this machine's Ray has {has.get(resource, 0):g} {resource}: lower it"
                + (", 0 runs on the CPU" if resource == "GPU" else "")
            )


def _check_output_is_shared(out: str) -> None:
    """A local OUT on a cluster of several nodes: every node must see the same folder."""
    nodes = _nodes()
    if len(nodes) < 2 or not is_local(out):
        return
    folder = Path(resolve(out)[1])
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".seen-by-all.{uuid.uuid4().hex}.tmp"
    probe.touch()
    try:
        look = ray.remote(num_cpus=0)(os.path.exists)
        seen = [
            look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(str(probe))
            for node in nodes
        ]
        if not all(ray.get(seen)):
            raise ConfigurationError(
                f"output.url {out} is a local folder that not every node of the cluster sees: "
                "set it to an object store (s3://, gs://) or a shared file system"
            )
    finally:
        probe.unlink()


def _listen(board: Any, tally: Tally) -> None:
    with contextlib.suppress(RayError):  # the board was lost with its node: news are a comfort, and reports count
        for shard, (samples, errors) in ray.get(board.take.remote()).items():
            tally.tell(shard, samples, errors)


def _last_line(error: RayError) -> str:
    """Of Ray's pages about a death the line that says why."""
    return redact_text(str(error).strip().rpartition("\n")[2])
