"""Timings of networks as a table, and as what a plot shows of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from asymvae.benchmark.contenders import Way
from asymvae.benchmark.network import Timing
from asymvae.benchmark.turns import Panels, Spread, number, panels_of, ratios
from asymvae.tables import markdown

_HEAD = ("part", "px", "batch", "network", "dtype", "layout", "images/s", "TFLOP/s", "of peak", "MiB")
_PART = {"encode": "encode", "decode": "decode", "decode_masked": "decode(image, mask)"}


def table(timings: Sequence[Timing]) -> str:
    """A row a way and case. Speed over a peer is the median of the rounds' ratios, with the least and the most."""
    peers = list(dict.fromkeys(str(timing.way) for timing in timings if timing.maker == "diffusers"))
    head = [*_HEAD, *(f"speed over {peer}" for peer in peers), "off by"]
    rows: list[list[str]] = []
    for _, group in groupby(timings, lambda timing: (timing.part, timing.size, timing.batch, timing.comparison)):
        rows += _rows(list(group), peers)
    return markdown(head, rows)


def _rows(timings: Sequence[Timing], peers: Sequence[str]) -> list[list[str]]:
    by_way: dict[Way, list[Timing]] = {}
    for timing in timings:
        by_way.setdefault(timing.way, []).append(timing)
    speeds = {
        str(way): {timing.round: timing.images_per_s for timing in of if not timing.failed}
        for way, of in by_way.items()
    }
    rows = []
    for way, of in sorted(by_way.items(), key=lambda item: (item[0].maker != "ours", item[0].compiled)):
        one = of[0]
        row = [_PART[one.part], str(one.size), str(one.batch), str(way), one.dtype, one.layout]
        if one.failed:
            row += [one.failed, *("" for _ in range(len(peers) + 4))]
        else:
            row.append(number(Spread.of([timing.images_per_s for timing in of]).median))
            row.append(number(Spread.of([timing.flops_per_s for timing in of]).median / 1e12))
            row.append(f"{Spread.of([timing.share_of_peak for timing in of]).median:.0%}")
            row.append(number(one.memory / 2**20))
            row += [_over(speeds, str(way), peer) for peer in peers]
            row.append("" if way == timings[0].way else f"{one.difference:.0e}")
        rows.append(row)
    return rows


def _over(speeds: dict[str, dict[int, float]], way: str, peer: str) -> str:
    return str(ratios(speeds[way], speeds[peer])) if way != peer and speeds.get(peer) else ""


def of_peaks(peaks: Mapping[str, float]) -> str:
    """FLOP/s by dtype as ``0.14 TFLOP/s in float32``, and so on."""
    return ", ".join(f"{number(peak / 1e12)} TFLOP/s in {dtype}" for dtype, peak in peaks.items())


def panels(timings: Sequence[Timing]) -> Panels:
    """TFLOP/s over sizes and batches, a panel a part."""
    return panels_of(
        (
            _PART[timing.part],
            f"{timing.way} {timing.dtype} {timing.layout}",
            f"{timing.size} px" if timing.batch == 1 else f"{timing.batch} x {timing.size} px",
            timing.flops_per_s / 1e12,
        )
        for timing in timings
        if not timing.failed
    )
