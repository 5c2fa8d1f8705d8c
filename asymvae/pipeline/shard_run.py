"""One shard, in one process, up to its parts: read | prepare | device | finish | spool. No Ray here.

    reader thread --> decode pool --> device thread --> encode pool --> calling thread
    (input order,     (prepare)       (batch plan,      (composite,     (rows, in input
     byte budget)                      launch)           encode)         order, to the spool)

Every sample is a ticket. Tickets reach the writing thread in input order, as they are read, and are redeemed with
rows by whichever step finishes them: so rows come out in input order, whatever the steps' timing.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, InvalidStateError, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

from asymvae.batch import Item
from asymvae.config import InpaintJob
from asymvae.faults import Fault
from asymvae.media.image import probe_size
from asymvae.pipeline.batcher import Batcher
from asymvae.pipeline.budget import ByteBudget
from asymvae.pipeline.clock import Clock
from asymvae.pipeline.device import Device, Done, Pending
from asymvae.pipeline.rows import Rows, error_rows, finish
from asymvae.pipeline.spool import Spool
from asymvae.stages.prepare import BYTES_A_PIXEL, BYTES_A_PIXEL_A_VARIANT, Planned, Prepare
from asymvae.storage.parts import Part
from asymvae.storage.samples import BadSample, FieldNames, Sample, read_shard
from asymvae.storage.shards import Shard

# Samples in flight however small they are, in batches and at least: reading further ahead fills memory, not batches.
_BATCHES_IN_FLIGHT = 16
_LEAST_IN_FLIGHT = 128
_LAUNCHED_AHEAD = 2  # batches on the device whose results nobody has begun to collect


class Progress(Protocol):
    """Told after every sample of a shard: how many are done, and their error rows by code so far."""

    def __call__(self, shard: Shard, samples: int, errors: dict[str, int]) -> None: ...


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
    cost: int
    prepared: Future[Planned | Fault] | None
    rows: Future[list[Rows]] = field(default_factory=Future)
    _by_variant: dict[int, Rows] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def redeem(self, variant: int, rows: Rows, variants: int) -> None:
        with self._lock:
            self._by_variant[variant] = rows
            if len(self._by_variant) == variants:
                self.rows.set_result([self._by_variant[number] for number in range(variants)])


def run_shard(
    shard: Shard, folder: Path, job: InpaintJob, device: Device, prepare: Prepare, progress: Progress
) -> ShardOutcome:
    """Read and fill ``shard``, and spool its parts into ``folder`` on the local disk. Commits nothing.

    Several shards may run next to each other in threads of one process; they share ``device``.

    Raises:
        Whatever the infrastructure raises (storage, device, disk); the first error of any thread. Faults of samples
        and of the shard's own format are rows instead.
    """
    with (
        Spool(folder) as spool,
        ThreadPoolExecutor(job.workers.cpu_threads, "decode") as decode_pool,
        ThreadPoolExecutor(job.workers.cpu_threads, "encode") as encode_pool,
    ):
        return _ShardRun(shard, job, device, prepare, progress, spool, decode_pool, encode_pool).run()


class _ShardRun:
    def __init__(
        self,
        shard: Shard,
        job: InpaintJob,
        device: Device,
        prepare: Prepare,
        progress: Progress,
        spool: Spool,
        decode_pool: ThreadPoolExecutor,
        encode_pool: ThreadPoolExecutor,
    ) -> None:
        self.shard, self.job, self.device, self.prepare, self.progress = shard, job, device, prepare, progress
        self.spool, self.decode_pool, self.encode_pool = spool, decode_pool, encode_pool
        limit = job.workers.buffer_mb * 2**20
        self.budget = ByteBudget(limit)
        self.least_cost = limit // max(_LEAST_IN_FLIGHT, _BATCHES_IN_FLIGHT * device.batches.most)
        self.batcher = Batcher(device.batch_size, waiting_bytes=limit // 4, span_bytes=limit // 2)
        # Both hold the same tickets; the byte budget bounds them.
        self.to_drive: queue.SimpleQueue[_Ticket | None] = queue.SimpleQueue()
        self.to_write: queue.SimpleQueue[_Ticket | None] = queue.SimpleQueue()
        self.launches = threading.Semaphore(_LAUNCHED_AHEAD)
        self.failure: Future[None] = Future()
        self.clock = Clock()
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
        names = self.job.input
        fields = FieldNames(names.image, names.mask, names.prompt, names.given, names.overrides, names.key)
        rows = read_shard(self.shard, fields)
        while True:
            with self.clock.timing("read"):
                row = next(rows, None)
            if row is None or not self._hand_out(row):
                break
        # Not where reading failed: the writer would take what was read until then for the whole shard.
        self._end()

    def _hand_out(self, row: Sample | BadSample) -> bool:
        cost = self.budget.counted(max(_cost(row, self.job.inpaint.variants), self.least_cost))
        if not self.budget.acquire(cost):
            return False
        if isinstance(row, BadSample):
            ticket = _Ticket(row.index, row.key, cost, None)
            ticket.rows.set_result([self._errors(ticket, row.fault)])
        else:
            prepared = self.decode_pool.submit(
                self.clock.timed, "prepare", self.prepare, row.index, row.key, row.fields
            )
            ticket = _Ticket(row.index, row.key, cost, prepared)
        self.to_drive.put(ticket)
        self.to_write.put(ticket)
        return True

    def _drive(self) -> None:
        """Plan batches from the prepared samples, in input order, and launch them."""
        while (ticket := self.to_drive.get()) is not None and not self.failure.done():
            planned = ticket.prepared.result() if ticket.prepared else None
            items: list[Item] = []
            if isinstance(planned, Fault):
                ticket.rows.set_result([self._errors(ticket, planned)])
            elif planned is not None:
                items = list(planned.items)
                for item in items:
                    item.owner = ticket
                if not items:
                    for variant in range(len(planned.seeds)):
                        self.encode_pool.submit(self._guard, self._finish, ticket, planned, variant, None)
            for batch in self.batcher.admit(items, ticket.cost):
                self._launch(batch)
        for batch in self.batcher.flush():
            self._launch(batch)

    def _launch(self, items: list[Item]) -> None:
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
            rows = finish(planned, variant, done, self.job)
        ticket.redeem(variant, rows, len(planned.seeds))

    def _errors(self, ticket: _Ticket, fault: Fault) -> Rows:
        return error_rows(fault, key=ticket.key, index=ticket.index, variants=self.job.inpaint.variants)

    def _write(self) -> ShardOutcome:
        counts = Counter(samples=0, planned=0, results=0, errors=0, shard_errors=0)
        by_code: Counter[str] = Counter()
        holes = 0.0
        while (ticket := self.to_write.get()) is not None:
            wait([cast(Future[object], ticket.rows), cast(Future[object], self.failure)], return_when=FIRST_COMPLETED)
            if self.failure.done():
                self.failure.result()
            if ticket.index is not None:
                counts["samples"] += 1
                counts["planned"] += self.job.inpaint.variants
            with self.clock.timing("write"):
                for rows in ticket.rows.result():
                    self.spool.write(rows)
                    counts["results"] += len(rows.results)
                    counts["errors" if ticket.index is not None else "shard_errors"] += len(rows.errors)
                    by_code.update(row["code"] for row in rows.errors)
                    holes += sum(row["hole_fraction"] for row in rows.metrics)
            # The sample's items know their ticket: without this cut its pixels would wait for the cycle collector.
            ticket.prepared = None
            self.budget.release(ticket.cost)
            self.progress(self.shard, counts["samples"], dict(by_code))
        if self.failure.done():
            self.failure.result()
        assert counts["planned"] == counts["results"] + counts["errors"], "a planned row is neither result nor error"
        mean_hole = holes / counts["results"] if counts["results"] else None
        return ShardOutcome([], dict(counts), dict(by_code), mean_hole, {})


def _cost(row: Sample | BadSample, variants: int) -> int:
    """Bytes that a sample holds at its peak, from its header alone: a function of the input, never of the moment."""
    if isinstance(row, BadSample):
        return 1024
    stored = sum(map(len, row.fields.values()))
    size = probe_size(row.fields["image"]) if "image" in row.fields else None
    a_pixel = BYTES_A_PIXEL + BYTES_A_PIXEL_A_VARIANT * (variants - 1)
    return stored + (a_pixel * size[0] * size[1] if isinstance(size, tuple) else 0)
