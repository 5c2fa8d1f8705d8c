"""One shard, in one process, up to its parts: read | prepare | device | finish | spool. No Ray here.

    reader thread --> decode pool --> device thread --> encode pool --> calling thread
    (input order,     (prepare)       (batch plan,      (rows of        (rows, in input
     byte budget)                      launch)           parts)          order, to the spool)

Every sample is a ticket. Tickets reach the writing thread in input order, as they are read, and are redeemed with
rows by whichever step finishes them: so rows come out in input order, whatever the steps' timing.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, InvalidStateError, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from asymvae.faults import Fault
from asymvae.pipeline.batcher import Batcher
from asymvae.pipeline.budget import ByteBudget
from asymvae.pipeline.clock import Clock
from asymvae.pipeline.device import Device, Pending
from asymvae.pipeline.kinds.base import Done, Entry, Kind, Planned, Work
from asymvae.pipeline.rows import Rows, error_row
from asymvae.pipeline.spool import Spool
from asymvae.storage.parts import Part
from asymvae.storage.samples import BadSample
from asymvae.storage.shards import Shard

# Samples in flight however small they are, in batches and at least: reading further ahead fills memory, not batches.
_BATCHES_IN_FLIGHT = 16
_LEAST_IN_FLIGHT = 128
_BAD_COST = 1024
_LAUNCHED_AHEAD = 2  # batches on the device whose results nobody has begun to collect


class Vitals:
    """What a running shard is at, for whoever watches: read by other threads while it changes."""

    def __init__(self, clock: Clock, budget: ByteBudget, batcher: Batcher) -> None:
        self._clock, self._budget, self._batcher = clock, budget, batcher

    def seconds(self) -> dict[str, float]:
        """By stage, summed over threads."""
        return self._clock.seconds()

    @property
    def in_flight(self) -> int:
        """Bytes of the samples that were read and aren't written yet."""
        return self._budget.used

    @property
    def batching(self) -> int:
        """Of these, the bytes that wait for a batch."""
        return self._batcher.waiting


class Progress(Protocol):
    """Told after every sample of a shard: how many are done, their error rows by code so far, and what the shard is
    at (None before it begins)."""

    def __call__(self, shard: Shard, samples: int, errors: dict[str, int], vitals: Vitals | None) -> None: ...


@dataclass(slots=True)
class ShardOutcome:
    """A shard's parts on the local disk, ready to be committed, and what the commit says of them."""

    parts: list[Part]
    counts: dict[str, int]
    errors_by_code: dict[str, int]
    mean_hole_fraction: float | None  # over results
    seconds: dict[str, float]  # by stage, summed over threads: they may exceed `wall`
    degraded: bool = False  # a batch of it ran smaller than planned, for want of memory

    @property
    def complete(self) -> bool:
        """False: a fault of the shard itself, such as a cut tar."""
        return self.counts["shard_errors"] == 0


@dataclass(slots=True)
class _Ticket:
    """One sample's place in the output; ``rows`` is set when all its variants are finished."""

    index: int | None
    key: str | None
    variants: Sequence[int]
    cost: int
    prepared: Future[Planned | Fault] | None
    rows: Future[list[Rows]] = field(default_factory=Future)
    _by_variant: dict[int, Rows] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def redeem(self, variant: int, rows: Rows) -> None:
        with self._lock:
            self._by_variant[variant] = rows
            if len(self._by_variant) == len(self.variants):
                self.rows.set_result([self._by_variant[number] for number in self.variants])

    def fail(self, fault: Fault) -> None:
        """A row for every variant that was planned of the sample; one, without a variant, for a fault of the shard."""
        variants: Sequence[int | None] = [None] if self.index is None else self.variants
        self.rows.set_result([self.error(fault, variant) for variant in variants])

    def error(self, fault: Fault, variant: int | None) -> Rows:
        return error_row(fault, key=self.key, index=self.index, variant=variant)


def run_shard(shard: Shard, folder: Path, kind: Kind[Any], device: Device, progress: Progress) -> ShardOutcome:
    """Run ``shard`` as ``kind`` of job, and spool its parts into ``folder`` on the local disk. Commits nothing.

    Several shards may run next to each other in threads of one process; they share ``device`` and ``kind``.

    Raises:
        Whatever the infrastructure raises (storage, device, disk); the first error of any thread. Faults of samples
        and of the shard's own format are rows instead.
    """
    threads = kind.job.workers.cpu_threads
    with (
        Spool(folder, kind.schema, kind.row_group_bytes) as spool,
        ThreadPoolExecutor(threads, "decode") as decode_pool,
        ThreadPoolExecutor(threads, "encode") as encode_pool,
    ):
        return _ShardRun(shard, folder, kind, device, progress, spool, decode_pool, encode_pool).run()


class _ShardRun:
    def __init__(
        self,
        shard: Shard,
        folder: Path,
        kind: Kind[Any],
        device: Device,
        progress: Progress,
        spool: Spool,
        decode_pool: ThreadPoolExecutor,
        encode_pool: ThreadPoolExecutor,
    ) -> None:
        self.shard, self.folder, self.kind, self.device, self.progress = shard, folder, kind, device, progress
        self.spool, self.decode_pool, self.encode_pool = spool, decode_pool, encode_pool
        limit = kind.job.workers.buffer_mb * 2**20
        self.budget = ByteBudget(limit)
        self.least_cost = limit // max(_LEAST_IN_FLIGHT, _BATCHES_IN_FLIGHT * device.batches.most)
        self.batcher = Batcher(device.batch_size, waiting_bytes=limit // 4, span_bytes=limit // 2)
        # Both hold the same tickets; the byte budget bounds them.
        self.to_drive: queue.SimpleQueue[_Ticket | None] = queue.SimpleQueue()
        self.to_write: queue.SimpleQueue[_Ticket | None] = queue.SimpleQueue()
        self.launches = threading.Semaphore(_LAUNCHED_AHEAD)
        self.failure: Future[None] = Future()
        self.clock = Clock()
        self.vitals = Vitals(self.clock, self.budget, self.batcher)
        self.degraded = False

    def run(self) -> ShardOutcome:
        started = time.perf_counter()
        threads = [threading.Thread(target=self._guard, args=(step,)) for step in (self._read, self._drive)]
        for thread in threads:
            thread.start()
        try:
            outcome = self._write()
        except BaseException as error:
            self._fail(error)  # the threads end at the next thing they wait for
            raise
        finally:
            for thread in threads:
                thread.join()
        with self.clock.timing("write"):
            outcome.parts = self.spool.close()
        self.clock.add("wall", time.perf_counter() - started)
        outcome.seconds = self.clock.seconds()
        outcome.degraded = self.degraded
        return outcome

    # --- what every thread and task runs under ------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        with contextlib.suppress(InvalidStateError):  # the first error of any thread is the shard's
            self.failure.set_exception(error)
        self.budget.close()
        self._end()

    def _end(self) -> None:
        """Nothing more comes: wake the threads that wait for tickets."""
        self.to_drive.put(None)
        self.to_write.put(None)

    def _guard(self, step: Callable[..., None], *args: object) -> None:
        """Run a step of another thread; its error becomes the shard's."""
        try:
            step(*args)
        except BaseException as error:  # noqa: BLE001  handed to the thread that waits for this one
            self._fail(error)

    # --- the steps ----------------------------------------------------------------------------------------------

    def _read(self) -> None:
        rows = self.kind.read(self.shard, self.folder)
        while True:
            with self.clock.timing("read"):
                row = next(rows, None)
            if row is None or not self._hand_out(row):
                break
        # Not where reading failed: the writer would take what was read until then for the whole shard.
        self._end()

    def _hand_out(self, row: Entry | BadSample) -> bool:
        bad = isinstance(row, BadSample)
        cost = self.budget.counted(max(_BAD_COST if bad else self.kind.cost(row), self.least_cost))
        if not self.budget.acquire(cost):
            return False
        ticket = _Ticket(row.index, row.key, self.kind.numbers(row), cost, None)
        if isinstance(row, BadSample):
            ticket.fail(row.fault)
        else:
            ticket.prepared = self.decode_pool.submit(self.clock.timed, "prepare", self.kind.prepare, row)
        self.to_drive.put(ticket)
        self.to_write.put(ticket)
        return True

    def _drive(self) -> None:
        """Plan batches from the prepared samples, in input order, and launch them."""
        while (ticket := self.to_drive.get()) is not None and not self.failure.done():
            planned = ticket.prepared.result() if ticket.prepared else None
            items: list[Work] = []
            if isinstance(planned, Fault):
                ticket.fail(planned)
            elif planned is not None:
                items = list(planned.items)
                for item in items:
                    item.owner = ticket
                if items:
                    self._shrink(ticket, planned)
                else:
                    for variant in ticket.variants:
                        self.encode_pool.submit(self._guard, self._finish, ticket, planned, variant, None)
            for batch in self.batcher.admit(items, ticket.cost):
                self._launch(batch)
        for batch in self.batcher.flush():
            self._launch(batch)

    def _shrink(self, ticket: _Ticket, planned: Planned) -> None:
        """Give back what the sample took only while it was prepared. The writer can't have seen it yet."""
        held = max(self.least_cost, min(ticket.cost, self.kind.held(planned, ticket.cost)))
        self.budget.release(ticket.cost - held)
        ticket.cost = held

    def _launch(self, items: list[Work]) -> None:
        self.launches.acquire()
        if self.failure.done():
            self.launches.release()
            return
        pending, seconds = self.device.launch(items)
        self.degraded |= pending.degraded
        self.clock.add("device", seconds)
        self.encode_pool.submit(self._guard, self._collect, pending)

    def _collect(self, pending: Pending) -> None:
        try:
            dones = pending.result()
        finally:
            self.launches.release()
        for done in dones:
            ticket: _Ticket = done.item.owner
            assert ticket.prepared is not None
            planned = ticket.prepared.result()
            assert not isinstance(planned, Fault)
            self.encode_pool.submit(self._guard, self._finish, ticket, planned, done.item.variant, done)

    def _finish(self, ticket: _Ticket, planned: Planned, variant: int, done: Done | None) -> None:
        with self.clock.timing("finish"):
            rows = done.fault if done and done.fault else self.kind.finish(planned, variant, done)
        ticket.redeem(variant, ticket.error(rows, variant) if isinstance(rows, Fault) else rows)

    def _write(self) -> ShardOutcome:
        counts = Counter(samples=0, planned=0, results=0, errors=0, shard_errors=0)
        by_code: Counter[str] = Counter()
        holes: list[float] = []
        while (ticket := self.to_write.get()) is not None:
            wait([cast(Future[object], ticket.rows), cast(Future[object], self.failure)], return_when=FIRST_COMPLETED)
            if self.failure.done():
                self.failure.result()
            if ticket.index is not None:
                counts["samples"] += 1
                counts["planned"] += len(ticket.variants)
            with self.clock.timing("write"):
                for rows in ticket.rows.result():
                    self.spool.write(rows)
                    if "errors" in rows:
                        counts["errors" if ticket.index is not None else "shard_errors"] += 1
                        by_code[rows["errors"]["code"]] += 1
                    else:
                        counts["results"] += 1
                    hole_fraction = rows.get("metrics", {}).get("hole_fraction")
                    if hole_fraction is not None:
                        holes.append(hole_fraction)
            # The sample's items know their ticket: without this cut its pixels would wait for the cycle collector.
            ticket.prepared = None
            self.budget.release(ticket.cost)
            self.progress(self.shard, counts["samples"], dict(by_code), self.vitals)
        if self.failure.done():
            self.failure.result()
        assert counts["planned"] == counts["results"] + counts["errors"], "a planned row is neither result nor error"
        mean_hole = sum(holes) / len(holes) if holes else None
        return ShardOutcome([], dict(counts), dict(by_code), mean_hole, {})
