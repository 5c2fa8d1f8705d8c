"""The work model against torch's counter, on our model and on diffusers', and against the published sizes' numbers."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from asymvae.model import PUBLISHED, AsymmetricAutoencoderKL, AutoencoderConfig
from asymvae.model.work import Work, decode_work, encode_work, total
from tests.model.small import SMALL

CONFIGS = PUBLISHED | {"small": SMALL}


def config_of(name: str) -> AutoencoderConfig:
    with torch.device("meta"):
        return AsymmetricAutoencoderKL(**CONFIGS[name]).config


def counted(run: Any) -> dict[str, int]:
    """FLOPs by module of the encoder or decoder, and under "all"."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    modules = {name.partition(".")[2]: sum(of.values()) for name, of in counter.get_flop_counts().items()}
    return modules | {"all": counter.get_total_flops()}


@pytest.mark.parametrize("kind", [AsymmetricAutoencoderKL, diffusers.AsymmetricAutoencoderKL])
@pytest.mark.parametrize("name", CONFIGS)
def test_flops_are_those_that_torch_counts(name: str, kind: type[Any]) -> None:
    height, width = 64, 96  # not square: rows and columns can't be mixed up
    with torch.device("meta"):
        model = kind(**CONFIGS[name]).eval()
        image, mask = torch.empty(1, 3, height, width), torch.empty(1, 1, height, width, dtype=torch.bool)
        mask = mask if kind is AsymmetricAutoencoderKL else mask.float()
        latent = torch.empty(1, 4, height // 8, width // 8)
    config = config_of(name)
    encoded = counted(lambda: model.encode(image))
    assert total(encode_work(config, height, width)).flops == encoded["all"]
    assert total(decode_work(config, height, width)).flops == counted(lambda: model.decode(latent))["all"]

    masked = counted(lambda: model.decode(latent, image=image, mask=mask))
    parts = decode_work(config, height, width, masked=True)
    again = 0  # ours makes the first layer's features twice, rather than keep them
    if kind is AsymmetricAutoencoderKL:
        again = 2 * 9 * config.out_channels * config.up_block_out_channels[0] * height * width
    assert total(parts).flops + again == masked["all"]
    assert parts["condition"].flops == masked["condition_encoder"]
    assert parts["middle"].flops == masked["mid_block"]
    for block in range(4):
        assert parts[f"up {block}"].flops == masked[f"up_blocks.{block}"]
        assert encode_work(config, height, width)[f"down {block}"].flops == encoded[f"down_blocks.{block}"]


def test_the_published_sizes_in_tflop() -> None:
    x_1_5, x_2 = config_of("x-1-5"), config_of("x-2")

    def tflop(parts: dict[str, Work]) -> float:
        return float(f"{total(parts).flops / 1e12:.4g}")

    for size, encode, decode, masked, larger in (
        (256, 0.2730, 1.681, 2.020, 4.593),
        (512, 1.117, 6.761, 8.117, 18.42),
        (1024, 4.879, 27.66, 33.09, 74.52),
    ):
        assert tflop(encode_work(x_1_5, size, size)) == pytest.approx(encode, abs=5e-4 if size == 256 else 0)
        assert tflop(decode_work(x_1_5, size, size)) == decode
        assert tflop(decode_work(x_1_5, size, size, masked=True)) == masked
        assert tflop(decode_work(x_2, size, size, masked=True)) == larger

    parts = decode_work(x_1_5, 512, 512, masked=True)
    named = ("middle", "up 0", "up 1", "up 2", "up 3", "condition")
    assert [round(parts[part].flops / 1e12, 3) for part in named] == [0.245, 0.522, 2.087, 2.300, 1.604, 1.356]


def test_traffic() -> None:
    decode = total(decode_work(config_of("x-1-5"), 512, 512))
    assert decode.traffic() / 1e9 == pytest.approx(9.5, rel=0.03)
    assert decode.traffic(8) == 8 * decode.traffic() - 7 * 2 * decode.weights  # weights are read once a batch
    assert decode.traffic(element_bytes=4) == 2 * decode.traffic()
    with torch.device("meta"):
        modules = AsymmetricAutoencoderKL(**CONFIGS["x-1-5"])
    encode, masked = encode_work(modules.config, 512, 512), decode_work(modules.config, 512, 512, masked=True)
    numbers = sum(parameter.numel() for parameter in modules.parameters() if parameter.ndim > 1)
    assert total(encode).weights + total(masked).weights == numbers
