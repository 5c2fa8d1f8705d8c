"""The simulation of many workers, with two."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from asymvae.benchmark.simulate import SimulatedTiming
from asymvae.benchmark.simulate_report import panels, table


@pytest.mark.timeout(180)
def test_two_workers_on_one_node(tmp_path: Path) -> None:
    flags = ["--workers=2", "--nodes=1", "--shards=3", "--seconds=0.3", "--spread=0.5", "--empty=40"]
    flags.append(f"--scratch={tmp_path / 's'}")
    command = [sys.executable, "-m", "jobs.benchmark", "simulate", *flags, "--output", str(tmp_path / "out")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=170)
    assert ran.returncode == 0, ran.stderr
    (file,) = (tmp_path / "out").glob("simulate-*.parquet")
    timed, empty = pq.read_table(file).to_pylist()
    assert (timed["workers"], timed["shards"], empty["shards"], empty["shard_s"]) == (2, 6, 40, 0)
    assert 0 < timed["busy"] <= 1  # a clock that ran for less than it was told to would be busier
    assert timed["seconds"] >= 3 * 0.3
    assert timed["whole"] >= timed["seconds"]
    assert timed["largest"] > 0.5
    assert 0 <= timed["idle"] < 1
    assert 20 < timed["resident"] < 180  # MiB; torch alone takes more than that
    assert "| workers |" in ran.stdout
    assert not list((tmp_path / "s").iterdir())


def test_rows_are_numbers_of_workers_and_of_no_time_come_last() -> None:
    def timing(workers: int, shard_s: float, round_: int = 0) -> SimulatedTiming:
        return SimulatedTiming(workers, 4, round_, 100, shard_s, 0.9, 0.05, 1.2, 10.0, 20.0, 3.0, 0.01, 70.0, 0.1)

    timings = [timing(8, 0.0), timing(8, 2.0, 1), timing(8, 2.0), timing(1, 0.1)]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(timings).splitlines()[2:]]
    assert [row[:4] for row in rows] == [
        ["1", "4", "100", "0.1"],
        ["8", "4", "100", "2"],
        ["8", "4", "100", "0"],
    ]
    assert rows[0][4:11] == ["1.20", "90%", "5%", "50%", "10", "3", "10"]
    assert rows[2][4:8] == ["", "", "", ""]
    assert panels(timings)["workers"]["with start-up"]["8"].median == 100 * 2.0 / 8 / 20
