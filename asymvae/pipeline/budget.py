"""A bound on the bytes in flight."""

from __future__ import annotations

import threading


class ByteBudget:
    """Bytes that may be in flight at once; whoever wants more waits until others are done.

    A single cost above half the limit counts as half, so that one huge sample goes through alone instead of never.
    With a batcher whose ``span_bytes`` is half the limit, too, nothing can wait for ever: rows are released in input
    order, so if the oldest unreleased one waits for a batch, everything in flight lies in its span, which is at most
    half of the limit, and there is room for the next sample.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._used = 0
        self._changed = threading.Condition()
        self._closed = False

    def counted(self, cost: int) -> int:
        return min(cost, self.limit // 2)

    @property
    def used(self) -> int:
        """Bytes in flight now."""
        return self._used

    def acquire(self, cost: int) -> bool:
        """Take ``counted(cost)``; False if the budget was closed meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._used + self.counted(cost) <= self.limit)
            self._used += self.counted(cost)
            return not self._closed

    def release(self, cost: int) -> None:
        with self._changed:
            self._used -= self.counted(cost)
            self._changed.notify_all()

    def close(self) -> None:
        """Let every waiter go, with False: the shard has failed."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
