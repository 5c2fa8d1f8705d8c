"""The formula of peak memory against what is alive while the network runs: never below it, and not far above."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from asymvae.benchmark.device import memory_of
from asymvae.model import PUBLISHED, AsymmetricAutoencoderKL
from asymvae.model.memory import decode_bytes, encode_bytes, weight_bytes
from tests.model.live_bytes import LiveBytes
from tests.model.small import CONFIGS, SMALL

PARTS = ("encode", "decode", "decode(image, mask)")


def on_meta(name: str, dtype: torch.dtype) -> AsymmetricAutoencoderKL:
    with torch.device("meta"):
        return AsymmetricAutoencoderKL(**(PUBLISHED | CONFIGS)[name]).to(dtype).eval()


def calls(
    model: AsymmetricAutoencoderKL, height: int, width: int, device: str = "meta"
) -> dict[str, Callable[[], object]]:
    factor = model.config.encoder_factor
    image = torch.zeros(1, 3, height, width, dtype=model.dtype, device=device)
    mask = torch.ones(1, 1, height, width, dtype=torch.bool, device=device)  # all hole: on a CPU less takes less
    latent = torch.zeros(
        1, model.config.latent_channels, height // factor, width // factor, dtype=model.dtype, device=device
    )
    made: list[Callable[[], object]] = [
        lambda: model.encode(image),
        lambda: model.decode(latent),
        lambda: model.decode(latent, image=image, mask=mask),
    ]
    return dict(zip(PARTS, made, strict=True))


def formula(model: AsymmetricAutoencoderKL, height: int, width: int, rows: int | None = None) -> dict[str, int]:
    given: Any = (model.config, height, width, model.dtype)
    said = (
        encode_bytes(*given, rows=rows),
        decode_bytes(*given, rows=rows),
        decode_bytes(*given, masked=True, rows=rows),
    )
    return dict(zip(PARTS, said, strict=True))


def peak(call: Callable[[], object]) -> int:
    with torch.inference_mode(), LiveBytes() as live:
        call()
    return live.peak


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", [*PUBLISHED, *CONFIGS])
def test_the_formula_is_what_is_alive_at_the_peak(name: str, dtype: torch.dtype) -> None:
    model = on_meta(name, dtype)
    most = 1.1 if name in PUBLISHED else 1.35  # three channels in, of eight
    for height, width in ((64, 64), (256, 512), (1024, 1024)):
        said = formula(model, height, width)
        for part, call in calls(model, height, width).items():
            assert 1 <= said[part] / peak(call) <= most, (part, height, width)


@pytest.mark.parametrize("name", [*PUBLISHED, *CONFIGS])
def test_the_formula_of_strips(name: str) -> None:
    model = on_meta(name, torch.bfloat16)
    for rows in (64, 128):
        model.enable_tiling(rows)
        said = formula(model, 512, 256, rows)
        for part, call in calls(model, 512, 256).items():
            most = 1.1 if name in PUBLISHED else 1.6  # of a few channels each, where the latent weighs more
            assert 1 <= said[part] / peak(call) <= most, (part, rows)


def test_a_cpu_allocates_what_the_formula_says(one_thread: None) -> None:
    # channels_last, and widths that oneDNN doesn't pad: it copies nothing
    widths = {"down_block_out_channels": (32, 32, 64, 64), "up_block_out_channels": (48, 96, 192, 192)}
    model = AsymmetricAutoencoderKL(**SMALL | widths | {"norm_num_groups": 16}).eval()
    model.to(memory_format=torch.channels_last)
    said = formula(model, 256, 128)
    for part, call in calls(model, 256, 128, "cpu").items():
        with torch.inference_mode():
            assert 0.99 <= said[part] / memory_of(call, "cpu") <= 1.1, part


def test_weights_are_counted_with_what_lies_beside_them() -> None:
    model = on_meta("x-1-5", torch.bfloat16)
    parameters = sum(tensor.numel() for tensor in model.parameters())
    assert weight_bytes(model) == 2 * parameters
    model.register_buffer("folded", torch.zeros(10, dtype=torch.float32, device="meta"), persistent=False)
    assert weight_bytes(model) == 2 * parameters + 40
