"""SIGINT and SIGTERM: the first ends a job where that leaves nothing half done, the second at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """Raised in the main thread by the first signal. ``exit_code``: 128 and the signal's number, as shells have it."""

    def __init__(self, number: int) -> None:
        self.name = signal.Signals(number).name
        self.exit_code = 128 + number
        super().__init__(self.name)


class Interruption:
    """What the first signal does: it raises :class:`Interrupted` there and then, or where :meth:`look` is called.

    Python raises between any two instructions, also between making a file and noting that it is to be removed: so
    whoever makes such things is run under :meth:`held`, and looks. Without :meth:`heard` signals are as they were.
    """

    def __init__(self) -> None:
        self._number = 0
        self._held = False

    @contextmanager
    def heard(self) -> Iterator[Interruption]:
        """Inside, the first SIGINT or SIGTERM interrupts; any later one ends the process there and then.

        Without effect outside the main thread, which alone may set handlers.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        try:
            yield self
        except KeyboardInterrupt as error:
            # Where Ray waits in C it takes what the handler raises for a sign, and raises one of these itself.
            if self._number and not isinstance(error, Interrupted):
                raise Interrupted(self._number) from error
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, a signal waits for :meth:`look`, or for the end."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self.look()

    def look(self) -> None:
        """Raises Interrupted if a signal has come."""
        if self._number:
            raise Interrupted(self._number)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._number:
            os._exit(128 + number)  # nothing of ours runs any more; what is committed stays, and a rerun sweeps
        self._number = number
        if not self._held:
            raise Interrupted(number)
