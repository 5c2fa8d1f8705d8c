"""Ends a process that makes no progress: a hung shard must not hold its GPU for ever."""

from __future__ import annotations

import faulthandler
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Watchdog:
    """Watches any number of tasks at once: each must be told of (``stroke``) every ``timeout_s`` seconds.

    Otherwise the process ends with status 1 and the trace of every thread on stderr. The standard library's own timer
    does it (``faulthandler.dump_traceback_later``), from a thread that needs no GIL, so a hang in C code is caught.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._last: dict[str, float] = {}
        self._lock = threading.Lock()

    def stroke(self, task: str) -> None:
        """``task`` has moved on. One that is not watched is not minded."""
        with self._lock:
            if task in self._last:
                self._last[task] = time.monotonic()
                self._set()

    @contextmanager
    def watching(self, task: str) -> Iterator[None]:
        with self._lock:
            self._last[task] = time.monotonic()
            self._set()
        try:
            yield
        finally:
            with self._lock:
                del self._last[task]
                self._set()

    def _set(self) -> None:
        """The one timer goes by the task that has been still for longest."""
        if not self._last:
            faulthandler.cancel_dump_traceback_later()
            return
        left = self.timeout_s - (time.monotonic() - min(self._last.values()))
        # 2: the process's stderr, which Ray may have wrapped in something without a file number.
        faulthandler.dump_traceback_later(max(left, 0.001), exit=True, file=2)
