"""``python -m jobs.evaluate``, as it is called."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from asymvae.model.autoencoder import AsymmetricAutoencoderKL
from asymvae.training.linear import FILE, BlockTransform
from jobs.evaluate import main
from tests.tiny import picture, sample, tiny_model, write_tar


@pytest.fixture
def urls(tmp_path: Path) -> str:
    good, bad = sample(0, (64, 64)), sample(1, (64, 64))
    samples = [("good", good), ("also", sample(2, (40, 64))), ("bad", bad | {"png": bad["png"][:200]})]
    return str(write_tar(tmp_path / "in" / "a.tar", samples))


def test_the_tables_of_a_checkpoint(
    urls: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet.png"
    flags = [f"--input.urls={urls}", f"--model.path={checkpoint}", "--sizes=32,64", "--picture", str(sheet)]
    assert main(flags) == 0
    said = capsys.readouterr()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.out.splitlines() if line[:1] == "|"]
    assert [row[:2] for row in rows[2:4]] == [["32", "2"], ["64", "2"]]
    assert [row[:3] for row in rows[6:]] == [
        ["32", "none", "2"],
        ["32", "all", "2"],
        ["64", "none", "2"],
        ["64", "all", "2"],
    ]
    assert "1 of 3: a/bad (image_truncated)" in said.out
    assert "block transform" not in said.out
    assert str(sheet) in said.err
    drawn = np.asarray(PIL.Image.open(io.BytesIO(sheet.read_bytes())))
    assert drawn.shape[1] > 5 * 160


def test_the_block_transform_beside_the_checkpoint_is_compared_with(
    urls: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoint"
    tiny_model().save_pretrained(folder)
    pictures = [np.stack([picture(64, 64, seed) for seed in range(4)])]
    BlockTransform.fit(pictures).save(folder / FILE)
    flags = [f"--input.urls={urls}", f"--model.path={folder}", "--sizes=64"]
    assert main(flags) == 0
    beside = capsys.readouterr().out
    assert "block transform" in beside
    BlockTransform.fit(pictures, factor=16).save(tmp_path / "other.safetensors")
    with pytest.raises(SystemExit) as exit_:
        main([*flags, f"--block_transform={tmp_path / 'other.safetensors'}"])
    assert exit_.value.code == 2
    assert "16 px blocks" in capsys.readouterr().err
    for wrong in (folder / "config.json", folder / "diffusion_pytorch_model.safetensors"):
        with pytest.raises(SystemExit) as exit_:
            main([*flags, f"--block_transform={wrong}"])
        assert exit_.value.code == 2
        assert "no block transform" in capsys.readouterr().err


def test_a_checkpoint_in_a_store_has_its_block_transform_beside_it_too(
    urls: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = "memory://evaluated/checkpoint"
    tiny_model().save_pretrained(folder)
    flags = [f"--input.urls={urls}", f"--model.path={folder}", "--sizes=32"]
    assert main(flags) == 0
    assert "block transform" not in capsys.readouterr().out
    BlockTransform.fit([np.stack([picture(64, 64, seed) for seed in range(4)])]).save(f"{folder}/{FILE}")
    assert main(flags) == 0
    assert "block transform" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_:
        main([*flags, f"--block_transform={folder}/none.safetensors"])
    assert exit_.value.code == 2
    assert "none.safetensors" in capsys.readouterr().err


def test_a_network_without_a_condition_branch_that_fits_is_refused(
    urls: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    AsymmetricAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        down_block_out_channels=(8, 8),
        up_block_types=("UpDecoderBlock2D",) * 2,
        up_block_out_channels=(8, 24),
        norm_num_groups=4,
    ).save_pretrained(tmp_path / "odd")
    with pytest.raises(SystemExit) as exit_:
        main([f"--input.urls={urls}", f"--model.path={tmp_path / 'odd'}"])
    assert exit_.value.code == 2
    assert "can't decode with image and mask" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--input.urls={folder}/none-*.tar", "--model.path={checkpoint}"], "matches no file"),
        (["--input.urls={urls}", "--model.path={folder}/nothing"], "nothing"),
        (["--input.urls={urls}", "--model.path={checkpoint}", "--sizes=4"], "sizes"),
        (["--input.urls={urls}", "--model.path={checkpoint}", "--sizes=big"], "sizes"),
        (["--input.urls={urls}", "--model.path={checkpoint}", "--size=256"], "did you mean sizes?"),
        (["--input.urls={urls}", "--model.path={checkpoint}", "--input.image=bmp"], "input.image"),
    ],
)
def test_what_is_wrong_is_said_and_exits_with_2(
    flags: list[str], said: str, urls: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([flag.format(urls=urls, checkpoint=checkpoint, folder=tmp_path) for flag in flags])
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert not captured.out


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    said = capsys.readouterr().out
    for expected in ("reconstruction", "preservation", "exit codes", "examples", "--picture", "--sizes"):
        assert expected in said
