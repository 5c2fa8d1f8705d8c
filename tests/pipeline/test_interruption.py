"""Signals: the first interrupts where nothing is half done, the second ends the process."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from asymvae.pipeline.interruption import Interrupted, Interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_raises_and_handlers_are_put_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=number.name) as caught, Interruption().heard():
        signal.raise_signal(number)
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before


def test_while_it_is_held_a_signal_waits_for_a_look() -> None:
    done = []

    def work(interruption: Interruption) -> None:
        with interruption.held():
            signal.raise_signal(signal.SIGTERM)
            done.append("what had been begun")
            interruption.look()
            done.append("something new")

    with pytest.raises(Interrupted), Interruption().heard() as interruption:
        work(interruption)
    assert done == ["what had been begun"]


def test_the_end_of_what_holds_it_is_a_look() -> None:
    def work(interruption: Interruption) -> None:
        with interruption.held():
            signal.raise_signal(signal.SIGTERM)
        raise AssertionError("not to be reached")

    with pytest.raises(Interrupted), Interruption().heard() as interruption:
        work(interruption)


def test_a_library_that_raises_its_own_is_still_that_signal() -> None:
    # Ray's get raises KeyboardInterrupt for whatever a handler raised: a job ended with a traceback and 1.
    def get() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Interrupted:
            raise KeyboardInterrupt from None

    with pytest.raises(Interrupted) as caught, Interruption().heard():
        get()
    assert caught.value.exit_code == 128 + signal.SIGTERM


_TWICE = """
import os, signal
from asymvae.pipeline.interruption import Interruption
with Interruption().heard() as interruption, interruption.held():
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here")
"""


def test_the_second_signal_ends_the_process_at_once() -> None:
    ended = subprocess.run([sys.executable, "-c", _TWICE], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (128 + signal.SIGTERM, "", "")


def test_without_hearing_nothing_changes() -> None:
    interruption = Interruption()
    with interruption.held():
        interruption.look()
    assert signal.getsignal(signal.SIGINT) is not interruption._handle
