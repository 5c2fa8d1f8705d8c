"""How fast the network is on a device, in as much time as there is: what doesn't fit is left out, and said."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asymvae.benchmark import blocks, network_report
from asymvae.benchmark.contenders import Network, Way
from asymvae.benchmark.device import seconds_of
from asymvae.benchmark.network import Case, Part, Timing, flops_of, make_call, make_inputs, measure_case
from asymvae.benchmark.turns import number
from asymvae.tables import markdown
from tests.peers.gpu_checks import deterministic

Say = Callable[[str], None]


class OutOfTimeError(BaseException):
    """The budget is spent. No Exception: torch's compiler catches those on its way."""


class Budget:
    """Seconds of wall clock from now on."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    def left(self) -> float:
        return self._until - time.monotonic()

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Raises OutOfTimeError inside the block once the time is over."""

        def stop(*_: object) -> None:
            raise OutOfTimeError

        before = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, max(self.left(), 1e-3))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


@dataclass
class Plan:
    """What is measured, in this order. ``share``: of the peak that an unknown network is taken to reach, to say what
    fits; corrected by what is seen."""

    network: Network
    device: str
    dtype: str
    peak: float
    rounds: int
    least_seconds: float
    share: float = 0.1
    compiling: float = 60.0  # seconds that a shape takes at the most, as far as is known

    def seconds(self, case: Case, ways: Sequence[Way]) -> float:
        once = case.batch * flops_of(self.network, case) / (self.share * self.peak)
        timed = self.rounds * max(once, self.least_seconds)
        return len(ways) * (3 * once + timed) + self.compiling * sum(way.compiled for way in ways)


def speed(plan: Plan, ways: Sequence[Way], cases: Sequence[Case], budget: Budget, say: Say) -> list[Timing]:
    """Prints a table of what fitted and a line for what didn't. Raises OutOfTimeError from wherever it is."""
    timings: list[Timing] = []
    left_out: list[str] = []
    models = {way: plan.network.make(way, plan.device) for way in ways}
    shape: tuple[int, int] | None = None
    try:
        for case in cases:
            new = (case.size, case.batch) != shape
            needed = plan.seconds(case, [way for way in ways if new or not way.compiled])
            if needed > budget.left():
                left_out.append(f"{case.part} {case.size} px, batch {case.batch} (about {needed:.0f} s)")
                continue
            if new:
                torch._dynamo.reset()
                shape = (case.size, case.batch)
            started = time.monotonic()
            found = list(
                measure_case(
                    plan.network,
                    models,
                    case,
                    device=plan.device,
                    peaks={plan.dtype: plan.peak},
                    rounds=plan.rounds,
                    least_seconds=plan.least_seconds,
                )
            )
            timings += found
            _learn(plan, found, time.monotonic() - started, ways if new else ())
    finally:
        if timings:
            say(network_report.table(timings))
        if left_out:
            say("Left out, for it would not have fitted into the time that was left: " + "; ".join(left_out) + ".")
    return timings


def _learn(plan: Plan, found: Sequence[Timing], seconds: float, compiled: Sequence[Way]) -> None:
    shares = [timing.share_of_peak for timing in found if not timing.failed]
    if shares:
        plan.share = min(shares)
    count = sum(way.compiled for way in compiled)
    if count:
        plan.compiling = max(1.0, seconds / count)


def cases_of(shapes: Sequence[tuple[int, int]], parts: Sequence[Part]) -> list[Case]:
    return [Case(part, size, batch) for size, batch in shapes for part in parts]


def by_block(plan: Plan, ways: Sequence[Way], cases: Sequence[Case], budget: Budget, say: Say) -> None:
    """Where the time goes. Nothing where it doesn't fit."""
    models = {way: plan.network.make(way, plan.device) for way in ways}
    rows: list[list[str]] = []
    for case in cases:
        if plan.seconds(case, ways) > budget.left():
            say(f"Left out for want of time: blocks of {case.part}.")
            continue
        rows += blocks.rows(
            plan.network, models, case, device=plan.device, peaks={plan.dtype: plan.peak}, rounds=plan.rounds
        )
    if rows:
        say(markdown(blocks.HEAD, rows))


@torch.inference_mode()
def modes(plan: Plan, shapes: Sequence[tuple[int, int]], budget: Budget, say: Say) -> None:
    """decode(image, mask) of ours: eagerly, under deterministic algorithms as workers run it, and as a CUDA graph."""
    way = Way("ours", plan.dtype, "channels_last")
    model = plan.network.make(way, plan.device)
    rows = []
    for case in cases_of(shapes, ["decode_masked"]):
        if 6 * plan.seconds(case, [way]) > budget.left():
            say(f"Left out for want of time: modes of running at {case.size} px, batch {case.batch}.")
            continue
        call = make_call(model, way, case, make_inputs(plan.network, case, plan.device))
        eager = _milliseconds(call, plan)
        with deterministic():
            strict = _milliseconds(call, plan)
        row = [str(case.size), str(case.batch), number(eager), number(strict)]
        if plan.device == "cuda":
            try:
                graph, difference = _captured(call)
                replayed = _milliseconds(graph, plan)
                row += [number(replayed), number(eager / replayed), f"{difference:.0e}"]
                del graph
            except RuntimeError as error:
                row += [f"{type(error).__name__}: {str(error).strip().splitlines()[0][:80]}", "", ""]
        else:
            row += ["needs CUDA", "", ""]
        rows.append(row)
    head = ("px", "batch", "eager, ms", "deterministic, ms", "CUDA graph, ms", "eager / graph", "graph is off by")
    say(markdown(head, rows))


def _milliseconds(call: Callable[[], object], plan: Plan) -> float:
    once = seconds_of(call, plan.device)
    calls = max(1, math.ceil(plan.least_seconds / once))
    return 1e3 * min(seconds_of(call, plan.device, calls) for _ in range(plan.rounds))


def _captured(call: Callable[[], Tensor]) -> tuple[Callable[[], None], float]:
    """The call as a graph that is replayed, and by how much its result differs from the eager one's."""
    eager = call().float()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries choose and allocate before the capture
        for _ in range(2):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    graph.replay()
    torch.cuda.synchronize()
    return graph.replay, float((result.float() - eager).abs().max() / eager.abs().max())


@torch.inference_mode()
def tiling(plan: Plan, sizes: dict[int, float], budget: Budget, say: Say) -> None:
    """decode(image, mask) in strips of one image of each size, within as many GB of the device's memory."""
    way = Way("ours", plan.dtype, "channels_last")
    model: Any = plan.network.make(way, plan.device)
    rows = []
    for size, gigabytes in sizes.items():
        case = Case("decode_masked", size, 1)
        if 2 * plan.seconds(case, [way]) > budget.left():
            say(f"Left out for want of time: {size} px in strips.")
            continue
        call = make_call(model, way, case, make_inputs(plan.network, case, plan.device))
        for name, rows_a_strip, offload in (("whole", None, False), ("strips", 1, False), ("offloaded", 1, True)):
            if rows_a_strip is None:
                model.disable_tiling()
            else:
                model.enable_tiling(offload=offload)
            rows.append([str(size), name, number(gigabytes), *_within(call, plan.device, gigabytes * 1e9)])
    say(markdown(("px", "decode(image, mask)", "GB it may have", "seconds", "GB at the most"), rows))


def _within(call: Callable[[], Tensor], device: str, most: float) -> list[str]:
    """Seconds of the second call, and the most that torch took of the device, weights and all."""
    if device != "cuda":
        return [number(seconds_of(call, device)), "needs CUDA"]
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_per_process_memory_fraction(min(1.0, most / total))
    try:
        call()
        seconds = seconds_of(call, device)
    except torch.OutOfMemoryError:
        return ["out of memory", number(most / 1e9)]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return [number(seconds), number(torch.cuda.max_memory_reserved() / 1e9)]
