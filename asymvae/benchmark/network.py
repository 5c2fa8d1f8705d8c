"""The network's speed: ours beside diffusers', part by part, in turns, with the share of the machine's peak."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor

from asymvae.benchmark.contenders import OURS_LIES, Maker, Network, Way
from asymvae.benchmark.device import memory_of, seconds_of
from asymvae.benchmark.turns import in_turns
from asymvae.model.work import decode_work, encode_work, total

Part = Literal["encode", "decode", "decode_masked"]
PART_NAMES: Final = {"encode": "encode", "decode": "decode", "decode_masked": "decode(image, mask)"}  # in tables
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
    comparison: str  # the dtype of ours; timings of one comparison and one round belong together
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
    before: Case | None = None
    for case in cases:
        if before is None or (case.size, case.batch) != (before.size, before.batch):
            torch._dynamo.reset()  # it gives up a function, silently, after so many shapes
        before = case
        tell(f"{case.part} {case.size} px, batch {case.batch}: {'; '.join(map(str, ways))} ({ways[0].dtype})")
        yield from measure_case(
            network, models, case, device=device, peaks=peaks, rounds=rounds, least_seconds=least_seconds
        )


@torch.inference_mode()
def measure_case(
    network: Network,
    models: Mapping[Way, Any],
    case: Case,
    *,
    device: str,
    peaks: Mapping[str, float],
    rounds: int,
    least_seconds: float,
) -> Iterator[Timing]:
    """As :func:`measure`, of one case and networks that are made; the first of them gives the comparison its name."""
    comparison = next(iter(models)).dtype
    inputs = make_inputs(network, case, device)
    flops = case.batch * flops_of(network, case)
    calls: dict[Way, Call] = {}
    repeats: dict[Way, int] = {}
    facts: dict[Way, dict[str, Any]] = {}
    first: Tensor | None = None
    for way, model in models.items():
        about: dict[str, Any] = {"part": case.part, "size": case.size, "batch": case.batch, "maker": way.maker}
        about["comparison"] = comparison
        about |= {"dtype": way.dtype, "layout": way.layout, "compiled": way.compiled}
        about |= {"flops": flops, "peak_flops": peaks[way.dtype]}
        if way.compiled and way.maker == "ours" and case.part == "decode":
            yield Timing(**about, failed="compile_for leaves it eager")
            continue
        try:
            call = make_call(model, way, case, inputs)
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


def make_call(model: Any, way: Way, case: Case, inputs: dict[str, Tensor]) -> Call:
    """One call of a part. Inputs are cast before it, at nobody's cost; ours takes masks as bool, as the pipeline gives
    them, which diffusers can't. Raises what compiling raises, here or at the first call."""
    latent, image, mask = (way.cast(inputs[name]) for name in ("latent", "image", "mask"))
    if way.maker != "diffusers":
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

    call = {"encode": encode, "decode": decode, "decode_masked": decode_masked}[case.part]
    if not way.compiled:
        return call
    if way.maker == "ours":
        model.compile_for(case.batch, case.size, case.size)
        return call
    compiled: Call = torch.compile(call, dynamic=False)
    return compiled


def flops_of(network: Network, case: Case) -> int:
    """Of one image."""
    if case.part == "encode":
        return total(encode_work(network.config, case.size, case.size)).flops
    return total(decode_work(network.config, case.size, case.size, masked=case.part == "decode_masked")).flops


def all_cases(parts: Sequence[Part], sizes: Sequence[int], batches: Sequence[int]) -> list[Case]:
    """Cases of one shape follow each other."""
    return [Case(part, size, batch) for size, batch, part in itertools.product(sizes, batches, parts)]


def all_ways(
    dtype: str,
    *,
    layouts: Sequence[str],
    compiled: Sequence[Maker] = (),
    plain: bool = False,
    against: Sequence[str] = (),
) -> list[Way]:
    """Ours in ``dtype``; with ``plain``, ours without ``optimize()``; diffusers' in each dtype of ``against``. The
    latter two in each of ``layouts``; each maker compiled as well where ``compiled`` names it."""
    ways = [Way("ours", dtype, OURS_LIES)]
    ways += [Way("plain", dtype, layout) for layout in layouts if plain]
    ways += [Way("diffusers", theirs, layout) for theirs in against for layout in layouts]
    return [
        Way(way.maker, way.dtype, way.layout, under)
        for way in ways
        for under in (False, True)
        if not under or way.maker in compiled
    ]
