"""What must hold on a device before its speed means anything: each check beside the bound that it is held to.

Imports torch, this project's network and the references of its tests; triton where the kernels are run.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from asymvae.benchmark.contenders import NETWORKS, Network, Way, diffusers_is_there
from asymvae.model import AsymmetricAutoencoderKL
from asymvae.model.norm import GroupNorm
from asymvae.model.optimize import forms
from tests.model.small import holes, picture, randomise

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HEAD = ("check", "dtype", "found", "at most", "")


@dataclass(frozen=True, slots=True)
class Check:
    """``found`` is an error, and ``bound`` the most that passes; without a bound ``passed`` alone is meant."""

    name: str
    dtype: str
    passed: bool
    found: float | None = None
    bound: float | None = None
    note: str = ""

    @classmethod
    def within(cls, name: str, dtype: str, found: float, bound: float) -> Check:
        return cls(name, dtype, found <= bound, found, bound)  # a NaN fails

    def row(self) -> list[str]:
        numbers = ["" if number is None else f"{number:.1e}" for number in (self.found, self.bound)]
        return [self.name, self.dtype, *numbers, ("ok" if self.passed else "FAILED") + (self.note and f": {self.note}")]


def guarded(name: str, checks: Iterator[Check]) -> Iterator[Check]:
    """The checks of one kind; what raises, on a device that nobody has tried, is a failed one among the others."""
    try:
        yield from checks
    except Exception as error:  # noqa: BLE001 - Triton's and CUDA's, of all kinds
        yield Check(name, "", False, note=f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120]}")


class Bench:
    """A network, its inputs and what float64 on the CPU makes of them, without any faster form."""

    def __init__(self, config: str, size: int, device: str) -> None:
        self.config, self.device = config, device
        self.model = AsymmetricAutoencoderKL(**NETWORKS[config]).eval().requires_grad_(False)
        randomise(self.model, 1)
        self.image, self.mask = picture(2, 2, size), holes(3, 2, size) > 0
        cells = size // self.model.config.decoder_factor
        generator = torch.Generator().manual_seed(4)
        self.latent = torch.randn(2, self.model.config.latent_channels, cells, cells, generator=generator)
        exact = copy.deepcopy(self.model).double()
        self.expected = {name: run() for name, run in self.calls(exact).items()}

    def calls(self, model: AsymmetricAutoencoderKL) -> dict[str, Callable[[], Tensor]]:
        """By what they are checked against; on the model's device, in its dtype."""
        image, latent = (x.to(model.device, model.dtype) for x in (self.image, self.latent))
        mask = self.mask.to(model.device)
        twice = torch.tensor([0, 0], device=model.device)
        return {
            "encode": lambda: model.encode(image).latent_dist.parameters,
            "decode": lambda: model.decode(latent).sample,
            "decode(image, mask)": lambda: model.decode(latent, image=image, mask=mask).sample,
            "condition_index": lambda: (
                model.decode(latent, image=image[:1], mask=mask[:1], condition_index=twice).sample
            ),
        }

    def model_as(self, dtype: str, *, optimized: bool) -> AsymmetricAutoencoderKL:
        made = copy.deepcopy(self.model).to(self.device, DTYPES[dtype])
        return made.optimize() if optimized else made

    def off(self, name: str, found: Tensor) -> float:
        expected = self.expected[name]
        return float((found.double().cpu() - expected).abs().max() / expected.abs().max())


@torch.inference_mode()
def parity(bench: Bench, dtype: str) -> Iterator[Check]:
    """The optimized network, whole and in strips, may be off by twice as much as the plain one is on this device and in
    this dtype, and in float32 by 1e-5 in any case."""
    plain = bench.model_as(dtype, optimized=False)
    by_itself = {name: bench.off(name, run()) for name, run in bench.calls(plain).items()}
    yield Check.within("plain: encode, decode", dtype, max(by_itself.values()), _PLAIN[dtype])
    del plain
    least = 1e-5 if dtype == "float32" else 0.0
    optimized = bench.model_as(dtype, optimized=True)
    if bench.device == "cuda":
        norms = sum(isinstance(module, GroupNorm) for module in optimized.modules())
        fused = sum(form.endswith(": fused") for form in forms(optimized))
        note = f"{fused} of {norms} norms run by the Triton kernels"
        yield Check("fused norms are used", dtype, fused == norms, note=note)
    for way, offload in (("optimized", None), ("in strips", False), ("in strips, offloaded", True)):
        if offload is not None:
            optimized.enable_tiling(bench.image.shape[-1] // 2, offload=offload)
        for name, run in bench.calls(optimized).items():
            bound = max(least, 2 * by_itself[name])
            yield Check.within(f"{way}: {name}", dtype, bench.off(name, run()), bound)


# Of random weights, whose rounding is not damped as that of trained ones is.
_PLAIN = {"float32": 1e-4, "bfloat16": 1e-1, "float16": 2e-2}


@torch.inference_mode()
def beside_diffusers(bench: Bench) -> Iterator[Check]:
    """Ours in float32, with everything on, and diffusers' on the same device: within 1e-5."""
    if not diffusers_is_there():
        yield Check("ours and diffusers", "float32", True, note="diffusers is not installed: not compared")
        return
    network = Network.of(bench.config, bench.model)
    theirs = network.make(Way("diffusers", "float32", "contiguous"), bench.device)
    ours = bench.model_as("float32", optimized=True)
    image, latent, mask = (x.to(bench.device, torch.float32) for x in (bench.image, bench.latent, bench.mask))
    pairs = {
        "encode": (ours.encode(image).latent_dist.parameters, theirs.encode(image).latent_dist.parameters),
        "decode": (ours.decode(latent).sample, theirs.decode(latent).sample),
        "decode(image, mask)": tuple(model.decode(latent, image=image, mask=mask).sample for model in (ours, theirs)),
    }
    for name, (found, expected) in pairs.items():
        off = float((found.double() - expected.double()).abs().max() / expected.double().abs().max())
        yield Check.within(f"ours and diffusers: {name}", "float32", off, 1e-5)


@torch.inference_mode()
def determinism(bench: Bench, dtype: str) -> Iterator[Check]:
    """Under ``torch.use_deterministic_algorithms``, as workers run: the same bytes again."""
    model = bench.model_as(dtype, optimized=True)
    with deterministic():
        for name, run in bench.calls(model).items():
            yield Check(f"the same bytes again: {name}", dtype, torch.equal(run(), run()))


@contextmanager
def deterministic() -> Iterator[None]:
    """As workers set it (asymvae/pipeline/worker.py)."""
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]


def attention(device: str, dtype: str) -> Iterator[Check]:
    """No score of all cells with all is kept: which kernel torch takes for heads as wide as the published models'."""
    for part, channels in (("encoder", 512), ("decoder", 768)):
        cells = torch.empty((1, 1, 4096, channels), dtype=DTYPES[dtype], device=device)
        backend = SDPBackend(torch._fused_sdp_choice(cells, cells, cells))
        passed = device == "cpu" or backend != SDPBackend.MATH
        yield Check(f"attention of the {part}, {channels} channels", dtype, passed, note=backend.name)


def has_kernels(device: str) -> bool:
    """Whether the Triton kernels run here: on CUDA, or in Triton's interpreter."""
    return device == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
