"""OUT of a training run: whose it is, and what is in it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from asymvae.training.config import TrainJob
from asymvae.training.folder import OtherRunError, RunFolder
from asymvae.training.linear import BlockTransform
from tests.tiny import tiny_model


def job(out: str, **settings: Any) -> TrainJob:
    values: dict[str, Any] = {
        "input": {"urls": "in/*.tar"},
        "output": {"url": out},
        "autoencoder": {"steps": 5},
        "decoder": {"steps": 5},
    }
    return TrainJob(**(values | settings))


def test_a_folder_belongs_to_what_was_trained_in_it(out_url: str) -> None:
    folder = RunFolder(out_url)
    folder.open(job(out_url))
    folder.save_state("autoencoder", {"step": 1})
    folder.open(job(out_url, run={"save_every": 7, "threads": 2}))  # how fast, and how often
    with pytest.raises(
        OtherRunError, match=r"another output\.url\n  autoencoder\.steps: was 5, is 6\n  seed: was 0, is 1$"
    ):
        folder.open(job(out_url, autoencoder={"steps": 6}, seed=1))
    assert folder.load_state("autoencoder") == {"step": 1}
    assert folder.load_state("decoder") is None


def test_a_checkpoint_whose_state_was_removed_is_no_other_job_s(tmp_path: Path) -> None:
    folder = RunFolder(str(tmp_path))
    folder.open(job(str(tmp_path)))
    folder.write_checkpoint("autoencoder", tiny_model())
    with pytest.raises(OtherRunError, match="seed: was 0, is 1"):
        folder.open(job(str(tmp_path), seed=1))
    folder.open(job(str(tmp_path)))


def test_unfinished_files_of_a_crash_go(tmp_path: Path) -> None:
    for kind in ("state", "losses", "pictures"):
        (tmp_path / kind).mkdir()
        for name in (f".decoder.pt.{'0' * 32}.tmp", f".autoencoder.pt.{'0' * 32}.tmp", "decoder-00000002"):
            (tmp_path / kind / name).write_bytes(b"")
    RunFolder(str(tmp_path)).drop_after("decoder", 2)
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {f".autoencoder.pt.{'0' * 32}.tmp", "decoder-00000002"}


def test_a_job_that_came_to_nothing_gives_way(out_url: str) -> None:
    """It may have been misspelt; what was made for it goes, and its settings too."""
    folder = RunFolder(out_url)
    folder.open(job(out_url))
    folder.write_transform(BlockTransform.fit([np.zeros((1, 8, 8, 3), np.uint8)]))
    folder.open(job(out_url))
    assert folder.read_transform() is not None
    folder.open(job(out_url, seed=1))
    assert folder.read_transform() is None
    folder.save_state("autoencoder", {"step": 1})
    with pytest.raises(OtherRunError, match="seed: was 1, is 0"):
        folder.open(job(out_url))


def test_no_credentials_are_written(tmp_path: Path) -> None:
    secret = "https://user:secret@host/{name}?signature=secret"
    given = job(
        str(tmp_path),
        input={"urls": secret.format(name="a.tar")},
        network={"encoder": secret.format(name="vae")},
        autoencoder={"steps": 0},
        decoder={"steps": 5, "lpips_weights": secret.format(name="vgg.pth")},
    )
    RunFolder(str(tmp_path)).open(given)
    written = (tmp_path / "_train.json").read_text()
    assert "secret" not in written
    assert json.loads(written)["decoder.lpips_weights"] == ["https://host/vgg.pth"]
    RunFolder(str(tmp_path)).open(given)


def test_a_picture_has_a_row_of_each(tmp_path: Path) -> None:
    went_in, came_out = torch.full((9, 3, 16, 24), -1.0), torch.full((9, 3, 16, 24), 2.0)
    RunFolder(str(tmp_path)).write_picture("decoder", 3, [went_in, came_out])
    drawn = np.asarray(PIL.Image.open(io.BytesIO((tmp_path / "pictures/decoder-00000003.jpg").read_bytes())))
    assert drawn.shape == (32, 8 * 24, 3)
    assert drawn[:14].max() < 5
    assert drawn[18:].min() > 250
