"""The worker: loads the model once, then takes shards from their bytes to their commit.

A plain class, so that one shard can be run, debugged and profiled in one process; :class:`RayShardWorker` is the
same as an actor of Ray's.
"""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import sys
import time
import traceback
from datetime import UTC, datetime
from typing import Any

import cv2
import ray
import torch
from ray.exceptions import RayError

from asymvae.config import ShardJob
from asymvae.fingerprint import settings_that
from asymvae.pipeline.device import Device
from asymvae.pipeline.disk import full_disk_named, is_full_disk
from asymvae.pipeline.kinds.choice import kind_of
from asymvae.pipeline.metrics import Metrics
from asymvae.pipeline.plan import ready_model
from asymvae.pipeline.recipe import Recipe
from asymvae.pipeline.reports import Report
from asymvae.pipeline.shard_run import Progress, Vitals, run_shard
from asymvae.pipeline.spool import spool_folder, sweep_spools
from asymvae.pipeline.watchdog import Watchdog
from asymvae.storage.filesystem import redact, redact_text
from asymvae.storage.ledger import Ledger, commit_id
from asymvae.storage.retry import is_transient
from asymvae.storage.shards import Shard

_TELL_EVERY_S = 0.5
_NEWS_PER_S = 500  # of all workers: the board, one actor, takes about a thousand


class StoppedError(RuntimeError):
    """The driver has ended the run: what isn't committed is given up."""


def make_deterministic(job: ShardJob) -> None:
    """The same bytes for the same threads, device and batch: set in every executor, before the device is touched."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(job.workers.cpu_threads)
    cv2.setNumThreads(1)  # the codec pools are the parallelism
    torch.use_deterministic_algorithms(True)
    # It would also fill every new tensor with NaN, for code that reads what it never wrote: memory traffic for nothing.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


class ShardWorker:
    """Holds the model; may run several shards at once, in threads.

    Args:
        recipe: what the driver resolved; the weights that are loaded here must be those that it saw.
    """

    def __init__(self, recipe: Recipe) -> None:
        job = recipe.job
        make_deterministic(job)
        sweep_spools(job.workers.spool)
        self.kind = kind_of(job, recipe.model_name)
        self.device = Device(
            lambda: ready_model(job, "cuda" if job.workers.gpus > 0 else "cpu"), self.kind, recipe.batch_budget
        )
        model = self.device.model
        if model.weights_sha256 != recipe.weights_sha256:
            raise RuntimeError(
                f"model.path {job.model.path} on {platform.node()} holds other weights ({model.weights_sha256}) "
                f"than where the job was started ({recipe.weights_sha256}): a folder must be the same on every node"
            )
        if (brought := self.kind.digest()) != recipe.inpainter_sha256:
            raise RuntimeError(
                f"{self.kind.brings} on {platform.node()} brings other files ({brought}) than where "
                f"the job was started ({recipe.inpainter_sha256}): a folder must be the same on every node"
            )
        self.recipe = recipe
        self.ledger = Ledger(job.output.url)

    def run(self, shard: Shard, progress: Progress) -> Report:
        """Run and commit ``shard``; raises what the infrastructure raises."""
        started = datetime.now(UTC)
        clock = time.perf_counter()
        job = self.recipe.job
        wanted = self.kind.growth * shard.size
        with spool_folder(job.workers.spool, wanted, waiting=lambda: progress(shard, 0, {}, None)) as folder:
            with full_disk_named(
                f"the spool folder {folder.parent}", "free some, or set workers.spool to a larger one"
            ):
                outcome = run_shard(shard, folder, self.kind, self.device, progress)
            with full_disk_named(f"output.url {redact(job.output.url)}", "free some, or enlarge it"):
                record = self.ledger.commit(
                    shard,
                    commit_id(self.recipe.fingerprint, shard),
                    outcome.parts,
                    outcome.counts,
                    {
                        "started": started.isoformat(timespec="milliseconds"),
                        "seconds": round(time.perf_counter() - clock, 3),
                        "host": platform.node(),
                        "pid": os.getpid(),
                        "affects_rounding": settings_that(job, "rounding"),
                        "stages": outcome.seconds,
                    },
                    errors_by_code=outcome.errors_by_code,
                    degraded=outcome.degraded,
                )
        return Report(
            shard.name,
            True,
            "",
            record["counts"],
            record["errors_by_code"],
            outcome.mean_hole_fraction,
            record["degraded"],
            worker=f"{platform.node()}:{os.getpid()}",
            seconds=time.perf_counter() - clock,
            stages=outcome.seconds,
            bytes_written=sum(part["size"] for part in record["parts"]),
        )

    def attempt(self, shard: Shard, progress: Progress) -> Report:
        """:meth:`run`, but an error of the infrastructure is told on stderr and becomes a report."""
        try:
            return self.run(shard, progress)
        except StoppedError as error:
            report = Report(shard.name, False, str(error))
        except Exception as error:  # noqa: BLE001  whatever it is, it is this shard's, and its report names it
            reason = reason_of(error)
            # Of a store that is away, or a full disk, the reason says all.
            trace = reason if is_transient(error) or is_full_disk(error) else f"\n{redact_text(traceback.format_exc())}"
            print(f"shard {shard.name}: {trace}", file=sys.stderr)
            report = Report(shard.name, False, reason)
        # The error's frames hold samples and batches, on a GPU too, in cycles that must not wait for the next shard.
        gc.collect()
        return report


class RayShardWorker:
    """:class:`ShardWorker` as an actor, that runs several shards at once, in threads of Ray's.

    An error of the infrastructure becomes a report, so that the driver decides about another try; what kills the
    process is seen by the driver as a missing report.
    """

    def __init__(self, recipe: Recipe, board: Any) -> None:
        try:
            self.worker = ShardWorker(recipe)
        except Exception as error:  # noqa: BLE001  raised again, in short
            # Ray shows what an actor's start raises as it is, many times: one line, without secrets.
            print(f"worker:\n{redact_text(traceback.format_exc())}", file=sys.stderr)
            raise RuntimeError(reason_of(error)) from None
        self.watchdog = Watchdog(recipe.job.workers.stall_timeout_s)
        self.metrics = Metrics(self.worker.device)
        self.board = board
        self._told: dict[str, float] = {}
        shards = recipe.job.workers.max * recipe.job.workers.shards_in_flight
        self._tell_every_s = max(_TELL_EVERY_S, shards / _NEWS_PER_S)
        self._answer: Any = None

    def run(self, shard: Shard) -> Report:
        with self.watchdog.watching(shard.name):
            report = self.worker.attempt(shard, self._progress)
        self.metrics.end(report, shard.size)
        return report

    def _progress(self, shard: Shard, samples: int, errors: dict[str, int], vitals: Vitals | None) -> None:
        now = time.monotonic()
        if now - self._told.get(shard.name, 0.0) >= self._tell_every_s:
            self._told[shard.name] = now
            self.watchdog.stroke(shard.name)
            self._look()
            self.metrics.tell(shard.name, samples, errors, vitals)
            self._answer = self.board.tell.remote(shard.name, samples, errors)

    def _look(self) -> None:
        """Raises StoppedError where the board's last answer says so; never waits for one."""
        answer = self._answer
        if answer is None or not ray.wait([answer], timeout=0)[0]:
            return
        with contextlib.suppress(RayError):  # the board was lost with its node: then nobody can say so
            if ray.get(answer):
                raise StoppedError("the run was stopped")


def reason_of(error: BaseException) -> str:
    """An infrastructure error in one line, for ``_failed/`` and the log: no credentials, no query strings."""
    return redact_text(f"{type(error).__name__}: {error}")
