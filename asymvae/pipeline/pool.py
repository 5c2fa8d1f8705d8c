"""Long-lived actors that work off shards: more of them while shards wait, fewer when none do.

Ray places them, and its autoscaler brings nodes for those that have no place yet. It is a pool of our own, not Ray
Data's, which costs the driver 6 ms a shard, and a block for every shard of the job before the first one runs. Here a
shard is one call of an actor, the list is read as it is worked off, and which shards a dying worker had is known.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import ray
from ray.exceptions import RayError, RayTaskError

from asymvae.pipeline.reports import Report
from asymvae.storage.filesystem import redact_text
from asymvae.storage.shards import Shard

LOOK_EVERY_S: Final = 1.0
# That workers get to give their shards up, where a run is ended; then they are killed. Schedulers give 30 s in all.
GRACE_S: Final = 15.0
# Starts that may fail one after the other. More, and what they die of isn't one node's doing.
_FAILED_STARTS: Final = 3


@dataclass(eq=False)
class _Worker:
    actor: Any
    ready: bool = False
    shards: dict[str, Shard] = field(default_factory=dict)  # in flight, by name


class Pool:
    """Runs every shard once, in their order, and those that were lost with a dying worker once more, at the end.

    Args:
        start: makes an actor, whose method ``run`` takes a shard and returns its :class:`Report`.
        shards: read one by one, as workers have room for them.
        count: of them; ``bytes``: all their sizes, at least 1 each (:func:`weight`).
        least, most: actors. There are never more than shards to do, and ``least`` stay while any is in flight: one
            that is lost needs a worker.
        in_flight: shards an actor. The second fills the device while the first one's end is encoded and uploaded. It
            is given as long as the two are no more than a worker's part of what is left: else it would wait there when
            others have nothing to do.
        stop: called where the caller has had enough: workers give up what they are at.
    """

    def __init__(
        self,
        start: Callable[[], Any],
        shards: Iterable[Shard],
        count: int,
        bytes: int,
        *,
        least: int,
        most: int,
        in_flight: int,
        stop: Callable[[], object],
    ) -> None:
        self._start, self._shards, self._waiting = start, iter(shards), count
        self._least, self._most, self._in_flight, self._stop = least, most, in_flight, stop
        self._next: Shard | None = None  # read, and not given to anyone yet
        self._left = bytes  # waiting and in flight
        self._again: deque[Shard] = deque()
        self._lost_once: set[str] = set()
        self._workers: set[_Worker] = set()
        self._starting = self._busy = self._failed_starts = 0  # workers
        self._at_work = 0  # shards
        self._any_ready = False
        # Filled by Ray's threads: a worker that is ready (None) or a shard's report, or what it died of.
        self._arrived: queue.SimpleQueue[tuple[_Worker, Shard | None, Future[Any]]] = queue.SimpleQueue()

    def run(self) -> Generator[tuple[Shard, Report] | None, None, None]:
        """A report a shard; None now and then meanwhile. Closed early, it ends every worker.

        Raises:
            RayError: workers don't start, one after the other; this is what the last one died of.
        """
        try:
            while self._waiting or self._at_work:
                self._grow()
                try:
                    worker, shard, answer = self._arrived.get(timeout=LOOK_EVERY_S)
                except queue.Empty:
                    yield None
                    continue
                report = None
                if shard is None:
                    self._started(worker, answer)
                else:
                    report = self._reported(worker, shard, answer)
                self._feed(worker)
                if self._waiting and worker not in self._workers:  # its shards may be for one that had nothing to do
                    for idle in [other for other in self._workers if not other.shards]:
                        self._feed(idle)
                if shard is not None and report is not None:  # its worker is at the next one while this is looked at
                    yield shard, report
        finally:
            self._close()

    @property
    def has_started(self) -> bool:
        """Whether any worker was ready so far."""
        return self._any_ready

    def _grow(self) -> None:
        while self._waiting and len(self._workers) < min(self._most, self._busy + self._waiting):
            worker = _Worker(self._start())
            self._workers.add(worker)
            self._starting += 1
            self._hear(worker, None, worker.actor.__ray_ready__.remote())

    def _feed(self, worker: _Worker) -> None:
        """Give a worker what it has room for. Where nothing waits, workers that have nothing go."""
        while worker.ready and self._waiting and len(worker.shards) < self._in_flight:
            shard = self._next = self._next or next(self._shards, None) or self._again.popleft()
            held = sum(map(weight, worker.shards.values()))
            if held and (held + weight(shard)) * len(self._workers) > self._left:
                break
            self._next = None
            self._waiting -= 1
            self._at_work += 1
            self._busy += not worker.shards
            worker.shards[shard.name] = shard
            self._hear(worker, shard, worker.actor.run.remote(shard))
        if not self._waiting and len(self._workers) > self._least:
            idle = (worker for worker in self._workers if not worker.shards)
            for worker in list(islice(idle, len(self._workers) - self._least)):
                self._dismiss(worker)

    def _hear(self, worker: _Worker, shard: Shard | None, answer: Any) -> None:
        # Not by ray.wait: with thousands in flight each call of it looks at every one.
        answer.future().add_done_callback(lambda done: self._arrived.put((worker, shard, done)))

    def _started(self, worker: _Worker, answer: Future[Any]) -> None:
        if worker not in self._workers:  # dismissed meanwhile
            return
        try:
            answer.result()
        except RayError as error:
            self._dismiss(worker)
            self._failed_starts += 1
            # A node that is lost takes all of its workers: that is the cluster's way, and a raise isn't.
            raised = getattr(error, "actor_init_failed", False)
            if self._failed_starts > _FAILED_STARTS + (0 if raised else self._most):
                raise
            return
        worker.ready = self._any_ready = True
        self._starting -= 1
        self._failed_starts = 0

    def _reported(self, worker: _Worker, shard: Shard, answer: Future[Any]) -> Report | None:
        """None: the shard is tried again."""
        del worker.shards[shard.name]
        self._at_work -= 1
        self._busy -= not worker.shards
        try:
            report: Report = answer.result()
        except RayTaskError as error:  # the call failed, not its process
            report = Report(shard.name, False, last_line(error))
        except RayError as error:
            self._dismiss(worker)  # its other shards come back the same way
            if shard.name not in self._lost_once:
                self._lost_once.add(shard.name)
                self._again.append(shard)
                self._waiting += 1
                return None
            report = Report(shard.name, False, f"its worker died: {last_line(error)}")
        self._left -= weight(shard)
        return report

    def _dismiss(self, worker: _Worker) -> None:
        if worker in self._workers:
            self._workers.remove(worker)
            self._starting -= not worker.ready
            worker.ready = False
            ray.kill(worker.actor)

    def _close(self) -> None:
        if self._at_work:
            self._stop()
        end = time.monotonic() + GRACE_S
        while self._at_work and (left := end - time.monotonic()) > 0:
            try:
                worker, shard, _ = self._arrived.get(timeout=left)
            except queue.Empty:
                break
            self._at_work -= shard is not None
        for worker in list(self._workers):
            self._dismiss(worker)


def weight(shard: Shard) -> int:
    """What a shard counts when work is shared out: its bytes, at least 1."""
    return max(1, shard.size)


def last_line(error: RayError) -> str:
    """Of Ray's pages about a death the line that says why."""
    return redact_text(str(error).strip().rpartition("\n")[2])
