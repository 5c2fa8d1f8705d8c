"""What fits: batches and strips by shape, from a budget that is resolved once and kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from asymvae.batch import Item, collate
from asymvae.config import InpaintJob
from asymvae.model import PUBLISHED, AsymmetricAutoencoderKL
from asymvae.pipeline import capacity
from asymvae.pipeline.capacity import BatchPlan, DeviceMemory, Run, batch_budget, device_memory
from asymvae.pipeline.device import Device
from asymvae.pipeline.executor import LocalExecutor
from asymvae.pipeline.job import run_job
from asymvae.pipeline.kinds.inpaint import InpaintKind
from tests.model.live_bytes import LiveBytes
from tests.tiny import box_mask, job, parts_of, picture, tiny_model

GIB = 2**30
SHAPES = [(64, 64), (256, 256), (512, 512), (512, 768), (1024, 1024), (2048, 2048), (4096, 4096)]


def settings(batch_size: int | str = "auto", tiling: bool | str = "auto", **workers: Any) -> InpaintJob:
    return job("a", "b", "c", workers={"batch_size": batch_size, **workers}, model={"tiling": tiling})


def plan(budget: int | None, made: InpaintJob | None = None) -> BatchPlan:
    with torch.device("meta"):
        config = AsymmetricAutoencoderKL(**PUBLISHED["x-1-5"]).config
    return BatchPlan(made or settings(gpus=1), config, torch.bfloat16, budget)


def bytes_of(batches: BatchPlan, shape: tuple[int, int]) -> int:
    run = batches.of(*shape)
    return run.size * batches.sample_bytes(*shape, batches.strips(*shape) if run.in_strips else None)


def test_auto_takes_large_batches_of_small_images_and_cuts_large_ones() -> None:
    batches = plan(16 * GIB)
    found = [batches.of(*shape) for shape in SHAPES]
    assert (found[0].in_strips, found[-1].in_strips) == (False, True)
    sizes = [run.size for run in found]
    assert sizes[0] == 64
    assert sizes == sorted(sizes, reverse=True)
    assert all(bytes_of(batches, shape) <= 16 * GIB for shape in SHAPES)


@settings_of_hypothesis(deadline=None)  # the first example of a shape also counts its bytes
@given(st.sampled_from(SHAPES), st.integers(0, 80 * GIB), st.sampled_from(["auto", True, False]))
def test_auto_is_the_largest_power_of_two_that_fits(shape: tuple[int, int], budget: int, tiling: bool | str) -> None:
    batches = plan(budget, settings("auto", tiling, gpus=1))
    run = batches.of(*shape)
    rows = batches.strips(*shape) if run.in_strips else None
    assert run.size in (1, 2, 4, 8, 16, 32, 64)
    assert run.size == 1 or run.size * batches.sample_bytes(*shape, rows) <= budget
    assert run.size == 64 or 2 * run.size * batches.sample_bytes(*shape, rows) > budget
    if tiling == "auto":
        assert run.in_strips == (batches.sample_bytes(*shape, None) > budget and batches.strips(*shape) is not None)
    else:
        assert run.in_strips == (tiling and shape not in SHAPES[:3])  # 2^18 pixels are one strip


def test_a_number_is_the_batch_of_every_shape_but_of_one_that_must_be_cut() -> None:
    batches = plan(3 * GIB, settings(6, gpus=1))
    assert [batches.of(*shape) for shape in SHAPES[:3]] == [Run(6, False)] * 3
    assert batches.of(4096, 4096) == Run(1, True)
    assert plan(3 * GIB, settings(6, tiling=False, gpus=1)).of(4096, 4096) == Run(6, False)
    assert plan(3 * GIB, settings(6, tiling=True, gpus=1)).of(4096, 4096) == Run(6, True)


def test_a_cpu_takes_no_large_batches() -> None:
    assert plan(None, settings(gpus=0)).of(64, 64) == Run(8, False)
    assert plan(None, settings(gpus=1)).of(64, 64) == Run(64, False)


def test_the_budget_is_a_worker_s_share_of_what_is_free() -> None:
    whole = DeviceMemory(80 * GIB, 80 * GIB)
    assert batch_budget(whole, settings(gpus=1), 0) == 64 * GIB
    assert batch_budget(whole, settings(gpus=2), 0) == 64 * GIB  # the model is on one
    assert batch_budget(whole, settings(gpus=0.25), 0) == 16 * GIB
    assert batch_budget(DeviceMemory(80 * GIB, 10 * GIB), settings(gpus=1), 0) == 8 * GIB
    assert batch_budget(whole, settings(gpus=1), 2 * GIB + 5) == 62 * GIB - 2**28
    assert batch_budget(whole, settings(gpus=1), 65 * GIB) == 0


def test_a_container_has_what_it_is_limited_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(capacity, "_CGROUP_LIMITS", (str(limit),))
    unlimited = device_memory(settings()).total
    limit.write_text("max\n")
    assert device_memory(settings()).total == unlimited
    limit.write_text(f"{2 * GIB}\n")
    assert device_memory(settings()).total == 2 * GIB


@pytest.mark.parametrize("method", ["harmonic", "none", "given"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("widths", [(2, 2, 2, 2), (8, 16, 32, 32)], ids=["narrow", "tiny"])
def test_no_stage_holds_more_than_is_planned_for(method: str, dtype: torch.dtype, widths: tuple[int, ...]) -> None:
    # narrow: what the stages make themselves is most of it
    made = job("a", "b", "c", inpaint={"method": method})
    model = AsymmetricAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        down_block_out_channels=(widths[0],) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        up_block_out_channels=widths,
        norm_num_groups=2,
    )
    kind = InpaintKind(made)
    device = Device(lambda: model.eval().to(dtype), kind)
    height, width = 128, 192
    items = [_item(number, height, width, with_given=method == "given") for number in range(2)]
    with torch.inference_mode(), LiveBytes() as live:
        batch = collate(items, 2, torch.device("cpu"), dtype)
        for stage in kind.stages:
            batch = stage(batch)
    planned = 2 * device.batches.sample_bytes(height, width, None)
    assert 0.6 * planned < live.peak <= planned


def _item(number: int, height: int, width: int, *, with_given: bool) -> Item:
    image, mask = picture(height, width, number), box_mask(height, width, number) > 0
    given_image = picture(height, width, number + 5) if with_given else None
    return Item(number, str(number), 0, 0, image, mask, (height, width), given=given_image)


class _Remembering(LocalExecutor):
    """A machine of ``memory``; says how often it was asked."""

    def __init__(self, memory: int) -> None:
        self.memory, self.asked = memory, 0

    def device_memory(self, job: InpaintJob) -> DeviceMemory:
        self.asked += 1
        return DeviceMemory(self.memory, self.memory)


def test_the_budget_is_resolved_once_and_a_resumed_job_keeps_it(
    shards: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacity.os, "cpu_count", lambda: 1)  # the worker's one thread is all there is
    todo = job(shards, tmp_path, checkpoint, workers={"batch_size": "auto"})
    first = _Remembering(4 * GIB)
    assert run_job(todo, first).exit_code == 0
    kept = json.loads((tmp_path / "_job.json").read_text())
    assert kept["memory"] == {"device_bytes": 4 * GIB, "batch_budget_bytes": 2 * GIB - 2**28}
    assert kept["batch_size"] == "auto"
    next(tmp_path.glob("_commits/00002.*")).unlink()
    again = _Remembering(64 * GIB)
    result = run_job(todo, again)
    assert (first.asked, again.asked) == (1, 0)
    assert len(result.plan.left) == 1
    assert result.plan.recipe.batch_budget == 2 * GIB - 2**28


def test_auto_gives_the_bytes_of_the_number_that_it_stands_for(shards: str, checkpoint: Path, tmp_path: Path) -> None:
    for name, batch_size in (("auto", "auto"), ("eight", 8)):
        todo = job(shards, tmp_path / name, checkpoint, workers={"batch_size": batch_size})
        assert run_job(todo, LocalExecutor()).exit_code == 0
    assert parts_of(tmp_path / "auto") == parts_of(tmp_path / "eight")


def test_a_model_of_no_budget_still_runs_one_sample_at_a_time() -> None:
    device = Device(tiny_model, InpaintKind(settings()), budget=0)
    assert device.batches.of(64, 64) == Run(1, False)
