"""The pipeline's benchmark: all ways over the same samples, and their seconds out of the commits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from asymvae.benchmark import pipeline, pipeline_report
from asymvae.benchmark.loop import run_loop
from asymvae.benchmark.measured import RunFailedError
from asymvae.benchmark.pipeline import LOCAL, LOOP, LOOP_AS_IT_COMES, PipelineTiming
from asymvae.pipeline.allocator import KEEP_FREED_MEMORY
from asymvae.pipeline.plan import ConfigurationError, resolve
from tests.tiny import job, write_shards


def test_loop_and_local_executor(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environments: list[Mapping[str, str]] = []

    def here(work: Any, *args: Any, environment: Mapping[str, str] = {}) -> Any:
        environments.append(environment)
        return work(*args)

    monkeypatch.setattr(pipeline, "_in_process", here)
    settings = job(write_shards(tmp_path / "in", 2, 4), tmp_path / "out", checkpoint)
    said: list[str] = []
    timings = list(pipeline.measure(settings, ray_workers=(), rounds=2, scratch=tmp_path / "scratch", tell=said.append))
    assert said == [LOOP, LOOP_AS_IT_COMES, LOCAL, LOCAL, LOOP_AS_IT_COMES, LOOP]
    assert [timing.way for timing in timings] == said
    assert environments[:3] == [KEEP_FREED_MEMORY, {}, KEEP_FREED_MEMORY]
    assert [timing.round for timing in timings] == [0, 0, 0, 1, 1, 1]
    assert {timing.samples for timing in timings} == {8}  # one bad one a shard, which every way reads
    for timing in timings:
        assert set(pipeline_report.STAGES) - {"write"} <= set(timing.stages)
        assert 0 < timing.seconds <= timing.whole + 0.01  # commits tell their start in milliseconds
        assert timing.stages["device"] <= timing.seconds
    assert not list((tmp_path / "scratch").iterdir())  # what was written is gone
    lines = pipeline_report.table(timings).splitlines()
    assert len(lines) == 2 + 3
    assert "an hour and worker" in lines[0]


def test_the_loop_runs_every_shape_in_its_own_batches(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asymvae.benchmark import loop

    sizes: list[tuple[int, tuple[int, int]]] = []
    collate = loop.collate

    def seen(items: Any, size: int, *rest: Any) -> Any:
        sizes.append((size, items[0].image.shape[:2]))
        return collate(items, size, *rest)

    monkeypatch.setattr(loop, "collate", seen)
    settings = job(
        write_shards(tmp_path / "in", 1, 7), tmp_path / "out", checkpoint, workers={"batch_size": 2},
        geometry={"mode": "whole"},
    )  # fmt: skip
    ran = run_loop(resolve(settings))
    assert ran.samples == 7
    assert sum(size for size, _ in sizes) == 6  # one is cut
    assert max(size for size, _ in sizes) == 2
    assert len({shape for _, shape in sizes}) == 3


def test_a_process_of_its_own_with_its_own_environment() -> None:
    before = dict(os.environ)
    found = pipeline._in_process(os.getenv, "MALLOC_ARENA_MAX", environment=KEEP_FREED_MEMORY)
    assert found == "1"
    assert dict(os.environ) == before


def test_throughput_of_several_workers() -> None:
    timing = PipelineTiming("Ray, 2 workers", 2, 0.5, 0, 100, 10.0, 20.0, {"device": 18.0})
    assert timing.samples_per_s == 10
    assert timing.samples_per_hour_and_unit == 36000  # two workers share a GPU
    cells = [cell.strip() for cell in pipeline_report.table([
        PipelineTiming(LOOP, 1, 0.5, 0, 100, 20.0, 25.0, {"device": 15.0}), timing
    ]).splitlines()[3].split("|")[1:-1]]  # fmt: skip
    assert cells[:6] == ["Ray, 2 workers", "10", "2", "36,000", "5", "90%"]


def test_what_fails_is_named(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "_in_process", lambda work, *args, environment={}: work(*args))
    settings = job(write_shards(tmp_path / "in", 1, 2), tmp_path / "out", tmp_path / "no checkpoint")
    with pytest.raises(RunFailedError, match=r"loop: .*no checkpoint"):
        list(pipeline.measure(settings, ray_workers=(), rounds=1, scratch=tmp_path))
    settings = job(write_shards(tmp_path / "in", 1, 2), tmp_path / "out", checkpoint, inpaint={"method": "nothing"})
    with pytest.raises(ConfigurationError, match="nothing"):
        list(pipeline.measure(settings, ray_workers=(), rounds=1, scratch=tmp_path))
