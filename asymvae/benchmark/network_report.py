"""Timings of networks as a table, and as what a plot shows of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Final

from asymvae.benchmark.contenders import Way
from asymvae.benchmark.network import PART_NAMES, Timing
from asymvae.benchmark.turns import Panels, Spread, number, panels_of, ratios
from asymvae.tables import markdown

_HEAD = ("part", "px", "batch", "network", "dtype", "layout", "images/s", "TFLOP/s", "of peak", "MiB")
_ORDER = {maker: place for place, maker in enumerate(("ours", "plain", "diffusers"))}
NOTES: Final = (
    "Ours over it: how many times as many images/s ours makes, the median of each round's own ratio, with the least "
    "and the most.",
    "TFLOP/s are counted in the published architecture's FLOPs, whoever is measured; of peak is their share of what a "
    "matrix product reaches in the same dtype. Ours comes to the same result with fewer operations (a folded "
    "upsampling takes 4/9 of its convolution's, Winograd's way 1/4 of the multiplications), so that more than 100% is "
    "no error.",
    "The hole is the middle half of rows and columns. With image and mask ours makes, on a CPU, only the rows that "
    "hold a hole of each block's last layers: other holes, other times.",
    "Off by: the largest difference from the first row of the comparison, over its largest value.",
)


def table(timings: Sequence[Timing]) -> str:
    """A row a way and case: ours first, then what it is compared with."""
    ours = sorted({timing.way for timing in timings if timing.maker == "ours"}, key=lambda way: way.compiled)
    heads = list(dict.fromkeys(f"{way} over it" for way in ours))
    rows: list[list[str]] = []
    places = list(PART_NAMES)
    in_order = sorted(timings, key=lambda timing: (places.index(timing.part), timing.size, timing.batch))
    for _, group in groupby(in_order, lambda timing: (timing.part, timing.size, timing.batch, timing.comparison)):
        rows += _rows(list(group), columns=len(heads))
    return markdown([*_HEAD, *heads, "off by"], rows)


def _rows(timings: Sequence[Timing], columns: int) -> list[list[str]]:
    by_way: dict[Way, list[Timing]] = {}
    for timing in timings:
        by_way.setdefault(timing.way, []).append(timing)
    speeds = {
        way: {timing.round: timing.images_per_s for timing in of if not timing.failed} for way, of in by_way.items()
    }
    ours = [speeds[way] for way in sorted(by_way, key=lambda way: way.compiled) if way.maker == "ours"]
    ours += [{} for _ in range(columns - len(ours))]
    first = next((way for way, speed in speeds.items() if speed), None)
    rows = []
    for way in sorted(by_way, key=lambda way: (_ORDER[way.maker], way.layout != "contiguous", way.dtype, way.compiled)):
        of = by_way[way]
        one = of[0]
        row = [PART_NAMES[one.part], str(one.size), str(one.batch), str(way), one.dtype, one.layout]
        if one.failed:
            row += [one.failed, *("" for _ in range(columns + 4))]
        else:
            row.append(number(Spread.of([timing.images_per_s for timing in of]).median))
            row.append(number(Spread.of([timing.flops_per_s for timing in of]).median / 1e12))
            row.append(f"{Spread.of([timing.share_of_peak for timing in of]).median:.0%}")
            row.append(number(one.memory / 2**20))
            row += ["" if way.maker == "ours" or not our else str(ratios(our, speeds[way])) for our in ours]
            row.append("" if way == first else f"{one.difference:.0e}")
        rows.append(row)
    return rows


def of_peaks(peaks: Mapping[str, float]) -> str:
    """FLOP/s by dtype as ``0.14 TFLOP/s in float32``, and so on."""
    return ", ".join(f"{number(peak / 1e12)} TFLOP/s in {dtype}" for dtype, peak in peaks.items())


def panels(timings: Sequence[Timing]) -> Panels:
    """TFLOP/s over sizes and batches, a panel a part."""
    return panels_of(
        (
            PART_NAMES[timing.part],
            f"{timing.way} {timing.dtype} {timing.layout}",
            f"{timing.size} px" if timing.batch == 1 else f"{timing.batch} x {timing.size} px",
            timing.flops_per_s / 1e12,
        )
        for timing in timings
        if not timing.failed
    )
