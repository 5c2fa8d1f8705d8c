"""A device, checked and measured: ``python -m tests.peers.gpu`` in a checkout, with torch alone (and triton).

No network, no other package and no checkpoint is needed: weights are random, made on the device. First what must hold
is checked against float64 on the CPU: each Triton kernel, the optimized network whole and in strips, diffusers' where
it is installed, the same bytes again, attention's kernel. Then come the tables: ours beside diffusers, eager and
compiled; block by block; CUDA graphs; large images in strips. All of it within --seconds (480): what doesn't fit is
left out, and said. Exit code 1 where a check failed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, before CUDA starts: as workers have it

import torch

from asymvae.benchmark import device as machine_of
from asymvae.benchmark import network_report
from asymvae.benchmark.contenders import NETWORKS, Network, Way, diffusers_is_there
from asymvae.benchmark.machine import describe, headline
from asymvae.tables import markdown
from tests.peers import gpu_checks as checks
from tests.peers.gpu_speed import Budget, OutOfTimeError, Plan, by_block, cases_of, modes, speed, tiling

_FULL = [(512, 16), (512, 1), (256, 16), (256, 1), (1024, 1), (1024, 16)]
_COMPILED = [(512, 16), (512, 1), (256, 1), (1024, 1), (256, 16), (1024, 16)]
_IN_STRIPS = {2048: 24.0, 4096: 80.0}
_SMALL = [(32, 2)]


def main(arguments: Sequence[str]) -> int:
    flags = _flags(arguments)
    budget = Budget(flags.seconds)
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    if flags.quick:
        machine_of._SIDE["cpu"], machine_of._PEAK_SECONDS = 64, 0.01
    machine = describe("python -m tests.peers.gpu " + shlex.join(arguments))
    _say(f"`{machine['command']}`\n\n{headline(machine)}")
    failed = -1
    try:
        with budget.enforced():
            failed = _check(flags)
            _measure(flags, budget)
    except OutOfTimeError:
        _say(f"**Stopped**: the {flags.seconds:.0f} s are over; what isn't above was not measured.")
    if failed < 0:
        _say("The checks did not come to their end.")
    return 1 if failed else 0


def _check(flags: argparse.Namespace) -> int:
    bench = checks.Bench(flags.config, 64, flags.device)
    kinds: list[tuple[str, Iterator[checks.Check]]] = []
    for dtype in checks.DTYPES:
        if checks.has_kernels(flags.device) and not (flags.quick and dtype == "bfloat16"):
            kinds.append((f"kernels, {dtype}", _kernels(flags, dtype)))
        kinds.append((f"parity, {dtype}", checks.parity(bench, dtype)))
        kinds.append((f"determinism, {dtype}", checks.determinism(bench, dtype)))
        kinds.append((f"attention, {dtype}", checks.attention(flags.device, dtype)))
    kinds.append(("ours and diffusers", checks.beside_diffusers(bench)))
    found = [check for name, kind in kinds for check in checks.guarded(name, kind)]
    _say(markdown(checks.HEAD, [check.row() for check in found]))
    if not checks.has_kernels(flags.device):
        _say("The Triton kernels need CUDA, or TRITON_INTERPRET=1: not checked.")
    failed = [check for check in found if not check.passed]
    _say(f"**{len(found) - len(failed)} of {len(found)} checks passed.**")
    return len(failed)


def _kernels(flags: argparse.Namespace, dtype: str) -> Iterator[checks.Check]:
    from tests.peers.gpu_kernels import kernels

    yield from kernels(flags.device, dtype, quick=flags.quick)


def _measure(flags: argparse.Namespace, budget: Budget) -> None:
    dtype = flags.dtype
    peak = machine_of.matmul_peak(flags.device, dtype)
    network = Network.random(flags.config, device=flags.device)
    rounds, least = (1, 1e-6) if flags.quick else (3, 0.1)
    plan = Plan(network, flags.device, dtype, peak, rounds, least)
    _say(f"## {network.name}; a matrix product in {dtype}: {peak / 1e12:.3g} TFLOP/s")
    peer = "diffusers"
    if not diffusers_is_there():
        peer = "plain"
        _say("diffusers is not installed. In its place stands *ours, plain*: our network without `optimize()`.")
    ours, theirs, theirs_last = (
        Way(maker, dtype, layout)  # type: ignore[arg-type]
        for maker, layout in (("ours", "channels_last"), (peer, "contiguous"), (peer, "channels_last"))
    )
    steps: list[Callable[[], object]] = [
        lambda: speed(plan, [ours, theirs, theirs_last], _cases(flags, _FULL[:2], "decode"), budget, _say),
        lambda: by_block(plan, [ours, theirs], _cases(flags, _FULL[:1]), budget, _say),
        lambda: modes(plan, _SMALL if flags.quick else [(256, 1), (512, 1), (512, 16)], budget, _say),
        lambda: tiling(plan, {576: 24.0} if flags.quick else _IN_STRIPS, budget, _say),
        lambda: speed(plan, [ours, theirs, theirs_last], _cases(flags, _FULL[2:]), budget, _say),
    ]
    if flags.quick:
        _say("--quick: nothing is compiled.")
    else:
        compiled = [ours, *(Way(way.maker, dtype, way.layout, True) for way in (ours, theirs))]
        steps.insert(4, lambda: speed(plan, compiled, _cases(flags, _COMPILED), budget, _say))
    for step in steps:
        step()
        if flags.device == "cuda":
            torch.cuda.empty_cache()
    _say("\n\n".join([*network_report.NOTES, f"MiB: {machine_of.MEMORY[flags.device]}."]))


def _cases(flags: argparse.Namespace, shapes: Sequence[tuple[int, int]], *more: str) -> list[object]:
    return cases_of(_SMALL if flags.quick else shapes, ["decode_masked", "encode", *more])  # type: ignore


def _say(text: str) -> None:
    print(text, end="\n\n", flush=True)


def _flags(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--config", choices=sorted(NETWORKS), default="x-1-5")
    parser.add_argument("--dtype", choices=sorted(checks.DTYPES), default="bfloat16", help="of what is measured")
    parser.add_argument("--seconds", type=float, default=480.0, help="for all of it")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, nothing compiled: that the command runs")
    flags = parser.parse_args(arguments)
    if flags.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --device cpu checks what can be checked without")
    return flags


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
