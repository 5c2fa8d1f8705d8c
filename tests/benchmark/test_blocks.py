"""The network's blocks, timed one by one."""

from __future__ import annotations

import pytest

from asymvae.benchmark import blocks
from asymvae.benchmark.contenders import Network
from asymvae.benchmark.network import Case, Part, all_ways
from asymvae.model.work import decode_work, encode_work, total
from tests.tiny import tiny_model

UP = ["up 0", "up 1", "up 2", "up 3"]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("encode", ["down 0", "down 1", "down 2", "down 3", "middle", "the rest"]),
        ("decode", ["middle", *UP, "the rest"]),
        ("decode_masked", ["condition", "middle", *UP, "the rest"]),
    ],
)
def test_the_blocks_of_ours_and_of_diffusers_are_the_work_model_s(part: Part, expected: list[str]) -> None:
    network = Network.of("tiny", tiny_model())
    ways = all_ways("float32", layouts=["contiguous"], against=["float32"], compiled=["ours", "diffusers"])
    models = {way: network.make(way, "cpu") for way in blocks.ways_of(ways)}
    made = blocks.rows(network, models, Case(part, 32, 2), device="cpu", peaks={"float32": 1e11}, rounds=2)
    rows = [dict(zip(blocks.HEAD, row, strict=True)) for row in made]
    assert [row["block"] for row in rows if row["network"] == "ours"] == expected
    assert [row["block"] for row in rows if row["network"] == "diffusers"] == expected
    assert all(float(row["ms"]) > 0 for row in rows)
    config = network.config
    works = encode_work(config, 32, 32) if part == "encode" else decode_work(config, 32, 32, masked=part != "decode")
    flops = sum(float(row["TFLOP"]) for row in rows if row["network"] == "ours") * 1e12
    assert flops == pytest.approx(2 * total(works).flops, rel=0.02)  # of both images, in three digits each


def test_nothing_is_left_on_the_models() -> None:
    network = Network.of("tiny", tiny_model())
    (way,) = all_ways("float32", layouts=[])
    model = network.make(way, "cpu")
    list(
        blocks.rows(
            network, {way: model}, Case("decode_masked", 32, 1), device="cpu", peaks={"float32": 1e11}, rounds=1
        )
    )
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any("forward_rows" in vars(module) for module in model.modules())
