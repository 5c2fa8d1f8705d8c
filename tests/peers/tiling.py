"""Tiled beside untiled: the largest difference, seconds of both in turn, and the most bytes of tensors alive.

python -m tests.peers.tiling --size 512 1024 [--config demo | x-1-5 | x-2] [--dtype bfloat16] [--channels-last]
    [--strip 128] [--offload] [--device cuda] [--part encode] [--tiled-only] [--repeat 3] [--threads 1]

Where the untiled pass doesn't fit, --tiled-only leaves it out, and the difference with it. Bytes: the peak of torch's
allocator, weights and inputs not counted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from asymvae.benchmark.contenders import NETWORKS
from asymvae.benchmark.device import memory_of, synchronize
from asymvae.model import AsymmetricAutoencoderKL
from tests.model.small import holes, picture, randomise

PARTS = ("encode", "decode", "decode(image, mask)")


def parts(model: AsymmetricAutoencoderKL, size: int, batch: int, layout: Any) -> dict[str, Callable[[], Tensor]]:
    def place(tensor: Tensor) -> Tensor:
        return tensor.to(model.device, model.dtype).contiguous(memory_format=layout)

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
    parser.add_argument("--config", choices=sorted(NETWORKS), default="demo")
    parser.add_argument("--size", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", choices=["float32", "float64", "bfloat16", "float16"], default="float32")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--strip", type=int, default=None, help="rows of the image in a strip")
    parser.add_argument("--offload", action="store_true")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--part", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--tiled-only", action="store_true")
    parser.add_argument("--repeat", type=int, default=3, help="pairs, of which the medians are printed")
    parser.add_argument("--threads", type=int, default=1)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    layout = torch.channels_last if flags.channels_last else torch.contiguous_format
    model = AsymmetricAutoencoderKL(**NETWORKS[flags.config]).eval().requires_grad_(False)
    randomise(model, 1)
    model.to(flags.device, getattr(torch, flags.dtype)).to(memory_format=layout)
    print(
        f"{flags.config}, {flags.dtype}, {layout}, strips of {flags.strip or 'default'} rows, torch {torch.__version__}"
    )
    print(
        f"{'part':22}{'px':>6}{'difference':>12}{'seconds':>10}{'untiled':>10}{'ratio':>8}{'B/px':>10}{'untiled':>10}"
    )
    for size in flags.size:
        for part, run in parts(model, size, flags.batch, layout).items():
            if part in flags.part:
                print(f"{part:22}{size:6}{row(model, run, flags, size * size * flags.batch)}", flush=True)


@torch.inference_mode()
def row(model: AsymmetricAutoencoderKL, run: Callable[[], Tensor], flags: argparse.Namespace, pixels: int) -> str:
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
    off = ratio = median = float("nan")
    if not flags.tiled_only:
        reference = outs[False].double()
        off = ((outs[True].double() - reference).abs().max() / reference.abs().max()).item()
        median = statistics.median(seconds[False])
        ratio = statistics.median(a / b for a, b in zip(seconds[True], seconds[False], strict=True))
    outs.clear()
    bytes_a_pixel = []
    for way in ways:
        switch(way)
        bytes_a_pixel.append(memory_of(run, flags.device) / pixels)
    tiled_seconds = statistics.median(seconds[True])
    peaks = "".join(f"{x:10.0f}" for x in bytes_a_pixel)
    return f"{off:12.1e}{tiled_seconds:10.2f}{median:10.2f}{ratio:8.2f}{peaks}"


if __name__ == "__main__":
    main()
