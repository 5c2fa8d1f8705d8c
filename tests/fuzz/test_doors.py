"""The mutation loop's short form, and that its watch sees what it is there for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.fuzz.cases import DOORS, make_case, outcome
from tests.fuzz.watch import Result, watched


@pytest.mark.parametrize("door", [door for door in DOORS if door != "all"])
def test_mutated_files_end_in_values_or_in_faults_that_the_door_declares(door: str, tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(75):
            case = make_case(door, 0, number, real=False)
            said, details = outcome(case, tmp_path)
            assert not said.startswith("!"), f"{case.door} {number}, {case.history}\n{details}"
            seen[said] += 1
    assert len(seen) > 2, "mutations reach more than one place"


def test_a_case_is_the_same_each_time() -> None:
    assert make_case("image", 3, 7, real=False) == make_case("image", 3, 7, real=False)
    assert len({make_case("image", 3, number, real=False).data for number in range(20)}) > 15


def _misbehave(number: int) -> tuple[str, str]:
    if number == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 2:
        while True:
            pass
    if number == 3:
        held = bytearray(b"x") * (256 * 2**20)  # much more than what the kernel may take back meanwhile
        del held
    if number == 4:
        return "!ValueError at somewhere", "a trace"
    if number == 5:
        os._exit(3)
    return "decoded", ""


def _watch(log: Path) -> list[Result]:
    return list(watched(_misbehave, range(7), limit_s=0.5, log=log, limit_bytes=32 * 2**20))


def test_what_a_case_may_not_do_is_seen_and_the_next_one_runs(tmp_path: Path) -> None:
    # In a process of its own, as the command is: here libraries have put their own handlers for SIGSEGV.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        results = pool.submit(_watch, tmp_path / "crash.log").result()
    assert [result.number for result in results] == list(range(7))
    assert [result.outcome.split(" (")[0] for result in results] == [
        *("decoded", "!SIGSEGV", "!hang", "!memory", "!ValueError at somewhere", "!exit 3", "decoded")
    ]
    assert "Fatal Python error" in results[1].details


def test_the_command_says_what_it_does_and_repeats_a_file(tmp_path: Path) -> None:
    (tmp_path / "mask-seed0-3.bin").write_bytes(b"GIF89a")
    command = [sys.executable, "-m", "tests.fuzz.doors", "--out", str(tmp_path)]
    done = subprocess.run([*command, "--repeat", str(tmp_path / "mask-seed0-3.bin")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("mask_truncated")
