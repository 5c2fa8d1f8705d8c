"""Ends a process that makes no progress: a hung shard must not hold its GPU for ever."""

from __future__ import annotations

import faulthandler
import threading


class Watchdog:
    """While it is entered (by any number of threads), ``stroke`` must be called every ``timeout_s`` seconds.

    Otherwise the process ends with status 1 and the trace of every thread on stderr. The standard library's own timer
    does it (``faulthandler.dump_traceback_later``), from a thread that needs no GIL, so a hang in C code is caught.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._entered = 0
        self._lock = threading.Lock()

    def stroke(self) -> None:
        with self._lock:
            if self._entered:
                # 2: the process's stderr, which Ray may have wrapped in something without a file number.
                faulthandler.dump_traceback_later(self.timeout_s, exit=True, file=2)

    def __enter__(self) -> Watchdog:
        with self._lock:
            self._entered += 1
        self.stroke()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._entered -= 1
            if not self._entered:
                faulthandler.cancel_dump_traceback_later()
