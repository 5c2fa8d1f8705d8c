"""Mutated files at every door of the library, for as long as you like. Run by hand.

``python -m tests.fuzz.doors --minutes 60 --seed 0`` takes real files and small ones of every format, changes bytes of
them, and hands them to the door in a child process. What comes out is a value within the door's limits or a fault that
it declares; anything else is written below ``--out``: another exception, a broken law, the end of the process, more
than 5 s of CPU or more than 1 GiB of memory a case. Exit code 1 if there was any.

``python -m tests.fuzz.doors --repeat FILE`` hands one of those files to its door again, in the same way.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import cv2
import pyarrow as pa

from tests.fuzz.cases import DOORS, Case, make_case, outcome
from tests.fuzz.seeds import seeds
from tests.fuzz.watch import CASE_BYTES, MIB, Result, watched

_KEPT = 3  # files of one kind of finding
_EVERY_S = 10


class Tally:
    """Outcomes by door, and what was found."""

    def __init__(self, out: Path, door: str, seed: int) -> None:
        self.out, self.door, self.seed = out, door, seed
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.found: Counter[tuple[str, str]] = Counter()
        self.peaks: Counter[str] = Counter()
        self.slowest: dict[str, float] = {}
        self.started = time.monotonic()

    @property
    def cases(self) -> int:
        return self.outcomes.total()

    def add(self, result: Result) -> None:
        door = DOORS[self.door][result.number % len(DOORS[self.door])]
        self.outcomes[door, result.outcome] += 1
        self.peaks[door] = max(self.peaks[door], result.peak)
        self.slowest[door] = max(self.slowest.get(door, 0.0), result.seconds)
        if not result.outcome.startswith("!"):
            return
        self.found[door, result.outcome] += 1
        if self.found[door, result.outcome] <= _KEPT:
            case = make_case(self.door, self.seed, result.number)
            path = self.out / f"{door}-seed{self.seed}-{result.number}.bin"
            path.write_bytes(case.data)
            path.with_suffix(".txt").write_text(f"{result.outcome}\n{case.history}\n\n{result.details}")
            print(f"  FOUND {door} {result.outcome}: {path}", flush=True)

    def line(self) -> str:
        seconds = time.monotonic() - self.started
        codes: Counter[str] = Counter()
        for (_, code), count in self.outcomes.items():
            codes[code.split(" at ")[0]] += count
        most = ", ".join(f"{code} {count}" for code, count in codes.most_common(8))
        peak = max(self.peaks.values(), default=0) / MIB
        return f"{seconds:6.0f} s  {self.cases} cases  {self.cases / seconds:.0f}/s  peak +{peak:.0f} MiB  {most}"

    def table(self) -> str:
        lines = [
            "| door | cases | outcomes | slowest, CPU s | peak, MiB above the process's own |",
            "|---|---|---|---|---|",
        ]
        for door in sorted(self.peaks):
            of_it = Counter({code: count for (one, code), count in self.outcomes.items() if one == door})
            codes = ", ".join(f"{code} {count}" for code, count in of_it.most_common())
            peak = self.peaks[door] / MIB
            lines.append(f"| {door} | {of_it.total()} | {codes} | {self.slowest[door]:.2f} | {peak:.0f} |")
        return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m tests.fuzz.doors", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="how long; 60 is the long form")
    parser.add_argument("--cases", type=int, default=10**9, help="how many at most")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other cases")
    parser.add_argument("--door", choices=DOORS, default="all", help="parquet: of images, and of latents")
    parser.add_argument("--out", type=Path, default=Path("out/fuzz"), help="folder for what is found")
    parser.add_argument("--repeat", type=Path, metavar="FILE", help="one file that was found, once more")
    flags = parser.parse_args()
    # Before anything is read: the child is forked, and threads of a pool would not come along.
    cv2.setNumThreads(1)
    pa.set_cpu_count(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    flags.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        return _repeat(flags.repeat, Path(scratch)) if flags.repeat else _loop(flags, Path(scratch))


def _loop(flags: argparse.Namespace, scratch: Path) -> int:
    tally = Tally(flags.out, flags.door, flags.seed)
    bound = f"{CASE_BYTES // MIB} MiB and 5 s of CPU a case"
    print(f"door {flags.door}, seed {flags.seed}, from case {flags.first}; bound: {bound}", flush=True)
    for number, door in enumerate(dict.fromkeys(DOORS[flags.door])):  # imports, once for all children
        whole = next(iter(seeds(door, real=False).values()))
        outcome(Case(door, number, whole, ""), scratch)

    def run(number: int) -> tuple[str, str]:
        return outcome(make_case(flags.door, flags.seed, number), scratch)

    said = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended early, it says what it has seen
    numbers = range(flags.first, flags.first + flags.cases)
    with contextlib.suppress(KeyboardInterrupt):
        for result in watched(run, numbers, limit_s=5, log=scratch / "crash.log"):
            tally.add(result)
            if time.monotonic() - said > _EVERY_S:
                said = time.monotonic()
                print(tally.line(), flush=True)
            if time.monotonic() - tally.started > flags.minutes * 60:
                break
    print(tally.line())
    print()
    print(tally.table())
    return 1 if tally.found else 0


def _repeat(path: Path, scratch: Path) -> int:
    door, _, number = path.stem.split("-")
    case = Case(door, int(number), path.read_bytes(), "")
    for result in watched(
        lambda _: outcome(case, scratch), range(case.number, case.number + 1), limit_s=5, log=scratch / "crash.log"
    ):
        print(f"{result.outcome}  {result.seconds:.2f} s  peak +{result.peak / MIB:.0f} MiB\n{result.details}")
        return 1 if result.outcome.startswith("!") else 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
