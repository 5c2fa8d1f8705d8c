"""The fused norm against float64, in Triton's interpreter; and its kernels, compiled for GPUs that aren't there.

Both run in processes of their own. The interpreter rounds bfloat16 otherwise than a GPU: it is only compiled.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from asymvae.model import fused_norm
from tests.model.fused_norm_interpreted import CASES

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="triton has wheels for Linux only")
ROOT = Path(__file__).parents[2]


def run(module: str, env: dict[str, str]) -> str:
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"tests.model.{module}"],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if not key.startswith("TRITON_")} | env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    return child.stdout


@pytest.fixture(scope="module")
def interpreted() -> Any:
    return json.loads(run("fused_norm_interpreted", {"TRITON_INTERPRET": "1"}))


@pytest.mark.parametrize("name", CASES)
def test_it_equals_float64_within_rounding(name: str, interpreted: Any) -> None:
    found = interpreted["cases"][name]
    limit = {"float32": 2e-6, "float16": 5e-4}[CASES[name].dtype]  # float16: half a unit in the last place
    assert found["error"] < limit
    assert found["like_x"], "dtype or strides changed"
    assert found["again"], "a second run gave other bits"


def test_a_sample_is_the_same_alone_and_in_a_batch(interpreted: Any) -> None:
    assert interpreted["alone_and_in_a_batch"]


def test_a_constant_map_becomes_the_bias(interpreted: Any) -> None:
    assert interpreted["constant_map"] < 1e-6


def test_a_nan_stays_in_its_sample_and_group(interpreted: Any) -> None:
    assert interpreted["nan_reaches"] == [[False, False], [True, False]]


def test_residual_and_bias_are_added_and_rounded_once(interpreted: Any) -> None:
    assert interpreted["residual_float32"] < 2e-7
    assert interpreted["residual_float16"] < 5e-4


def test_an_empty_batch_stays_empty(interpreted: Any) -> None:
    assert interpreted["empty_batch"] == [0, 8, 6, 5]


def test_torch_compile_takes_it_without_a_break(interpreted: Any) -> None:
    assert interpreted["compiled"]


def test_the_kernels_compile_for_ampere_hopper_and_blackwell(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in run("fused_norm_compiled", {"TRITON_CACHE_DIR": str(tmp_path)}).splitlines()]
    assert len(lines) == 4 * (3 * 3 + 2)
    for name, capability, dtype, constants, instructions in lines:
        at = f"{name} for sm_{capability}, {dtype}, {constants}: {instructions}"
        assert not [one for one in instructions if one.startswith(("atom", "red"))], f"not deterministic: {at}"
        if name != "merge" and not constants:
            assert [one for one in instructions if one.startswith("ld.global.v4")], f"not 16 bytes at a time: {at}"


@pytest.mark.parametrize("pixels", [1, 63, 4096, 1023 * 517, 4096 * 4096])
@pytest.mark.parametrize("channels", [1, 6, 24, 128, 192, 768, 1024])
def test_every_pixel_is_in_one_chunk(pixels: int, channels: int) -> None:
    cut = fused_norm.plan(pixels, channels)
    assert cut.rows % cut.block_rows == 0
    assert (cut.chunks - 1) * cut.rows < pixels <= cut.chunks * cut.rows
    tiles = cut.programs // cut.chunks
    assert (tiles - 1) * cut.block_channels < channels <= tiles * cut.block_channels
    assert cut.block_rows * cut.block_channels == 2048
    assert cut.rows * channels < 2**31, "offsets in a chunk are 32-bit"


def test_it_is_not_offered_on_a_cpu() -> None:
    assert not fused_norm.available(torch.zeros(1, 8, 4, 4).contiguous(memory_format=torch.channels_last))


def test_what_it_cannot_take_is_refused() -> None:
    x = torch.zeros(1, 8, 4, 4).contiguous(memory_format=torch.channels_last)
    vector = torch.zeros(8)
    with pytest.raises(ValueError, match="channels_last"):
        fused_norm.group_norm(x.contiguous(), 2, vector, vector, 1e-6, silu=True)
    with pytest.raises(ValueError, match="channels_last"):
        fused_norm.group_norm(x.double(), 2, vector, vector, 1e-6, silu=True)
    with pytest.raises(ValueError, match="3 groups"):
        fused_norm.group_norm(x, 3, vector, vector, 1e-6, silu=True)
    with pytest.raises(ValueError, match="8 channels"):
        fused_norm.group_norm(x, 2, vector, vector, 1e-6, silu=True, conv_bias=torch.zeros(4))
    with pytest.raises(ValueError, match="residual"):
        fused_norm.add_residual_bias(x, x.half(), vector)


def test_the_model_imports_without_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import asymvae.model.fused_norm, asymvae.model.autoencoder"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
