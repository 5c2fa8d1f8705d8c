"""Where in the network the time goes: its blocks timed one by one, in the parts that the work model counts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from asymvae.benchmark.contenders import Network, Way
from asymvae.benchmark.device import synchronize
from asymvae.benchmark.network import PART_NAMES, Case, make_call, make_inputs
from asymvae.benchmark.turns import in_turns, number
from asymvae.model.work import Work, decode_work, encode_work, total

_REST = "the rest"  # first and last layers, and what lies between the blocks

Seconds = dict[str, float]


@torch.inference_mode()
def rows(
    network: Network,
    models: Mapping[Way, Any],
    case: Case,
    *,
    device: str,
    peaks: Mapping[str, float],
    rounds: int,
) -> Iterator[list[str]]:
    """Of each block and way, the cells of HEAD. ``models`` run eagerly; the device is waited for at every block, so
    that the blocks together take somewhat longer than the whole. A first call of each isn't counted.

    The condition encoder's first layer, which ours runs a second time when it is blended in, is then in the rest.
    """
    inputs = make_inputs(network, case, device)
    calls = {way: make_call(model, way, case, inputs) for way, model in models.items()}
    found: dict[Way, list[Seconds]] = {way: [] for way in models}

    def timed(way: Way) -> Seconds:
        with _clock(models[way], case, device) as seconds:
            synchronize(device)
            started = time.perf_counter()
            calls[way]()
            synchronize(device)
            whole = time.perf_counter() - started
        return seconds | {_REST: whole - sum(seconds.values())}

    for way in models:
        calls[way]()
    for _, way, seconds in in_turns({way: lambda way=way: timed(way) for way in models}, rounds):  # type: ignore[misc]
        found[way].append(seconds)
    for block, work in _works(network, case).items():
        flops = case.batch * work.flops
        for way in models:
            median = statistics.median(seconds[block] for seconds in found[way])
            share = flops / median / peaks[way.dtype]
            about = [PART_NAMES[case.part], str(case.size), str(case.batch), block, str(way), way.dtype, way.layout]
            yield [*about, number(flops / 1e12), number(1e3 * median), f"{share:.0%}"]


HEAD = ("part", "px", "batch", "block", "network", "dtype", "layout", "TFLOP", "ms", "of peak")


def _modules(model: Any, case: Case) -> dict[str, Any]:
    """By the work model's names; the same in diffusers' network."""
    if case.part == "encode":
        blocks = {f"down {i}": block for i, block in enumerate(model.encoder.down_blocks)}
        return blocks | {"middle": model.encoder.mid_block}
    blocks = {"middle": model.decoder.mid_block}
    blocks |= {f"up {i}": block for i, block in enumerate(model.decoder.up_blocks)}
    return ({"condition": model.decoder.condition_encoder} if case.part == "decode_masked" else {}) | blocks


def _works(network: Network, case: Case) -> dict[str, Work]:
    if case.part == "encode":
        works = encode_work(network.config, case.size, case.size)
    else:
        works = decode_work(network.config, case.size, case.size, masked=case.part == "decode_masked")
    rest = {name: works.pop(name) for name in ("in", "out")}
    return works | {_REST: total(rest)}


@contextmanager
def _clock(model: Any, case: Case, device: str) -> Iterator[Seconds]:
    """Seconds of each block, while the model runs inside."""
    seconds: Seconds = {}
    started: Seconds = {}

    def before(name: str) -> None:
        synchronize(device)
        started[name] = time.perf_counter()

    def after(name: str) -> None:
        synchronize(device)
        seconds[name] = time.perf_counter() - started[name]

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **how: Any) -> Any:
            before(name)
            made = call(*given, **how)
            after(name)
            return made

        return run

    hooks = []
    modules = _modules(model, case)
    by_rows = [name for name, module in modules.items() if hasattr(module, "forward_rows")]  # no hook sees that
    for name, module in modules.items():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: before(name)))
        hooks.append(module.register_forward_hook(lambda *_, name=name: after(name)))
    for name in by_rows:
        modules[name].forward_rows = timed(name, modules[name].forward_rows)
    try:
        yield seconds
    finally:
        for hook in hooks:
            hook.remove()
        for name in by_rows:
            del modules[name].forward_rows


def ways_of(ways: Sequence[Way]) -> list[Way]:
    """Those whose blocks can be timed: compiled code has none."""
    return [way for way in ways if not way.compiled]
