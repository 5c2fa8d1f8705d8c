"""What is wrong with a training job's settings is said with the setting's name, before anything starts."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest

from asymvae.config import Affects
from asymvae.fingerprint import settings_by_name, settings_that
from asymvae.training.config import TrainJob
from jobs.arguments import parse

ROOT = Path(__file__).parents[2]
NEEDED = ("--input.urls=in/*.tar", "--output.url=out", "--autoencoder.steps=5", "--decoder.steps=5")


def settings(*arguments: str) -> TrainJob:
    return parse(TrainJob, argparse.ArgumentParser(), arguments)[0]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--network.up_block_out_channels=[32, 64, 64, 64]"], r"up_block_out_channels .*\[32, 64, 128, 128\]"),
        (["--network.down_block_out_channels=[32, 64, 64]"], "down_block_out_channels must have 4"),
        (["--network.norm_num_groups=24"], r"norm_num_groups \(24\) doesn't divide the width 128"),
        (["--decoder.full_masks=0.8", "--decoder.empty_masks=0.3"], r"full_masks \(0.8\) and empty_masks \(0.3\)"),
        (["--network.encoder=some/vae"], "either network.encoder.*or autoencoder.steps"),
        (["--autoencoder.steps=0"], "either network.encoder.*or autoencoder.steps"),
        (["--crops.size=100"], "crops.size: .*multiple of 8"),
        (["--crops.short_side=[640, 160]"], r"crops.short_side: .*\[least, most\]"),
        (["--decoder.batchsize=4"], "did you mean decoder.batch_size"),
        (["--average=1"], "average: .*less than 1"),
        (["--run.precision=float16"], "run.precision"),
        (["--decoder.adversarial_from=5"], r"adversarial_from \(5\) is not below decoder.steps \(5\)"),
        (["--decoder.adversarial_from=-1"], "decoder.adversarial_from: .*greater than or equal to 0"),
        (
            ["--network.encoder=some/vae", "--autoencoder.steps=0", "--autoencoder.linear_start=true"],
            "linear_start is for a new encoder",
        ),
    ],
)
def test_errors_name_the_setting(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        settings(*NEEDED, *flags)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert re.search(said, error), error


def test_what_must_be_set_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings("--autoencoder.steps=5")
    error = capsys.readouterr().err
    assert all(f"{name}: must be set" in error for name in ("input.urls", "output.url", "decoder.steps"))


def test_the_spelling_of_lists() -> None:
    job = settings(*NEEDED, "--network.up_block_out_channels=[32, 64, 128, 128]", "--decoder.lpips_weights=vgg.pth")
    assert job.network.up_block_out_channels == (32, 64, 128, 128)
    assert job.decoder.lpips_weights == ("vgg.pth",)


@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("train-*.yaml")), ids=lambda config: config.name)
def test_the_configurations_that_come_with_it_are_right(config: Path) -> None:
    job = settings(f"--config={config}")
    assert job.decoder.full_masks == 0.5


def test_settings_that_may_change_on_resume() -> None:
    """Everything else decides the result, and a folder of another value is refused."""
    job = settings(*NEEDED)
    free: dict[Affects, Any] = {affect: set(settings_that(job, affect)) for affect in ("no", "rounding")}
    assert free == {"no": {"output.url", "run.save_every"}, "rounding": {"run.device", "run.threads"}}
    assert len(list(settings_by_name(job))) > 30
