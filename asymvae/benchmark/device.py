"""What the device can do at best, and what a call takes of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final

import torch

# Kind of memory measurement, by device: said in every table.
MEMORY: Final = {
    "cuda": "most that the CUDA allocator held during a call, beyond weights and inputs",
    "cpu": "most that torch's CPU allocator held during a call (by its profiler), beyond weights and inputs",
}
_SIDE: Final = {"cuda": 8192, "cpu": 2048}  # large enough that a matrix product reaches its limit
_PEAK_SECONDS: Final = 1.0


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(call: Callable[[], object], device: str, calls: int = 1) -> float:
    """Wall-clock seconds of one of ``calls`` calls in a row, to the last result."""
    synchronize(device)
    started = time.perf_counter()
    for _ in range(calls):
        call()
    synchronize(device)
    return (time.perf_counter() - started) / calls


@torch.inference_mode()
def matmul_peak(device: str, dtype: str, side: int | None = None) -> float:
    """FLOP/s of a product of two square matrices of random numbers, the best of about a second of them.

    Random, for products of zeros take less power and run faster.
    """
    side = side or _SIDE[device]
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(side, side, generator=generator).to(device, getattr(torch, dtype)) for _ in range(2))
    best = seconds_of(lambda: left @ right, device)
    until = time.perf_counter() + _PEAK_SECONDS
    while time.perf_counter() < until:
        best = min(best, seconds_of(lambda: left @ right, device))
    return 2 * side**3 / best


def memory_of(call: Callable[[], object], device: str) -> int:
    """Bytes that one call holds at its peak, its result included, what was there before not."""
    if device == "cuda":
        synchronize(device)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        synchronize(device)
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it tells stderr that it starts and stops
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    # Every allocation and, negative, every release; torch's own sums are by operator and don't give a peak.
    found = profile.profiler.kineto_results.events()
    held = most = 0
    for event in sorted((event for event in found if event.name() == "[memory]"), key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most
