"""Live progress of a job: a bar on a terminal, a line every ten seconds otherwise."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import IO, Any

import ray
from tqdm import tqdm

_LINE_EVERY_S = 10.0


class Tally:
    """Samples and errors of every shard that was heard of. A shard's latest news replaces its earlier ones, so that
    one that is run again isn't counted twice; what its report says is the last word, since news may be late."""

    def __init__(self) -> None:
        self.listener: Callable[[], None] = lambda: None  # called after every news
        self.samples = 0
        self.errors: Counter[str] = Counter()
        self._running: dict[str, tuple[int, dict[str, int]]] = {}
        self._settled: set[str] = set()

    def tell(self, shard: str, samples: int, errors: dict[str, int]) -> None:
        if shard not in self._settled:
            before, errors_before = self._running.get(shard, (0, {}))
            self._running[shard] = (samples, errors)
            self.samples += samples - before
            self.errors.subtract(errors_before)
            self.errors.update(errors)
            self.errors = +self.errors  # drops codes at 0
            self.listener()

    def settle(self, shard: str, samples: int, errors: dict[str, int]) -> None:
        self.tell(shard, samples, errors)
        self._settled.add(shard)
        self._running.pop(shard, None)


@ray.remote(num_cpus=0)
class Board:
    """Where workers leave their news; the driver fetches it, so that news costs a worker no waiting. The answer to
    news is whether the run has been stopped."""

    def __init__(self) -> None:
        self._news: dict[str, tuple[int, dict[str, int]]] = {}
        self._stopped = False

    def tell(self, shard: str, samples: int, errors: dict[str, int]) -> bool:
        self._news[shard] = (samples, errors)
        return self._stopped

    def stop(self) -> None:
        """Every worker gives its shards up when it next looks at an answer."""
        self._stopped = True

    def take(self) -> dict[str, tuple[int, dict[str, int]]]:
        """What has come since the last call."""
        news, self._news = self._news, {}
        return news


class Display:
    """Shows a tally while a job runs.

    On a terminal: a bar over shards with samples, samples/s and errors; elsewhere a line every ten seconds.
    """

    def __init__(self, shards: int, done: int, tally: Tally, stream: IO[str] | None = None) -> None:
        self.stream = stream or sys.stderr
        self.shards, self.done, self.done_before, self.tally = shards, done, done, tally
        self._started = self._shown = time.monotonic()
        self._bar: tqdm[Any] | None = None
        if self.stream.isatty():
            self._bar = tqdm(total=shards, initial=done, unit="shard", file=self.stream, dynamic_ncols=True)

    def refresh(self, done: int) -> None:
        """``done``: shards that are finished, those of earlier runs included."""
        if self._bar is not None:
            self._bar.n = done
            self._bar.set_postfix_str(self._samples())
        elif time.monotonic() - self._shown >= _LINE_EVERY_S:
            self._shown = time.monotonic()
            print(self._line(done), file=self.stream, flush=True)
        self.done = done

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        print(self._line(self.done), file=self.stream, flush=True)

    def _samples(self) -> str:
        rate = self.tally.samples / max(time.monotonic() - self._started, 1e-9)
        return f"{self.tally.samples} samples, {rate:.2f}/s, {self.tally.errors.total()} errors"

    def _line(self, done: int) -> str:
        eta = ""
        if self.done_before < done < self.shards:
            seconds = (time.monotonic() - self._started) / (done - self.done_before) * (self.shards - done)
            eta = f", about {seconds / 60:.0f} min left"
        return f"{self._samples()}, {done} of {self.shards} shards{eta}"
