"""A worker whose device is a clock. It imports no torch, so that many fit one machine."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from os import getpid
from typing import Any, Final

import psutil

from asymvae.pipeline.recipe import Recipe
from asymvae.pipeline.reports import Report
from asymvae.storage.ledger import Ledger, commit_id
from asymvae.storage.shards import Shard

SIZE_OF_A_SECOND: Final = 1_000_000  # bytes of a shard that takes one second
_TELL_EVERY_S: Final = 0.5
_COUNTS: Final = {"samples": 0, "planned": 0, "results": 0, "errors": 0, "shard_errors": 0}


class SimulatedWorker:
    """In the place of RayShardWorker: waits for a shard's time, one shard after the other, tells the board as a real
    one does, and commits a real record. Its reports say in ``stages``: ``device`` and ``commit``, in s; ``ready``, when
    it could take its first shard, in s since 1970; ``ended``, when it had committed this one, by the machine's
    perf_counter; ``resident``, of its process, in MiB."""

    def __init__(self, recipe: Recipe, board: Any) -> None:
        self._ledger, self._fingerprint, self._board = Ledger(recipe.job.output.url), recipe.fingerprint, board
        self._device = threading.Lock()
        self._ready = time.time()

    def run(self, shard: Shard) -> Report:
        began = time.perf_counter()
        with self._device:
            taken = time.perf_counter()
            end = taken + shard.size / SIZE_OF_A_SECOND
            while (left := end - time.perf_counter()) > 0:
                time.sleep(min(left, _TELL_EVERY_S))
                self._board.tell.remote(shard.name, 0, {})
            device = time.perf_counter() - taken
        started = time.perf_counter()
        run = {"started": datetime.now(UTC).isoformat(), "seconds": device}
        self._ledger.commit(shard, commit_id(self._fingerprint, shard), [], _COUNTS, run)
        ended = time.perf_counter()
        stages = {"device": device, "commit": ended - started, "ready": self._ready, "ended": ended}
        stages["resident"] = psutil.Process().memory_full_info().pss / 2**20
        return Report(shard.name, True, counts=_COUNTS, worker=str(getpid()), seconds=ended - began, stages=stages)
