from __future__ import annotations

import sys

import pytest

from tests.peers import diffusion


@pytest.mark.usefixtures("one_thread")
def test_the_comparison_by_hand_prints_its_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--size", "32", "--images", "2", "--batch", "2", "--steps", "1", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["diffusion", *flags])
    diffusion.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("small, 32 px, 1 steps, 2 images, torch.float32, cpu, ")
    assert [line.split(",")[0] for line in lines[2:]] == ["diffusers", "diffusers", "ours"]
    for line in lines[2:]:
        assert 0 < float(line.split()[-1].rstrip("%")) < 100
