"""The curves of a training run, from the files that a run writes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from asymvae.report.curves import _smooth, draw_losses
from asymvae.training.folder import RunFolder


def _rows(stage: str, first: int, last: int, **losses: float) -> list[dict[str, Any]]:
    row = {"stage": stage, "loss": 0.2, "l1": 0.2, "learning_rate": 1e-3, "seconds": 0.1} | losses
    return [row | {"step": step, "l1": row["l1"] / step} for step in range(first, last + 1)]


def _picture(folder: Path) -> PIL.Image.Image:
    drawn = draw_losses(str(folder / "losses"))
    assert drawn is not None
    assert drawn == draw_losses(str(folder / "losses"))
    return PIL.Image.open(io.BytesIO(drawn))


def test_a_run_is_drawn_from_its_first_state_on(tmp_path: Path) -> None:
    assert draw_losses(str(tmp_path / "losses")) is None
    run = RunFolder(str(tmp_path))
    run.write_losses("autoencoder", 1, _rows("autoencoder", 1, 1))
    one = _picture(tmp_path)
    run.write_losses("autoencoder", 30, _rows("autoencoder", 2, 30))
    run.write_losses("decoder", 30, _rows("decoder", 1, 30, l1_known=0.01))
    two = _picture(tmp_path)
    assert two.width == 2 * one.width
    # a number that is none, as of a run that diverged, and losses of either sign
    run.write_losses("decoder", 60, _rows("decoder", 31, 60, l1_known=np.inf, adversarial=-1.0, discriminator=2.0))
    three = _picture(tmp_path)
    assert (three.width, three.height > two.height) == (two.width, True)


def test_steps_that_a_crash_left_in_two_files_count_once(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    run.write_losses("decoder", 20, _rows("decoder", 1, 20))
    once = _picture(tmp_path)
    run.write_losses("decoder", 15, _rows("decoder", 8, 15))
    assert _picture(tmp_path).tobytes() == once.tobytes()


@pytest.mark.parametrize("count", [1, 2, 39, 200])
def test_smoothing_moves_no_level_not_even_at_the_ends(count: int) -> None:
    assert _smooth(np.full(count, 0.25)) == pytest.approx(np.full(count, 0.25))
    rising = np.arange(count, dtype=np.float64)
    middle = _smooth(rising)[count // 4 : count - count // 4]
    assert middle == pytest.approx(rising[count // 4 : count - count // 4])
