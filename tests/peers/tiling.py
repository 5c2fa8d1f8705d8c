"""Tiled beside untiled: the largest difference, seconds of both in turn, and the most bytes of tensors alive.

python -m tests.peers.tiling --size 1024 2048 [--config checkpoint | demo | x-1-5 | x-2] [--dtype bfloat16] [--plain]
    [--strip 128] [--offload] [--device cuda] [--part encode] [--tiled-only] [--exact] [--repeat 3] [--threads 1]

The network is optimized, as jobs run it, but for --plain. ``checkpoint`` is the one that comes with the project,
the others have random weights. Differences are shares of the largest value: from the untiled result or, with --exact,
of both from the plain network's in float64. Where the untiled pass doesn't fit, --tiled-only leaves it out, and what is
compared with it. MiB: the peak of torch's allocator, weights and inputs not counted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from asymvae.benchmark.contenders import NETWORKS
from asymvae.benchmark.device import memory_of, synchronize
from asymvae.model import AsymmetricAutoencoderKL
from tests.model.small import holes, picture, randomise

PARTS = ("encode", "decode", "decode(image, mask)")
CHECKPOINT = Path(__file__).parents[2] / "configs/demo-checkpoint"
HEAD = ("part", "px", "tiled off", "untiled off", "tiled, s", "untiled, s", "ratio", "tiled, MiB", "untiled, MiB")
WIDTHS = (22, 6, 11, 12, 10, 11, 7, 11, 13)


def parts(model: AsymmetricAutoencoderKL, size: int, batch: int) -> dict[str, Callable[[], Tensor]]:
    def place(tensor: Tensor) -> Tensor:
        return tensor.to(model.device, model.dtype)

    image, mask = place(picture(2, batch, size)), place(holes(3, batch, size))
    cells = size // model.config.decoder_factor
    generator = torch.Generator().manual_seed(4)
    z = place(torch.randn(batch, model.config.latent_channels, cells, cells, generator=generator))
    return {
        "encode": lambda: model.encode(image).latent_dist.parameters,
        "decode": lambda: model.decode(z).sample,
        "decode(image, mask)": lambda: model.decode(z, image=image, mask=mask).sample,
    }


def timed(run: Callable[[], Tensor], device: str) -> tuple[float, Tensor]:
    synchronize(device)
    start = time.perf_counter()
    out = run()
    synchronize(device)
    return time.perf_counter() - start, out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=["checkpoint", *sorted(NETWORKS)], default="checkpoint")
    parser.add_argument("--size", type=int, nargs="+", default=[1024])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=["float32", "float64", "bfloat16", "float16"], default="float32")
    parser.add_argument("--plain", action="store_true", help="without optimize()")
    parser.add_argument("--strip", type=int, default=None, help="rows of the image in a strip")
    parser.add_argument("--offload", action="store_true")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--part", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--tiled-only", action="store_true")
    parser.add_argument("--exact", action="store_true", help="compare with float64, which takes its time")
    parser.add_argument("--repeat", type=int, default=3, help="pairs, of which the medians are printed")
    parser.add_argument("--threads", type=int, default=1)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    plain = made(flags.config)
    model = plain.to(flags.device, getattr(torch, flags.dtype))
    model = model if flags.plain else model.optimize()
    how = "plain" if flags.plain else "optimized"
    strips = flags.strip or "default"
    print(
        f"{flags.config}, {flags.dtype}, {how}, strips of {strips} rows, {flags.threads} threads, "
        f"torch {torch.__version__}"
    )
    print("".join(f"{name:>{width}}" for name, width in zip(HEAD, WIDTHS, strict=True)))
    for size in flags.size:
        exact = parts(made(flags.config).double(), size, flags.batch) if flags.exact else {}
        for part, run in parts(model, size, flags.batch).items():
            if part in flags.part:
                cells = (part, str(size), *row(model, run, exact.get(part), flags))
                print("".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True)), flush=True)


def made(config: str) -> AsymmetricAutoencoderKL:
    if config == "checkpoint":
        return AsymmetricAutoencoderKL.from_pretrained(CHECKPOINT).requires_grad_(False)
    model = AsymmetricAutoencoderKL(**NETWORKS[config]).eval().requires_grad_(False)
    randomise(model, 1)
    return model


@torch.inference_mode()
def row(
    model: AsymmetricAutoencoderKL,
    run: Callable[[], Tensor],
    exact: Callable[[], Tensor] | None,
    flags: argparse.Namespace,
) -> list[str]:
    def switch(tiled: bool) -> None:
        if tiled:
            model.enable_tiling(flags.strip, offload=flags.offload)
        else:
            model.disable_tiling()

    ways = [True] if flags.tiled_only else [True, False]
    seconds: dict[bool, list[float]] = {way: [] for way in ways}
    outs: dict[bool, Tensor] = {}
    for _ in range(flags.repeat):
        for way in ways:
            switch(way)
            taken, outs[way] = timed(run, flags.device)
            seconds[way].append(taken)
    reference = exact() if exact is not None else outs.get(False)
    compared = [way for way in (True, False) if reference is not None and way in outs and (way or exact is not None)]
    off = {way: _off(outs[way], reference) for way in compared}  # type: ignore[arg-type]
    del reference
    outs.clear()
    megabytes = {}
    for way in ways:
        switch(way)
        megabytes[way] = memory_of(run, flags.device) / 2**20
    cells = [f"{off[way]:.1e}" if way in off else "" for way in (True, False)]
    medians = {way: statistics.median(of) for way, of in seconds.items()}
    cells += [f"{medians[way]:.2f}" if way in medians else "" for way in (True, False)]
    ratios = [] if flags.tiled_only else [a / b for a, b in zip(seconds[True], seconds[False], strict=True)]
    cells.append(f"{statistics.median(ratios):.2f}" if ratios else "")
    return cells + [f"{megabytes[way]:.0f}" if way in megabytes else "" for way in (True, False)]


def _off(found: Tensor, expected: Tensor) -> float:
    expected = expected.double()
    return float((found.double() - expected).abs().max() / expected.abs().max())


if __name__ == "__main__":
    main()
