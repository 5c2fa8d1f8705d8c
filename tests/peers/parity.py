"""Ours beside diffusers: the same weights, the same input, the largest difference of every part.

``python -m tests.peers.parity --config x-1-5 --size 256`` prints a table; ``compare`` makes its rows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor

from asymvae.model import PUBLISHED, AsymmetricAutoencoderKL
from tests.model.small import CONFIGS, holes, picture, randomise

Cast = Callable[[Tensor], Tensor]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Row:
    """Differences are the largest absolute ones, divided by the largest absolute value of the reference's output."""

    part: str
    layout: str  # ours; diffusers is always contiguous, which is its accurate way
    largest: float
    to_float32: float
    to_float64: float
    diffusers_to_float64: float
    seconds: float
    diffusers_seconds: float


def parts(latent: Tensor, image: Tensor, mask: Tensor) -> dict[str, Callable[[Any, Cast], Tensor]]:
    """What is compared: each takes a model and a cast to its dtype and memory format."""
    return {
        "encode": lambda model, to: model.encode(to(image)).latent_dist.parameters,
        "decode": lambda model, to: model.decode(to(latent)).sample,
        "decode(image, mask)": lambda model, to: model.decode(to(latent), image=to(image), mask=to(mask)).sample,
        "decode(soft mask)": lambda model, to: model.decode(to(latent), image=to(image), mask=to(mask * 0.7)).sample,
        "forward": lambda model, to: model(to(image)).sample,
        "forward(mask)": lambda model, to: model(to(image), to(mask)).sample,
    }


@torch.no_grad()
def compare(config: dict[str, Any], *, size: int, batch: int) -> list[Row]:
    """One row a part and memory format: ours in float32 against diffusers in float32 and float64, on the CPU."""
    peer = diffusers.AsymmetricAutoencoderKL(**config).eval()
    randomise(peer, 1)
    ours = AsymmetricAutoencoderKL(**config).eval()
    ours.load_state_dict(peer.state_dict())
    image, mask = picture(2, batch, size), holes(3, batch, size)
    cells = size // ours.config.decoder_factor
    generator = torch.Generator().manual_seed(4)
    latent = torch.randn(batch, ours.config.latent_channels, cells, cells, generator=generator)

    def measure(model: Any, dtype: torch.dtype, layout: torch.memory_format) -> dict[str, tuple[Tensor, float]]:
        model.to(memory_format=layout)
        results = {}
        for part, run in parts(latent, image, mask).items():
            start = time.perf_counter()
            out = run(model, lambda tensor: tensor.to(dtype).contiguous(memory_format=layout))
            results[part] = (out, time.perf_counter() - start)
        return results

    def draw(model: Any) -> Tensor:
        drawn: Tensor = model(image, mask, sample_posterior=True, generator=torch.Generator().manual_seed(5)).sample
        return drawn

    mine = {name: measure(ours, torch.float32, layout) for name, layout in LAYOUTS.items()}
    theirs = measure(peer, torch.float32, torch.contiguous_format)
    my_draw, their_draw = draw(ours), draw(peer)
    exact = measure(peer.double(), torch.float64, torch.contiguous_format)

    rows = [
        Row(
            part,
            layout,
            largest=exact[part][0].abs().max().item(),
            to_float32=_off(out, theirs[part][0]),
            to_float64=_off(out, exact[part][0]),
            diffusers_to_float64=_off(theirs[part][0], exact[part][0]),
            seconds=seconds,
            diffusers_seconds=theirs[part][1],
        )
        for layout, results in mine.items()
        for part, (out, seconds) in results.items()
    ]
    # a float64 model draws other noise from the same generator: against float32 alone
    largest = their_draw.abs().max().item()
    nan = float("nan")
    return [*rows, Row("forward(mask, drawn)", "", largest, _off(my_draw, their_draw), nan, nan, nan, nan)]


def _off(out: Tensor, reference: Tensor) -> float:
    return ((out.double() - reference.double()).abs().max() / reference.abs().max()).item()


def table(rows: Sequence[Row]) -> str:
    head = ("part", "layout", "largest", "to float32", "to float64", "theirs", "seconds", "theirs")
    lines = [f"{head[0]:22}{head[1]:14}" + "".join(f"{word:>12}" for word in head[2:])]
    for row in rows:
        off = "".join(f"{x:12.1e}" for x in (row.to_float32, row.to_float64, row.diffusers_to_float64))
        times = f"{row.seconds:12.2f}{row.diffusers_seconds:12.2f}"
        lines.append(f"{row.part:22}{row.layout:14}{row.largest:12.3g}{off}{times}")
    return "\n".join(lines)


def main() -> None:
    known = PUBLISHED | CONFIGS
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", choices=sorted(known), default="x-1-5")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = compare(known[arguments.config], size=arguments.size, batch=arguments.batch)
    print(f"{arguments.config}, {arguments.batch} of {arguments.size} px, diffusers {diffusers.__version__}")
    print(table(rows))


if __name__ == "__main__":
    main()
