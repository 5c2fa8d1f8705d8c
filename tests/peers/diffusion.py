"""Diffusion in batches beside diffusers' pipeline, one image at a time and in batches: images a second, in turns.

python -m tests.peers.diffusion [--config small | sd-1-5] [--size 64] [--batch 8] [--images 8] [--steps 20]
    [--dtype bfloat16] [--device cuda] [--compile] [--channels-last] [--rounds 3] [--threads 1]

The networks are those of the configuration, with random weights, which are as fast as trained ones; prompts, masks and
seeds differ from image to image. Seconds are from the arrays of an image to its decoded pixels. Outside the UNet: the
share of them that isn't spent between a call of it and its result (on a GPU: between the two on its stream).

With sd-1-5, Stable Diffusion 1.5's shapes and the autoencoder x-1-5; 2 GB of disk in 16 bits.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from asymvae.benchmark.contenders import NETWORKS
from asymvae.benchmark.device import synchronize
from asymvae.benchmark.turns import Spread, in_turns, ratios
from asymvae.model import AsymmetricAutoencoderKL
from tests.model.small import randomise
from tests.peers.diffusion_batch import by_ours, by_pipeline, items, loaded, peer_of, pipeline_of
from tests.tiny_diffusion import TOKENS, tiny_tokenizer, tiny_vae, write_diffusion

# The autoencoder, the UNet's widths and the text encoder's (width, layers, heads); all else is Stable Diffusion 1.5's.
CONFIGS: dict[str, tuple[str, tuple[int, ...], tuple[int, int, int]]] = {
    "small": ("demo", (32, 64, 128, 128), (128, 2, 4)),
    "sd-1-5": ("x-1-5", (320, 640, 1280, 1280), (768, 12, 12)),
}
SIZES = {"small": 64, "sd-1-5": 512}


def write_checkpoint(folder: Path, config: str, device: str, dtype: torch.dtype) -> None:
    """Random weights in diffusers' layout, made on the device, where that takes a second."""
    _, widths, (text_width, layers, heads) = CONFIGS[config]
    tokenizer = tiny_tokenizer(folder / "tokenizer")
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(
            sample_size=64,
            in_channels=9,
            block_out_channels=widths,
            cross_attention_dim=text_width,
            attention_head_dim=8,
        )
        encoder = _text_encoder(tokenizer, text_width, layers, heads)
    write_diffusion(folder, tokenizer, unet.to(dtype), encoder.to(dtype), tiny_vae())


def _text_encoder(tokenizer: CLIPTokenizer, width: int, layers: int, heads: int) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return CLIPTextModel(config).eval()


class Watch:
    """Seconds spent in a module."""

    def __init__(self, module: nn.Module, device: str) -> None:
        self._device = device
        self._marks: list[Any] = []
        module.register_forward_pre_hook(lambda *_: self._mark())
        module.register_forward_hook(lambda *_: self._mark())

    def _mark(self) -> None:
        if self._device == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> float:
        """Since the last time this was asked. The device must have come to rest."""
        pairs = list(zip(self._marks[::2], self._marks[1::2], strict=True))
        self._marks = []
        if self._device == "cuda":
            return sum(float(start.elapsed_time(end)) for start, end in pairs) / 1000
        return sum(float(end - start) for start, end in pairs)


def timed(run: Callable[[], object], watch: Watch, device: str) -> tuple[float, float]:
    """Seconds of all, and of the UNet."""
    synchronize(device)
    started = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - started, watch.seconds()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=CONFIGS, default="small")
    parser.add_argument("--size", type=int, default=None, help="of the images, in pixels a side: 64, or 512 for sd-1-5")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--images", type=int, default=8, help="in a round; a multiple of the batch")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default=None)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", action="store_true", help="ours alone")
    parser.add_argument("--channels-last", action="store_true", help="ours alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    flags = parser.parse_args()
    if flags.images % flags.batch:
        parser.error("--images must be a multiple of --batch")
    torch.set_num_threads(flags.threads)
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    size = flags.size or SIZES[flags.config]
    dtype = getattr(torch, flags.dtype or ("bfloat16" if flags.device == "cuda" else "float32"))
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), flags.config, flags.device, dtype)
        compare(Path(folder), flags, size, dtype)


@torch.inference_mode()
def compare(folder: Path, flags: argparse.Namespace, size: int, dtype: torch.dtype) -> None:
    vae = AsymmetricAutoencoderKL(**NETWORKS[CONFIGS[flags.config][0]]).eval()
    randomise(vae, 1)
    pipe = pipeline_of(folder, peer_of(vae)).to(flags.device, dtype)
    vae.to(flags.device, dtype)
    fill = loaded(folder, vae, steps=flags.steps, compile=flags.compile, channels_last=flags.channels_last)
    assert fill._denoise is not None
    watches = {"ours": Watch(fill._denoise._unet, flags.device), "diffusers": Watch(pipe.unet, flags.device)}
    samples = items(flags.images, size, size)

    def ours() -> None:
        for start in range(0, flags.images, flags.batch):
            by_ours(fill, vae, samples[start : start + flags.batch])

    def theirs(batch: int) -> Callable[[], None]:
        def run() -> None:
            for start in range(0, flags.images, batch):
                by_pipeline(pipe, samples[start : start + batch], num_inference_steps=flags.steps)

        return run

    runs: dict[str, Callable[[], None]] = {
        "diffusers, one by one": theirs(1),
        f"diffusers, batches of {flags.batch}": theirs(flags.batch),
        f"ours, batches of {flags.batch}": ours,
    }
    ways = {
        name: lambda run=run, name=name: timed(run, watches[name.partition(",")[0]], flags.device)
        for name, run in runs.items()
    }
    for way in ways.values():
        way()  # the first call prepares what later ones find
    seconds: dict[str, dict[int, float]] = {name: {} for name in ways}
    outside: dict[str, list[float]] = {name: [] for name in ways}
    for number, name, (whole, unet) in in_turns(ways, flags.rounds):
        seconds[name][number] = whole
        outside[name].append(1 - unet / whole)
    print(
        f"{flags.config}, {size} px, {flags.steps} steps, {flags.images} images, {dtype}, {flags.device}, "
        f"compile {flags.compile}, channels_last {flags.channels_last}, torch {torch.__version__}, "
        f"diffusers {diffusers.__version__}, rounds {flags.rounds}: medians (and extremes)"
    )
    print(f"{'':28}{'images/s':>24}{'times one by one':>24}{'outside the UNet':>18}")
    first = next(iter(ways))
    for name in ways:
        speed = Spread.of([flags.images / taken for taken in seconds[name].values()])
        ratio = ratios(seconds[first], seconds[name])
        print(f"{name:28}{speed!s:>24}{ratio!s:>24}{statistics.median(outside[name]):18.1%}", flush=True)


if __name__ == "__main__":
    main()
