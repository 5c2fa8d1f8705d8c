"""Out of memory: halves, then strips, then a fault; never a lost sample, and the shard says that it is degraded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ray.cluster_utils import Cluster

from asymvae.inpaint.harmonic import HarmonicFill
from asymvae.pipeline.device import Device
from asymvae.pipeline.executor import Executor, LocalExecutor, RayExecutor
from asymvae.pipeline.job import JobResult, run_job
from asymvae.pipeline.kinds.inpaint import InpaintKind
from asymvae.pipeline.shard_run import run_shard
from asymvae.storage.audit import audit
from asymvae.storage.shards import list_shards
from tests.pipeline.hungry import out_of_memory
from tests.tiny import job, parts_of, rows_of, sample, tiny_model, write_tar

HUNGRY = "tests.pipeline.hungry"


def run(shards: str, out: Path, checkpoint: Path, executor: Executor, **settings: object) -> JobResult:
    result = run_job(job(shards, out, checkpoint, **settings), executor)
    assert result.exit_code == 0, result
    report = audit(str(out), deep=True, shards=result.plan.shards)
    assert report.ok, report
    return result


def degraded(out: Path) -> list[bool]:
    return [json.loads(path.read_text())["degraded"] for path in sorted(out.glob("_commits/*.json"))]


@pytest.fixture(scope="module")
def in_pairs(shards: str, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The parts of an undisturbed run of batches of two."""
    out = tmp_path_factory.mktemp("in-pairs")
    run(shards, out, checkpoint, LocalExecutor(), workers={"batch_size": 2})
    assert degraded(out) == [False] * 4
    return parts_of(out)


def test_what_does_not_fit_is_halved_and_comes_out_as_from_smaller_batches(
    shards: str, checkpoint: Path, tmp_path: Path, in_pairs: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    method = {"method": f"{HUNGRY}:HungryAbove", "options": {"batch": 2}}
    result = run(shards, tmp_path, checkpoint, LocalExecutor(), inpaint=method)
    assert result.audit is not None
    assert (result.audit.planned, result.audit.results + result.audit.errors) == (44, 44)
    assert degraded(tmp_path) == [True] * 4
    assert result.audit.degraded == 4
    assert parts_of(tmp_path) == in_pairs
    assert capsys.readouterr().err.count("out of memory with a batch of 4") == 1


def test_the_same_on_actors(
    cluster: Cluster, shards: str, checkpoint: Path, tmp_path: Path, in_pairs: dict[str, bytes]
) -> None:
    method = {"method": f"{HUNGRY}:HungryAbove", "options": {"batch": 2}}
    run(shards, tmp_path, checkpoint, RayExecutor(), inpaint=method, workers={"min": 2, "max": 2})
    assert degraded(tmp_path) == [True] * 4
    assert parts_of(tmp_path) == in_pairs


def test_a_sample_that_does_not_fit_alone_is_an_error_row_and_its_neighbours_are_results(
    shards: str, checkpoint: Path, tmp_path: Path
) -> None:
    method = {"method": f"{HUNGRY}:HungryAbove", "options": {"batch": 8, "key": "s2-0004"}}
    run(shards, tmp_path, checkpoint, LocalExecutor(), inpaint=method)
    assert degraded(tmp_path) == [False, False, True, True]  # the smaller batch is kept, so the next shard's differ too
    (row,) = [row for row in rows_of(tmp_path, "errors") if row["code"] == "out_of_memory"]
    assert (row["key"], row["stage"], row["variant"]) == ("s2-0004", "device", 0)
    assert "don't fit the device's memory" in row["message"]
    assert len(rows_of(tmp_path, "results")) == 39  # of 44, four bad ones and this


def test_a_large_sample_that_does_not_fit_whole_is_run_in_strips(checkpoint: Path, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", [("large", sample(0, (520, 640))), ("small", sample(1, (64, 64)))])
    whole = {"geometry": {"mode": "whole"}, "max_error_fraction": 1.0}
    method = {"method": f"{HUNGRY}:HungryWhole"}
    run(str(tar), tmp_path / "out", checkpoint, LocalExecutor(), inpaint=method, **whole)
    assert degraded(tmp_path / "out") == [True]
    assert [row["key"] for row in rows_of(tmp_path / "out", "results")] == ["large"]
    assert [(row["key"], row["code"]) for row in rows_of(tmp_path / "out", "errors")] == [("small", "out_of_memory")]

    run(str(tar), tmp_path / "cut", checkpoint, LocalExecutor(), model={"tiling": True}, **whole)
    assert degraded(tmp_path / "cut") == [False]
    assert rows_of(tmp_path / "cut", "results")[0] == rows_of(tmp_path / "out", "results")[0]

    never = {"tiling": False}
    run(str(tar), tmp_path / "never", checkpoint, LocalExecutor(), inpaint=method, model=never, **whole)
    assert [row["code"] for row in rows_of(tmp_path / "never", "errors")] == ["out_of_memory"] * 2


class _Failing(HarmonicFill):
    """Raises ``error`` once."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.errors = [error]

    def prefill(self, batch):  # type: ignore[no-untyped-def]
        if self.errors:
            raise self.errors.pop()
        return super().prefill(batch)


def launch(error: Exception, tmp_path: Path) -> bool:
    """Whether the shard is degraded where a stage raises ``error`` once."""
    tar = write_tar(tmp_path / "a.tar", [(f"k{n}", sample(0)) for n in range(4)])
    settings = job(str(tar), "unused", "unused")
    kind = InpaintKind(settings, inpainter=_Failing(error))
    (shard,) = list_shards(str(tar), root=None, format="auto")
    (tmp_path / "spool").mkdir()
    outcome = run_shard(shard, tmp_path / "spool", kind, Device(tiny_model, kind), lambda *_: None)
    assert outcome.counts["results"] == 4
    return outcome.degraded


@pytest.mark.parametrize(
    "error",
    [
        out_of_memory(),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: ..."),
    ],
    ids=["torch", "driver", "cublas", "cpu"],
)
def test_every_way_to_say_it_is_understood(error: Exception, tmp_path: Path) -> None:
    assert launch(error, tmp_path)


def test_a_cpu_that_has_not_the_memory_is_understood(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**50)
    assert launch(raised.value, tmp_path)


def test_other_errors_are_not(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="illegal memory access"):
        launch(RuntimeError("CUDA error: an illegal memory access was encountered"), tmp_path)
