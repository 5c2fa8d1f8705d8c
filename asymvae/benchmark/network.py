"""The network's speed: ours beside diffusers', part by part, in turns, with the share of the machine's peak."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from asymvae.benchmark.contenders import Network, Way
from asymvae.benchmark.device import memory_of, seconds_of
from asymvae.benchmark.turns import in_turns
from asymvae.model.work import decode_work, encode_work, total

Part = Literal["encode", "decode", "decode_masked"]
Call = Callable[[], Tensor]
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Case:
    """``size``: of a square image, in pixels."""

    part: Part
    size: int
    batch: int


@dataclass(frozen=True, slots=True)
class Timing:
    """One timing of one way. ``seconds`` are a call's; FLOPs are the published architecture's, whoever is measured.

    Where a way did not run (out of memory, or not to be compiled here) there is one row of it, with ``failed`` saying
    why, and nothing measured.
    """

    part: str
    size: int
    batch: int
    comparison: str  # timings of one comparison and one round belong together
    dtype: str
    layout: str
    maker: str
    compiled: bool
    round: int = 0
    calls: int = 0
    seconds: float = math.nan
    flops: int = 0  # of a call
    peak_flops: float = math.nan  # a second, of a matrix product in this dtype
    memory: int = 0  # bytes, of a call
    difference: float = math.nan  # largest, from the first way's result, over its largest value
    failed: str = ""

    @property
    def way(self) -> Way:
        return Way(self.maker, self.dtype, self.layout, self.compiled)  # type: ignore[arg-type]

    @property
    def images_per_s(self) -> float:
        return self.batch / self.seconds

    @property
    def flops_per_s(self) -> float:
        return self.flops / self.seconds

    @property
    def share_of_peak(self) -> float:
        return self.flops_per_s / self.peak_flops


def measure(
    network: Network,
    ways: Sequence[Way],
    cases: Sequence[Case],
    *,
    device: str,
    peaks: Mapping[str, float],
    rounds: int,
    least_seconds: float,
    tell: Tell = lambda said: None,
) -> Iterator[Timing]:
    """Every case, all ways in turns. A timing repeats a call until it lasts ``least_seconds``; ``peaks`` are FLOP/s by
    dtype (:func:`asymvae.benchmark.device.matmul_peak`)."""
    models = {way: network.make(way, device) for way in ways}
    for case in cases:
        tell(f"{case.part} {case.size} px, batch {case.batch}: {'; '.join(map(str, ways))} ({ways[0].dtype})")
        yield from _measure_case(network, models, case, peaks, device, rounds, least_seconds)


@torch.inference_mode()
def _measure_case(
    network: Network,
    models: dict[Way, Any],
    case: Case,
    peaks: Mapping[str, float],
    device: str,
    rounds: int,
    least_seconds: float,
) -> Iterator[Timing]:
    comparison = " ".join((next(iter(models)).dtype, next(iter(models)).layout))
    inputs = make_inputs(network, case, device)
    flops = case.batch * _flops(network, case)
    calls: dict[Way, Call] = {}
    repeats: dict[Way, int] = {}
    facts: dict[Way, dict[str, Any]] = {}
    first: Tensor | None = None
    torch._dynamo.reset()  # no case inherits what another one made general
    for way, model in models.items():
        call = make_call(model, way, case.part, inputs)
        about: dict[str, Any] = {"part": case.part, "size": case.size, "batch": case.batch, "maker": way.maker}
        about["comparison"] = comparison
        about |= {"dtype": way.dtype, "layout": way.layout, "compiled": way.compiled}
        about |= {"flops": flops, "peak_flops": peaks[way.dtype]}
        try:
            result = call().float().cpu()
            once = seconds_of(call, device)  # the second call: the first one compiles, or chooses its kernels
            about["memory"] = memory_of(call, device)
        except torch.OutOfMemoryError:
            yield Timing(**about, failed="out of memory")
            if device == "cuda":
                torch.cuda.empty_cache()
            continue
        except RuntimeError as error:  # no C++ compiler, say; hours of other timings are not lost for it
            if not way.compiled:
                raise
            yield Timing(**about, failed=f"not compiled: {type(error).__name__}")
            continue
        first = result if first is None else first
        about["difference"] = ((result - first).abs().max() / first.abs().max()).item()
        calls[way], facts[way], repeats[way] = call, about, max(1, math.ceil(least_seconds / once))
        del result
    timers = {way: _timer(calls[way], device, repeats[way]) for way in calls}
    for number, way, seconds in in_turns(timers, rounds):
        yield Timing(**facts[way], round=number, calls=repeats[way], seconds=seconds)


def _timer(call: Call, device: str, calls: int) -> Callable[[], float]:
    return lambda: seconds_of(call, device, calls)


def make_inputs(network: Network, case: Case, device: str) -> dict[str, Tensor]:
    """float32 on ``device``: latents as wide as an encoder's, images in [-1, 1], masks whose hole is a quarter."""
    generator = torch.Generator().manual_seed(0)
    cells = case.size // network.config.decoder_factor
    latent = torch.randn(case.batch, network.config.latent_channels, cells, cells, generator=generator)
    image = torch.rand(case.batch, network.config.in_channels, case.size, case.size, generator=generator) * 2 - 1
    mask = torch.zeros(case.batch, 1, case.size, case.size)
    mask[..., case.size // 4 : case.size * 3 // 4, case.size // 4 : case.size * 3 // 4] = 1
    return {"latent": latent.to(device), "image": image.to(device), "mask": mask.to(device)}


def make_call(model: Any, way: Way, part: Part, inputs: dict[str, Tensor]) -> Call:
    """One call of a part. Inputs are cast before it, at nobody's cost; ours takes masks as bool, as the pipeline gives
    them, which diffusers can't."""
    latent, image, mask = (way.cast(inputs[name]) for name in ("latent", "image", "mask"))
    if way.maker == "ours":
        mask = mask > 0

    def encode() -> Tensor:
        parameters: Tensor = model.encode(image).latent_dist.parameters
        return parameters

    def decode() -> Tensor:
        sample: Tensor = model.decode(latent).sample
        return sample

    def decode_masked() -> Tensor:
        sample: Tensor = model.decode(latent, image=image, mask=mask).sample
        return sample

    call = {"encode": encode, "decode": decode, "decode_masked": decode_masked}[part]
    if not way.compiled:
        return call
    compiled: Call = torch.compile(call, dynamic=False)
    return compiled


def _flops(network: Network, case: Case) -> int:
    if case.part == "encode":
        return total(encode_work(network.config, case.size, case.size)).flops
    return total(decode_work(network.config, case.size, case.size, masked=case.part == "decode_masked")).flops


def all_cases(parts: Sequence[Part], sizes: Sequence[int], batches: Sequence[int]) -> list[Case]:
    return [Case(*case) for case in itertools.product(parts, sizes, batches)]


def all_ways(
    *,
    dtype: str,
    layout: str,
    against: bool,
    against_dtype: str | None,
    against_layout: str | None,
    compiled: Sequence[str],
) -> list[Way]:
    """Ours and, with ``against``, diffusers', which may keep to a dtype and a memory format of its own; each compiled
    as well where ``compiled`` names it."""
    ways = [Way("ours", dtype, layout)]
    if "ours" in compiled:
        ways.append(Way("ours", dtype, layout, True))
    if against:
        theirs = Way("diffusers", against_dtype or dtype, against_layout or layout)
        ways.append(theirs)
        if "diffusers" in compiled:
            ways.append(Way("diffusers", theirs.dtype, theirs.layout, True))
    return ways
