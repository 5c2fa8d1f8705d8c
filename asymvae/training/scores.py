"""What was measured of a checkpoint, and the two tables that say it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Final

import numpy as np
from numpy.typing import NDArray

from asymvae.tables import markdown

NO_HOLE: Final = "none"  # the kind of the mask that every image is also measured with
ANY_KIND: Final = "all"  # of masks whose samples don't say theirs
_NAMED: Final = 20  # samples of a list


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """One image at one size: PSNR in dB, over the whole of it, by method (``model``, ``bilinear``, ``linear``)."""

    size: int
    key: str
    psnr: dict[str, float]


@dataclass(frozen=True, slots=True)
class Preservation:
    """One image and mask at one size: ``mse_known`` of decode(z) and of decode(z, image, mask)."""

    size: int
    key: str
    kind: str
    without: float
    given: float

    @property
    def ratio(self) -> float:
        return self.without / self.given if self.given else math.inf


@dataclass(frozen=True, slots=True)
class Shown:
    """The pictures of one sample, (h, w, 3) uint8, and its hole, (h, w) bool; ``error`` is of ``given``, times 8."""

    preservation: Preservation
    psnr: float
    original: NDArray[np.uint8]
    plain: NDArray[np.uint8]
    hole: NDArray[np.bool_]
    given: NDArray[np.uint8]
    error: NDArray[np.uint8]


@dataclass(slots=True)
class Evaluation:
    """``factor``: of the model. ``unknown``: (size, sample) whose mask leaves nothing known. ``bad``: (sample, code) of
    what could not be measured; a sample is <shard>/<key>."""

    factor: int
    samples: int = 0
    reconstructions: list[Reconstruction] = field(default_factory=list)
    preservations: list[Preservation] = field(default_factory=list)
    unknown: list[tuple[int, str]] = field(default_factory=list)
    bad: dict[tuple[str, str], None] = field(default_factory=dict)  # each once, though every size finds it
    shown: list[Shown] = field(default_factory=list)


def tables(evaluation: Evaluation) -> str:
    """Two Markdown tables, aligned as text, and what was left out."""
    parts = [_reconstruction_table(evaluation), _preservation_table(evaluation)]
    unknown = dict.fromkeys(key for _, key in evaluation.unknown)
    if unknown:
        parts.append(f"Measured with an empty mask alone, since their own leaves nothing known: {_listed(unknown)}.")
    if evaluation.bad:
        named = _listed(f"{key} ({code})" for key, code in evaluation.bad)
        count = len({key for key, _ in evaluation.bad})
        parts.append(f"Bad samples, {count} of {evaluation.samples}: {named}.")
    return "\n\n".join(parts)


def _reconstruction_table(evaluation: Evaluation) -> str:
    linear = any("linear" in score.psnr for score in evaluation.reconstructions)
    header = ["longest side", "images", "model", "bilinear", "difference"]
    rows = []
    for size in sorted({score.size for score in evaluation.reconstructions}):
        scores = [score.psnr for score in evaluation.reconstructions if score.size == size]
        means = {name: fmean(psnr[name] for psnr in scores) for name in scores[0]}
        row = [str(size), str(len(scores)), f"{means['model']:.2f}"]
        for name in ("bilinear", "linear") if linear else ("bilinear",):
            row += [f"{means[name]:.2f}", f"{means['model'] - means[name]:+.2f}"]
        rows.append(row)
    if linear:
        header += ["block transform", "difference"]
    factor = evaluation.factor
    about = (
        f"Plain reconstruction: mean PSNR in dB over images, beside antialiased bilinear {factor}x down and up"
        + (f" and the best linear transform of {factor}x{factor} pixel blocks" if linear else "")
        + ". Larger images are reduced to the longest side, none is enlarged."
    )
    return f"{about}\n\n{markdown(header, rows, numbers=range(len(header)))}"


def _preservation_table(evaluation: Evaluation) -> str:
    groups: dict[tuple[int, str], list[Preservation]] = {}
    # no hole first, then by name
    for score in sorted(evaluation.preservations, key=lambda score: (score.size, score.kind != NO_HOLE, score.kind)):
        groups.setdefault((score.size, score.kind), []).append(score)
    rows = []
    for (size, kind), scores in groups.items():
        without, given = fmean(score.without for score in scores), fmean(score.given for score in scores)
        worst = min(scores, key=lambda score: score.ratio)
        ratio = f"{without / given:.1f}" if given else "inf"
        rows.append(
            [
                str(size),
                kind,
                str(len(scores)),
                f"{without:.2e}",
                f"{given:.2e}",
                ratio,
                f"{worst.ratio:.1f}",
                worst.key,
            ]
        )
    about = (
        "Preservation: mean squared error over known pixels, on [-1, 1], of the decoder without and with image and "
        f"mask (the latent is the whole image's), by kind of mask; {NO_HOLE}: every image, with an empty mask."
    )
    header = ["longest side", "mask", "images", "without", "with", "ratio", "smallest ratio", "of"]
    return f"{about}\n\n{markdown(header, rows, numbers=(0, 2, 3, 4, 5, 6))}"


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    return ", ".join(every[:_NAMED]) + (f" and {len(every) - _NAMED} more" if len(every) > _NAMED else "")
