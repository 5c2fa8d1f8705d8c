"""The worker: what it leaves behind when a shard fails."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from asymvae.model import AsymmetricAutoencoderKL
from asymvae.model.optimize import forms
from asymvae.pipeline.plan import ConfigurationError, Recipe, load_model, make_plan, resolve
from asymvae.pipeline.worker import ShardWorker
from asymvae.storage.shards import list_shards
from tests.tiny import job, sample, write_tar


def test_a_shard_that_failed_holds_no_memory_of_the_device(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # An out-of-memory error's frames hold the batch, in a cycle with the run: the next try would find the GPU full.
    tar = write_tar(tmp_path / "a.tar", [(f"k{n}", sample(n)) for n in range(4)])
    settings = resolve(job(str(tar), tmp_path / "out", checkpoint))
    weights = load_model(settings).weights_sha256
    assert weights is not None
    worker = ShardWorker(Recipe(settings, "f" * 32, weights))
    held: list[weakref.ref[torch.Tensor]] = []

    def launch(*_: Any) -> None:
        batch = torch.zeros(10)
        held.append(weakref.ref(batch))
        raise torch.OutOfMemoryError("CUDA out of memory at s3://key:secret@bucket/x")

    monkeypatch.setattr(worker.device, "launch", launch)
    (shard,) = list_shards(str(tar), root=None, format="auto")
    gc.disable()
    try:
        report = worker.attempt(shard, lambda *_: None)
        assert not report.committed
        assert report.reason == "OutOfMemoryError: CUDA out of memory at s3://bucket/x"
        assert [ref() for ref in held] == [None]
    finally:
        gc.enable()
    told = capsys.readouterr().err
    assert "in launch" in told
    assert "secret" not in told


def test_sizes_are_compiled_before_the_first_shard(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = write_tar(tmp_path / "a.tar", [("k", sample(0))])
    model = {"path": str(checkpoint), "compile": "64x128, 128x64"}
    settings = resolve(job(str(tar), tmp_path / "out", checkpoint, model=model, workers={"batch_size": 4, "gpus": 0}))
    compiled: list[Any] = []
    monkeypatch.setattr(AsymmetricAutoencoderKL, "compile_for", lambda _, *shape, **how: compiled.append((shape, how)))
    weights = load_model(settings).weights_sha256
    assert weights is not None
    worker = ShardWorker(Recipe(settings, "f" * 32, weights))
    assert compiled == [((4, 64, 128), {"decode": True}), ((4, 128, 64), {"decode": True})]
    assert any("folded" in form for form in forms(worker.device.model))


def test_a_size_that_no_work_image_has_is_refused_by_the_driver(checkpoint: Path, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", [("k", sample(0))])
    model = {"path": str(checkpoint), "compile": ["100x100"]}
    with pytest.raises(ConfigurationError, match=r"model\.compile: 100x100 .*multiples of 8"):
        make_plan(job(str(tar), tmp_path / "out", checkpoint, model=model))
