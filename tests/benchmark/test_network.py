"""The network's benchmark: that its numbers hang together. How large they are is the machine's affair."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from asymvae.benchmark import device, network_report
from asymvae.benchmark.contenders import LAYOUTS, NETWORKS, Network, Way
from asymvae.benchmark.network import Case, Timing, all_cases, all_ways, measure
from asymvae.model import AsymmetricAutoencoderKL
from asymvae.model.optimize import forms
from asymvae.model.work import decode_work, encode_work, total
from tests.tiny import tiny_model

ROUNDS = 3
PEAKS = {"float32": 1e11, "bfloat16": 4e11}


@pytest.fixture
def network() -> Network:
    return Network.of("tiny", tiny_model())


def timings_of(network: Network, ways: list[Way], cases: list[Case]) -> list[Timing]:
    return list(measure(network, ways, cases, device="cpu", peaks=PEAKS, rounds=ROUNDS, least_seconds=1e-6))


def test_ours_beside_diffusers(network: Network) -> None:
    ways = all_ways("float32", layouts=["contiguous"], against=["float32"])
    cases = all_cases(("encode", "decode", "decode_masked"), (32,), (2,))
    timings = timings_of(network, ways, cases)
    assert len(timings) == len(cases) * len(ways) * ROUNDS
    assert {timing.comparison for timing in timings} == {"float32"}
    assert [timing.maker for timing in timings[:4]] == ["ours", "diffusers", "diffusers", "ours"]
    config = network.config
    by_part = {
        "encode": total(encode_work(config, 32, 32)).flops,
        "decode": total(decode_work(config, 32, 32)).flops,
        "decode_masked": total(decode_work(config, 32, 32, masked=True)).flops,
    }
    for timing in timings:
        assert timing.flops == 2 * by_part[timing.part]  # of both images
        assert timing.images_per_s == pytest.approx(2 / timing.seconds)
        assert timing.share_of_peak == pytest.approx(timing.flops / timing.seconds / 1e11)
        assert timing.difference < 1e-5  # the same weights and inputs
        output = 2 * 4 * (8 * 4 * 4 if timing.part == "encode" else 3 * 32 * 32)
        assert timing.memory > output
    lines = network_report.table(timings).splitlines()
    assert len(lines) == 2 + len(cases) * len(ways)
    assert [cell.strip() for cell in lines[0].split("|")[11:13]] == ["ours over it", "off by"]
    ours, theirs = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:4])
    assert ours[:6] == ["encode", "32", "2", "ours", "float32", "channels_last"]
    assert ours[10:] == ["", ""]
    assert theirs[3:6] == ["diffusers", "float32", "contiguous"]
    assert " to " in theirs[10]
    panels = network_report.panels(timings)
    assert list(panels) == ["encode", "decode", "decode(image, mask)"]
    assert list(panels["encode"]["ours float32 channels_last"]) == ["2 x 32 px"]


def test_diffusers_may_keep_to_a_dtype_of_its_own(network: Network) -> None:
    ways = all_ways("bfloat16", layouts=["contiguous"], against=["float32"], compiled=("ours", "diffusers"), plain=True)
    assert [(str(way), way.dtype, way.layout) for way in ways] == [
        ("ours", "bfloat16", "channels_last"),
        ("ours, compiled", "bfloat16", "channels_last"),
        ("ours, plain", "bfloat16", "contiguous"),
        ("diffusers", "float32", "contiguous"),
        ("diffusers, compiled", "float32", "contiguous"),
    ]
    timings = timings_of(network, [ways[0], ways[3]], [Case("decode", 32, 1)])
    assert {timing.comparison for timing in timings} == {"bfloat16"}
    assert {timing.dtype for timing in timings} == {"bfloat16", "float32"}
    theirs = [timing for timing in timings if timing.maker == "diffusers"]
    assert 1e-5 < theirs[0].difference < 0.1  # bfloat16's rounding is seen
    made = network.make(ways[0], "cpu")
    kernel = made.decoder.conv_in.weight
    assert kernel.dtype == torch.bfloat16
    assert kernel.is_contiguous(memory_format=LAYOUTS["channels_last"])


def test_ours_is_the_optimized_network_and_plain_is_not(network: Network) -> None:
    ours, plain = (network.make(way, "cpu") for way in all_ways("float32", layouts=["contiguous"], plain=True))
    assert list(forms(ours))
    assert not list(forms(plain))


def test_ours_compiled_has_code_for_the_shape_that_is_measured(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []
    monkeypatch.setattr(AsymmetricAutoencoderKL, "compile_for", lambda _, *size: asked.append(size))
    ways = all_ways("float32", layouts=[], compiled=["ours"])
    timings = timings_of(network, ways, all_cases(("decode", "decode_masked"), (32,), (2,)))
    assert asked == [(2, 32, 32)]
    failed = {(timing.part, str(timing.way)): timing.failed for timing in timings if timing.failed}
    assert failed == {("decode", "ours, compiled"): "compile_for leaves it eager"}
    assert "| ours, compiled over it |" in network_report.table(timings)


def test_what_can_not_be_compiled_is_said_and_the_others_go_on(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CompilerMissing(RuntimeError):
        pass

    def fail(*_: Any, **__: Any) -> Any:
        raise CompilerMissing("no C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    ways = [Way("plain", "float32", "contiguous", compiled=True), Way("diffusers", "float32", "contiguous")]
    timings = timings_of(network, ways, [Case("encode", 32, 1)])
    assert [timing.failed for timing in timings] == ["not compiled: CompilerMissing"] + ROUNDS * [""]
    assert "CompilerMissing" in network_report.table(timings)


def test_what_runs_out_of_memory_is_said_and_the_others_go_on(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError

    ways = [Way("ours", "float32", "contiguous"), Way("diffusers", "float32", "contiguous")]
    monkeypatch.setattr(AsymmetricAutoencoderKL, "encode", fail)
    timings = timings_of(network, ways, [Case("encode", 32, 1)])
    assert [timing.failed for timing in timings] == ["out of memory"] + ROUNDS * [""]
    lines = network_report.table(timings).splitlines()
    assert "out of memory" in lines[2]
    assert "ours" in lines[2]
    assert " to " not in lines[3]  # nothing to compare with
    assert set(network_report.panels(timings)["encode"]) == {"diffusers float32 contiguous"}


def test_the_peak_is_the_best_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_PEAK_SECONDS", 0.01)
    seconds = iter([4.0, 2.0] + [3.0] * 10**6)
    monkeypatch.setattr(device, "seconds_of", lambda call, on: next(seconds))
    assert device.matmul_peak("cpu", "bfloat16", side=64) == 2 * 64**3 / 2.0


def test_memory_is_what_a_call_holds_at_its_peak() -> None:
    kib = 256

    def call() -> torch.Tensor:
        one = torch.zeros(kib * 256)
        two = one + 1
        del one
        return two + 1

    # two of three at a time, and the numbers added
    assert device.memory_of(call, "cpu") == pytest.approx(2 * kib * 1024, abs=64)


def test_every_network_can_be_made() -> None:
    for arguments in NETWORKS.values():
        with torch.device("meta"):
            config = AsymmetricAutoencoderKL(**arguments).config
        assert total(decode_work(config, 64, 64, masked=True)).flops > 0
