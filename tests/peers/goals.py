"""The CPU's goals of speed, by hand: ``python -m tests.peers.goals [--size 512] [--rounds 3]``.

decode(image, mask) of x-1-5 with random weights, one image: ours, optimized, in float32 and bfloat16 beside diffusers
eager in float32 as it comes and in bfloat16 channels_last; every round times each once, and ratios are a round's own.
jobs.benchmark measures the same with memory, errors and shares of the peak, and takes several times as long.
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import diffusers
import torch

from asymvae.benchmark.turns import in_turns, ratios
from asymvae.model import PUBLISHED, AsymmetricAutoencoderKL

# (above, below, at least)
GOALS = (
    ("diffusers float32", "ours float32", 1.35),
    ("diffusers float32", "ours bfloat16", 2.8),
    ("diffusers bfloat16 channels_last", "ours bfloat16", 1.15),
)


def models() -> dict[str, Any]:
    torch.manual_seed(0)
    ours = AsymmetricAutoencoderKL(**PUBLISHED["x-1-5"]).eval()
    peer = diffusers.AsymmetricAutoencoderKL(**PUBLISHED["x-1-5"]).eval()
    peer.load_state_dict(ours.state_dict())
    half = copy.deepcopy(peer).to(torch.bfloat16).to(memory_format=torch.channels_last)
    return {
        "diffusers float32": peer,
        "ours float32": copy.deepcopy(ours).optimize(),
        "diffusers bfloat16 channels_last": half,
        "ours bfloat16": ours.to(torch.bfloat16).optimize(),
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[2])
    arguments.add_argument("--size", type=int, default=512, help="side of the image in pixels")
    arguments.add_argument("--rounds", type=int, default=3)
    given = arguments.parse_args()
    size = given.size
    z, image = torch.randn(1, 4, size // 8, size // 8), torch.rand(1, 3, size, size) * 2 - 1
    mask = torch.zeros(1, 1, size, size)
    mask[:, :, size // 4 : size // 2, size // 4 : size // 2] = 1

    def seconds(model: Any) -> float:
        dtype = next(model.parameters()).dtype
        inputs = [tensor.to(dtype) for tensor in (z, image, mask)]
        started = time.perf_counter()
        with torch.inference_mode():
            model.decode(inputs[0], image=inputs[1], mask=inputs[2])
        return time.perf_counter() - started

    found: dict[str, dict[int, float]] = {}
    calls = {name: (lambda model=model: seconds(model)) for name, model in models().items()}
    for round_, name, took in in_turns(calls, given.rounds):
        found.setdefault(name, {})[round_] = took
        print(f"round {round_ + 1}: {name}: {took:.2f} s", flush=True)
    for above, below, least in GOALS:
        print(f"{above} / {below}: {ratios(found[above], found[below])}; the goal is {least}")


if __name__ == "__main__":
    main()
