"""A worker's numbers for Prometheus and Ray's dashboard, which puts ``ray_`` before their names.

Ray exports them from every node (docs.ray.io, "Collecting and monitoring metrics"); a worker's own labels, such as its
node's address, come from Ray. Counters count work done: a shard that is run again counts again.
"""

from __future__ import annotations

import threading
import time
from collections import Counter as Tally
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from ray.util.metrics import Counter, Gauge, Histogram

from asymvae.pipeline.device import Device
from asymvae.pipeline.reports import Report
from asymvae.pipeline.shard_run import Vitals
from asymvae.storage import retry

_SHARD_SECONDS: Final = [1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0]
_SHARES_EVERY_S: Final = 2.0  # shares are of the time since they were last taken


@dataclass(slots=True)
class _Counted:
    """Of a running shard, what the counters have already."""

    samples: int = 0
    errors: Tally[str] = field(default_factory=Tally)
    seconds: Tally[str] = field(default_factory=Tally)
    vitals: Vitals | None = None


class Metrics:
    """Every number of one worker, whose shards tell it from threads of their own.

    README, "Watching a job", has them in a table.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._running: dict[str, _Counted] = {}
        self._retries = retry.waits()
        self._looked, self._busy_before, self._rows_before, self._places_before = time.monotonic(), 0.0, 0, 0
        self._samples = Counter("asymvae_samples_total", "Samples finished, as results or as error rows")
        self._errors = Counter("asymvae_errors_total", "Error rows, by code", tag_keys=("code",))
        self._read = Counter("asymvae_bytes_read_total", "Bytes of the shards that were committed")
        self._written = Counter("asymvae_bytes_written_total", "Bytes of the parts that were committed")
        self._seconds = Counter(
            "asymvae_stage_seconds_total", "Seconds by stage, summed over a worker's threads", tag_keys=("stage",)
        )
        self._shards = Counter("asymvae_shards_total", "Shards that ended, by outcome", tag_keys=("outcome",))
        self._shard_seconds = Histogram(
            "asymvae_shard_seconds", "Seconds from a shard's start to its commit", boundaries=_SHARD_SECONDS
        )
        self._queue = Gauge("asymvae_queue_bytes", "Bytes in a worker's memory, by where", tag_keys=("queue",))
        self._busy = Gauge("asymvae_device_busy_ratio", "Share of the time in which the device's thread had work")
        self._fill = Gauge("asymvae_batch_fill_ratio", "Samples in batches over places in them")
        self._waits = Counter("asymvae_storage_retries_total", "Requests to a store that were tried again")

    def tell(self, shard: str, samples: int, errors: Mapping[str, int], vitals: Vitals | None) -> None:
        """How far a running shard is. ``errors``: rows so far, by code; ``vitals``: None before it begins."""
        with self._lock:
            counted = self._running.setdefault(shard, _Counted())
            counted.vitals = vitals
            self._count(counted, samples, errors, vitals.seconds() if vitals else {})
            self._look()

    def end(self, report: Report, read: int) -> None:
        """A shard has ended. ``read``: its bytes, which count where it was committed."""
        with self._lock:
            counted = self._running.pop(report.shard, _Counted())
            self._shards.inc(1, {"outcome": "committed" if report.committed else "failed"})
            if report.committed:
                self._count(counted, report.counts["samples"], report.errors_by_code, report.stages)
                self._shard_seconds.observe(report.seconds)
                _add(self._read, read)
                _add(self._written, report.bytes_written)
            self._look()

    def _count(self, counted: _Counted, samples: int, errors: Mapping[str, int], seconds: Mapping[str, float]) -> None:
        _add(self._samples, samples - counted.samples)
        counted.samples = max(samples, counted.samples)
        for code, rows in errors.items():
            _add(self._errors, rows - counted.errors[code], {"code": code})
            counted.errors[code] = max(rows, counted.errors[code])
        for stage, spent in seconds.items():
            if stage != "wall":
                _add(self._seconds, spent - counted.seconds[stage], {"stage": stage})
                counted.seconds[stage] = max(spent, counted.seconds[stage])  # type: ignore[assignment]

    def _look(self) -> None:
        now, device, waits = time.monotonic(), self._device, retry.waits()
        _add(self._waits, waits - self._retries)
        self._retries = waits
        alive = [counted.vitals for counted in self._running.values() if counted.vitals]
        self._queue.set(sum(vitals.in_flight for vitals in alive), {"queue": "in_flight"})
        self._queue.set(sum(vitals.batching for vitals in alive), {"queue": "batching"})
        if now - self._looked >= _SHARES_EVERY_S:
            self._busy.set(min(1.0, (device.busy_s - self._busy_before) / (now - self._looked)))
            if device.places > self._places_before:
                self._fill.set((device.rows - self._rows_before) / (device.places - self._places_before))
            self._looked, self._busy_before = now, device.busy_s
            self._rows_before, self._places_before = device.rows, device.places


def _add(counter: Counter, amount: float, tags: dict[str, str] | None = None) -> None:
    if amount > 0:  # Ray refuses 0
        counter.inc(amount, tags or {})
