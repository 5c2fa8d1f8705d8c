"""The soak of crashes in short, without Ray or a store: real processes, real signals, moments that always hit."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from asymvae.pipeline.executor import LocalExecutor
from asymvae.pipeline.job import run_job
from tests.soak.crash_job import Driver, Job, Place, left_running, spools, temporaries, wrong_with
from tests.soak.crash_kinds import KINDS
from tests.soak.crashes import table
from tests.tiny import job, tiny_model, write_shards
from tests.wire.jobs import parts

SHARDS, SAMPLES = 4, 8


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("place")
    place = Place(folder, store=None, address="", raylets=list, samples=SAMPLES)  # type: ignore[arg-type]
    tiny_model().save_pretrained(str(folder / "model"))
    write_shards(folder / "in", SHARDS, SAMPLES)
    out = folder / "undisturbed"
    assert run_job(job(place.local_input, out, folder / "model"), LocalExecutor()).exit_code == 0
    place.parts = parts(str(out))
    return place


def wait_for_commits(disturbed: Job, driver: Driver, number: int) -> None:
    while len(list(Path(disturbed.out, "_commits").glob("*.json"))) < number:
        assert driver.alive, driver.said
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_job_cleanly_and_the_same_command_goes_on(
    number: signal.Signals, place: Place, tmp_path: Path
) -> None:
    disturbed = Job(place, tmp_path, executor="local")
    assert disturbed.spool is not None
    driver = disturbed.start("log")
    wait_for_commits(disturbed, driver, 1)
    driver.send(number)
    assert driver.wait(60) == 128 + number
    assert f"interrupted by {number.name}" in driver.said
    assert "Traceback" not in driver.said
    assert not temporaries(disturbed.out)
    assert not spools(disturbed.spool)
    assert 1 <= len(list(Path(disturbed.out, "_commits").glob("*.json"))) < SHARDS
    result = run_job(job(place.local_input, disturbed.out, place.folder / "model"), LocalExecutor())
    assert result.exit_code == 0
    assert not list(wrong_with(disturbed))
    assert not list(left_running(disturbed))


def test_two_drivers_whose_bytes_may_differ_leave_one_consistent_set(place: Place, tmp_path: Path) -> None:
    disturbed = Job(place, tmp_path, executor="local")
    drivers = [disturbed.start("one"), disturbed.start("two", "--workers.batch_size=2")]
    assert [driver.wait(120) for driver in drivers] == [0, 0], [driver.said for driver in drivers]
    assert not list(wrong_with(disturbed, same_bytes=False))
    assert not list(left_running(disturbed))


def test_the_table_counts_by_kind() -> None:
    one = {"kind": "signalled", "hit": True, "problems": [], "seconds": 8.0}
    late = one | {"hit": False}
    wrong = one | {"problems": ["temporary files: a"]}
    assert table([one, late, wrong]).splitlines()[2:] == [
        "| signalled | 3 | 2 | 1 | 1 | temporary files: a | 8 |",
        "| all | 3 | 2 | 1 | 1 | temporary files: a | 8 |",
    ]
    assert all(kind.__doc__ for kind in KINDS.values())
