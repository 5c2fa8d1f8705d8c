"""Throughput over time, of jobs that were stopped and resumed."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np

from asymvae.report.digest import ShardRecord
from asymvae.report.histograms import _cut, _pauses, draw_throughput

START = datetime(2026, 1, 2, tzinfo=UTC)
SHARD = ShardRecord("s", "s.tar", "1", 100, 100, {}, START, 60.0, None, None, None)


def test_a_night_without_work_is_cut_out() -> None:
    begins = np.array([0.0, 60, 40_000, 40_030])
    pauses = list(_pauses(begins, begins + 60))
    assert [(pause.begin, pause.end) for pause in pauses] == [(120, 40_000)]
    assert list(_cut(begins, pauses)) == [0, 60, 120, 150]


def test_shards_at_once_and_pauses_are_drawn() -> None:
    shards = [replace(SHARD, started=START + timedelta(seconds=seconds)) for seconds in (0, 0, 30, 9000, 9010)]
    drawn = draw_throughput(shards)
    assert drawn is not None
    assert drawn.startswith(b"<?xml")
    assert drawn == draw_throughput(shards)


def test_without_times_there_is_no_plot() -> None:
    assert draw_throughput([]) is None
    assert draw_throughput([replace(SHARD, started=None), replace(SHARD, seconds=0.0)]) is None
