"""An iterator that another thread runs ahead of, by a bounded number of bytes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class ReadAhead(Generic[T]):
    """``items`` in their order, made in a thread.

    The thread waits while it is ``most`` bytes or more ahead, as ``size`` counts them, so one item may go over. What
    ``items`` raises is raised here, in its place. :meth:`close` ends the thread, after the item it is at.
    """

    def __init__(self, items: Generator[T, None, None], size: Callable[[T], int], most: int) -> None:
        self._items, self._size, self._most = items, size, most
        self._made: deque[T] = deque()
        self._bytes = 0
        self._ended = self._closed = False
        self._error: BaseException | None = None
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="latents-ahead", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            for item in self._items:
                with self._change:
                    self._made.append(item)
                    self._bytes += self._size(item)
                    self._change.notify_all()
                    self._change.wait_for(lambda: self._closed or self._bytes < self._most)
                    if self._closed:
                        break
        except BaseException as raised:  # noqa: BLE001 - raised again in the thread that reads
            error = raised
        self._items.close()
        with self._change:
            self._error, self._ended = error, True
            self._change.notify_all()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._change:
            self._change.wait_for(lambda: self._made or self._ended)
            if not self._made:
                if self._error is not None:
                    raise self._error
                raise StopIteration
            item = self._made.popleft()
            self._bytes -= self._size(item)
            self._change.notify_all()
            return item

    def close(self) -> None:
        with self._change:
            self._closed = True
            self._change.notify_all()
        self._thread.join()
        self._made.clear()
