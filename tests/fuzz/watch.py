"""Cases in a child process whose end, time and memory are watched from outside."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import select
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

MIB = 2**20
CASE_BYTES = 1024 * MIB  # of memory in use, above what the process had before: one field of a shard may take half
_ADDRESSES = 4096 * MIB  # above that: not even asked for
_PATIENCE = 12  # times the limit of a case, that a case may take on the clock: the machine may be busy

Run = Callable[[int], tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Result:
    """What became of case ``number``. ``peak``: bytes above the process's own, 0 where it ended."""

    number: int
    outcome: str
    details: str
    peak: int
    seconds: float


def watched(run: Run, numbers: range, *, limit_s: float, log: Path, limit_bytes: int = CASE_BYTES) -> Iterator[Result]:
    """``run`` of every number, in order, in a child that is forked again when it ends.

    Broken as ``!...``: what ``run`` says is; a process that ends by a signal; more than ``limit_s`` of CPU, or twelve
    times as long by the clock; more than ``limit_bytes`` of memory. ``log``: where a crash leaves its trace.
    """
    start = numbers.start
    while start < numbers.stop:
        log.write_bytes(b"")
        for result in _one_child(run, range(start, numbers.stop), limit_s, limit_bytes, log):
            start = result.number + 1
            yield result


def _one_child(run: Run, numbers: range, limit_s: float, limit_bytes: int, log: Path) -> Iterator[Result]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _be_child(run, numbers, writer, limit_bytes, log)
    os.close(writer)
    number, ended = numbers.start, False
    try:
        with os.fdopen(reader, "r", encoding="utf-8") as lines:
            watch = _Watch(pid, limit_s)
            while number < numbers.stop:
                why = watch.wait(lines)
                if why is None and (line := lines.readline()).endswith("\n"):
                    said = json.loads(line)
                    result = Result(*said)
                    watch.begin()
                    number = result.number + 1
                    yield result
                    continue
                if why is not None:
                    os.kill(pid, signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
                ended = True
                if why is None and os.WIFSIGNALED(status):
                    why = f"!{signal.Signals(os.WTERMSIG(status)).name}"
                elif why is None and os.WEXITSTATUS(status) == 0:
                    return  # it asked for a fresh process
                yield Result(number, why or f"!exit {os.WEXITSTATUS(status)}", log.read_text("utf-8", "replace"), 0, 0)
                return
    finally:
        if not ended:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


class _Watch:
    """How long the case in progress has taken, of the processor and by the clock."""

    def __init__(self, pid: int, limit_s: float) -> None:
        self._stat = Path(f"/proc/{pid}/stat")
        self._limit = limit_s
        self.begin()

    def begin(self) -> None:
        self._cpu, self._clock = self._used(), time.monotonic()

    def wait(self, lines: IO[str]) -> str | None:
        """None: there is a line, or an end. Else why there is none."""
        # One line is written a case, and read before the next wait: nothing lies in the buffer of `lines`.
        while not select.select([lines], [], [], 0.25)[0]:
            used, waited = self._used() - self._cpu, time.monotonic() - self._clock
            starved = self._fields()[0] == "R"  # it would run, if the machine let it
            if used > self._limit or (waited > self._limit * _PATIENCE and not starved):
                return f"!hang ({'of the processor' if used > self._limit else 'by the clock'})"
        return None

    def _fields(self) -> list[str]:
        return self._stat.read_text().rpartition(")")[2].split()

    def _used(self) -> float:
        fields = self._fields()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _be_child(run: Run, numbers: range, writer: int, limit_bytes: int, log: Path) -> NoReturn:
    status = 1
    try:
        with log.open("wb") as trace:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to heed
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            faulthandler.disable()  # where it is on it leaves handlers as they are, and Ray puts its own there
            faulthandler.enable(trace)
            warnings.simplefilter("ignore")
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what libtiff has to say
            _limit_addresses()
            own = _reset_peak()
            for number in numbers:
                begun = time.process_time()
                outcome, details = run(number)
                peak = _peak() - own
                if peak > limit_bytes and not outcome.startswith("!"):
                    outcome, details = "!memory", f"{outcome}; {peak / MIB:.0f} MiB"
                line = json.dumps([number, outcome, details, peak, time.process_time() - begun])
                _write(writer, line.encode() + b"\n")
                if outcome.startswith("!") or _reset_peak() > own + 256 * MIB:
                    break  # what is left of a broken case doesn't reach the next
            status = 0
    finally:
        os._exit(status)


def _write(writer: int, data: bytes) -> None:
    while data:
        data = data[os.write(writer, data) :]


def _limit_addresses() -> None:
    limit = _status("VmSize") + _ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _peak() -> int:
    return _status("VmHWM")


def _reset_peak() -> int:
    """The peak forgotten; what is in use now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise ValueError(name)
