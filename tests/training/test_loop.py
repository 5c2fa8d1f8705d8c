"""The loop of one stage: what moves, what is averaged, what is kept; and what stops it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from asymvae.storage.shards import list_shards
from asymvae.training.config import TrainJob
from asymvae.training.crops import Crops
from asymvae.training.folder import RunFolder
from asymvae.training.loop import DivergedError, StageRun, TrainingError, schedule
from asymvae.training.stage import DecoderStage, Losses
from tests.tiny import file_bytes, picture, tiny_model, write_tar


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> str:
    samples = [(f"k{n}", {"png": file_bytes(picture(40, 48, n), "PNG")}) for n in range(4)]
    return str(write_tar(tmp_path_factory.mktemp("in") / "a.tar", samples))


def started(shard: str, out: Path, steps: int = 6, **settings: Any) -> StageRun:
    values: dict[str, Any] = {
        "input": {"urls": shard},
        "output": {"url": str(out)},
        "network": {"encoder": "the tiny one"},
        "crops": {"size": 32, "short_side": (32, 40)},
        "decoder": {"steps": steps},
        "warmup_steps": 2,
        "average": 0.9,
        "run": {"save_every": 2},
    }
    job = TrainJob(**(values | settings))
    crops = Crops(list_shards((shard,), root=None, format="auto"), job.input, job.crops, batch_size=2, seed=job.seed)
    stage = DecoderStage(tiny_model(), job.decoder, None, None)
    return StageRun(job, stage, crops, steps=steps, learning_rate=0.01, folder=RunFolder(str(out)))


def copied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in weights.items()}


def no_progress(*_: object) -> None:
    pass


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [schedule(step, 100, 20) for step in range(100)]
    assert rates[0] == 1 / 20
    assert max(rates) == rates[19] == rates[20] == 1
    assert rates == [*sorted(rates[:20]), *sorted(rates[20:], reverse=True)]
    assert rates[60] == pytest.approx(0.5)
    assert rates[99] < 0.001
    assert schedule(0, 1, 0) == 1


@pytest.mark.parametrize("average", [0.9, 0.0])
def test_the_decoder_moves_the_rest_does_not_and_the_average_is_kept(
    average: float, shard: str, tmp_path: Path
) -> None:
    run = started(shard, tmp_path, average=average)
    before, seen = copied(run.stage.model.state_dict()), []
    kept = run.run(lambda *_: seen.append(copied(run.stage.model.state_dict())))
    assert len(seen) == 6
    moved = {name for name, tensor in seen[-1].items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[0] for name in moved} == {"decoder"}
    assert "decoder.condition_encoder.layers.1.weight" in moved
    expected = seen[0]
    for n, weights in enumerate(seen[1:], 1):
        # at first the mean of a few: decay (1 + n) / (10 + n), as in TensorFlow's ExponentialMovingAverage
        decay = min(average, (1 + n) / (10 + n))
        expected = {name: decay * tensor + (1 - decay) * weights[name] for name, tensor in expected.items()}
    for name, tensor in kept.state_dict().items():
        torch.testing.assert_close(tensor, expected[name] if average else seen[-1][name], rtol=1e-5, atol=1e-6)


def test_the_rows_of_every_step(shard: str, tmp_path: Path) -> None:
    told: list[tuple[str, int, int, dict[str, float]]] = []
    started(shard, tmp_path, 5).run(lambda *said: told.append(said))
    assert [said[:3] for said in told] == [("decoder", step, 5) for step in range(1, 6)]
    files = sorted(path.name for path in (tmp_path / "losses").iterdir())
    assert files == [f"decoder-{step:08d}.parquet" for step in (2, 4, 5)]
    assert sorted(path.stem for path in (tmp_path / "pictures").iterdir()) == [name[:-8] for name in files]
    rows = pq.read_table(tmp_path / "losses").to_pylist()
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[4]["loss"] == rows[4]["l1"] == told[4][3]["loss"]
    assert [row["learning_rate"] for row in rows[:3]] == [0.005, 0.01, 0.01]
    assert all(row["kl"] is None and row["lpips"] is None and row["seconds"] > 0 for row in rows)


def test_a_batch_that_does_not_fit_names_the_setting(
    shard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started(shard, tmp_path)

    def full(*_: object) -> Losses:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(run.stage, "losses", full)
    with pytest.raises(TrainingError, match=r"stage decoder: lower decoder\.batch_size"):
        run.run(lambda *_: None)


def test_a_state_of_losses_that_are_no_numbers_is_not_kept(shard: str, tmp_path: Path) -> None:
    run = started(shard, tmp_path)

    def poison(_: str, step: int, *__: object) -> None:
        if step == 3:
            with torch.no_grad():
                run.stage.model.get_parameter("decoder.conv_out.bias").fill_(math.nan)

    with pytest.raises(DivergedError, match="decoder has diverged by step 4"):
        run.run(poison)
    state = RunFolder(str(tmp_path)).load_state("decoder")
    assert state is not None
    assert state["step"] == 2
    assert all(tensor.isfinite().all() for tensor in state["model"].values())
    assert [path.stem for path in (tmp_path / "losses").iterdir()] == ["decoder-00000002"]


def test_weights_that_are_no_numbers_are_seen_before_a_loss_is(
    shard: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of a step is of the weights before it: the last step's own damage shows in them alone."""
    run = started(shard, tmp_path)
    plain = run.optimiser.step

    def step(*arguments: Any) -> None:
        plain(*arguments)
        if run.step == 3:
            with torch.no_grad():
                run.stage.model.get_parameter("decoder.conv_out.bias")[0] = math.inf

    monkeypatch.setattr(run.optimiser, "step", step)
    with pytest.raises(DivergedError, match=r"by step 4, .*lower decoder\.learning_rate"):
        run.run(no_progress)
    state = RunFolder(str(tmp_path)).load_state("decoder")
    assert state is not None
    assert state["step"] == 2


def test_what_a_crash_left_of_later_steps_goes(shard: str, tmp_path: Path) -> None:
    """Losses come before the state; with another save_every the same steps come back under other names."""
    run = started(shard, tmp_path, 3)
    run.run(no_progress)
    for kind, ending in (("losses", "parquet"), ("pictures", "jpg")):
        (tmp_path / kind / f"decoder-00000006.{ending}").write_bytes(b"of a crash")
        (tmp_path / kind / f"autoencoder-00000009.{ending}").write_bytes(b"of the other stage")
    again = started(shard, tmp_path, 3)
    assert again.restore()
    assert again.step == 3
    for kind in ("losses", "pictures"):
        left = sorted(path.stem for path in (tmp_path / kind).iterdir())
        assert left == ["autoencoder-00000009", "decoder-00000002", "decoder-00000003"]
    (tmp_path / "state" / "decoder.pt").unlink()
    fresh = started(shard, tmp_path, 3)
    assert not fresh.restore()
    assert [path.stem for path in (tmp_path / "losses").iterdir()] == ["autoencoder-00000009"]
