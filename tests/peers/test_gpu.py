"""The command for a GPU machine, run here on the CPU: its kernels in Triton's interpreter, without our dependencies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from asymvae.model.norm import GroupNorm
from tests.peers import gpu, gpu_checks
from tests.peers.gpu_speed import Budget, OutOfTimeError

ROOT = Path(__file__).parents[2]
QUICK = ["--device", "cpu", "--config", "demo", "--quick"]
ABSENT = (
    *("pydantic", "pydantic_settings", "yaml", "fsspec", "safetensors", "huggingface_hub", "diffusers", "ray"),
    *("pyarrow", "PIL", "cv2", "simplejpeg", "scipy", "webdataset", "matplotlib", "jinja2", "psutil", "pytest"),
)


@pytest.mark.skipif(sys.platform != "linux", reason="triton has wheels for Linux only")
def test_it_runs_where_torch_and_triton_alone_are_installed() -> None:
    code = f"import sys\nfor name in {ABSENT}:\n    sys.modules[name] = None\n"
    code += f"import torch; torch.set_num_threads(1)\nfrom tests.peers.gpu import main\nsys.exit(main({QUICK}))"
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    said = ran.stdout
    assert "checks passed.**" in said
    for kernel in ("moments", "merge", "apply", "add"):
        assert f"| kernel {kernel}: " in said
    assert "diffusers is not installed. In its place stands *ours, plain*" in said
    assert "ours over it" in said
    assert "| condition " in said
    assert "CUDA graph, ms" in said
    assert "| 576 | offloaded" in said


def test_a_wrong_norm_is_seen_and_the_command_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = GroupNorm.forward
    monkeypatch.setattr(gpu, "_measure", lambda *_: None)
    monkeypatch.setattr(
        GroupNorm,
        "forward",
        lambda norm, x, **how: right(norm, x, **how) * (1 + 1e-3 * (not x.is_contiguous())),  # as a bad kernel would
    )
    assert gpu.main(QUICK) == 1
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if "FAILED" in line]
    assert any("optimized: decode(image, mask)" in row and "float32" in row for row in rows)
    assert not any("plain:" in row for row in rows)


def test_what_raises_is_a_failed_check_among_the_others() -> None:
    def broken() -> object:
        yield gpu_checks.Check("first", "float32", True)
        raise RuntimeError("CUDA error: no kernel image\nat line 3")

    first, second = gpu_checks.guarded("kernels", broken())  # type: ignore[arg-type]
    assert (first.passed, second.passed) == (True, False)
    assert second.row() == ["kernels", "", "", "", "FAILED: RuntimeError: CUDA error: no kernel image"]


def test_the_time_is_kept_to(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def forever(_: object) -> int:
        while True:
            torch.zeros(8).sum()

    monkeypatch.setattr(gpu, "_check", forever)
    assert gpu.main([*QUICK, "--seconds=0.2"]) == 1
    assert "the 0 s are over" in capsys.readouterr().out
    with pytest.raises(OutOfTimeError), Budget(0.01).enforced():
        forever(None)
