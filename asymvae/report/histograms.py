"""Plots as SVG: a metric's histogram, and a job's throughput over time."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from asymvae.report.digest import ShardRecord
from asymvae.report.metrics import Summary
from asymvae.report.style import BAR, MARK, STYLE, bare

_MOST_BARS: Final = 40
_STEPS: Final = 120  # of the throughput's time axis
_PAUSE_S: Final = 600.0  # no shard at work for longer: the job was not running


def draw_histogram(summary: Summary) -> bytes | None:
    """One metric over all results, its median marked; None where there is no number."""
    distribution = summary.distribution
    if not distribution.count:
        return None
    bars = min(_MOST_BARS, max(8, 3 * int(distribution.count**0.5)))
    edges, counts = distribution.bars(bars)
    median = distribution.quantile(0.5)
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(3.3, 1.75)
        axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=BAR, edgecolor="white", linewidth=0.5)
        axes.axvline(np.log10(max(median, 1e-12)) if distribution.log else median, color=MARK, linewidth=1)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=distribution.whole, steps=[1, 2, 5, 10]))
        if distribution.whole:  # room for whole ticks where there is but one number
            axes.set_xlim(min(edges[0], median - 2), max(edges[-1], median + 2))
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True, steps=[1, 2, 5, 10]))
        if distribution.log:
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{10**value:.2g}"))
        axes.set_xlabel(summary.metric.unit)
        return _svg(figure)


def draw_throughput(shards: Sequence[ShardRecord]) -> bytes | None:
    """Samples a second over the time at work; pauses of over ten minutes are cut out and marked. None without times.

    Each shard's samples count as spread evenly over its time.
    """
    timed = [shard for shard in shards if shard.started is not None and shard.seconds > 0]
    if not timed:
        return None
    begins = np.array([shard.started.timestamp() for shard in timed if shard.started])
    seconds = np.array([shard.seconds for shard in timed])
    samples = np.array([shard.samples for shard in timed], np.float64)
    first = datetime.fromtimestamp(float(begins.min()), timed[0].started.tzinfo if timed[0].started else None)
    pauses = list(_pauses(begins, begins + seconds))
    at_work = _cut(begins, pauses) - begins.min()
    total = float((at_work + seconds).max())
    unit, name = (3600.0, "hours") if total > 7200 else (60.0, "minutes") if total > 120 else (1.0, "seconds")
    times = np.linspace(0, total, _STEPS + 1)
    done = np.array([float((samples * np.clip((time - at_work) / seconds, 0, 1)).sum()) for time in times])
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(9.6, 2.1)
        axes.stairs(np.diff(done) / np.diff(times), times / unit, fill=True, color=BAR)
        for pause in pauses:
            axes.axvline((pause.begin - begins.min() - pause.before) / unit, color=MARK, linewidth=1, linestyle=":")
        axes.set_xlim(0, total / unit)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        paused = f", without {len(pauses)} pauses (dotted)" if pauses else ""
        axes.set_xlabel(f"{name} at work since {first:%Y-%m-%d %H:%M} {first:%Z}{paused}")
        axes.set_ylabel("samples/s")
        return _svg(figure)


@dataclass(frozen=True, slots=True)
class _Pause:
    begin: float
    end: float
    before: float  # seconds of pauses before this one


def _pauses(begins: NDArray[np.float64], ends: NDArray[np.float64]) -> Iterator[_Pause]:
    order = np.argsort(begins)
    reached, before = float(ends[order[0]]), 0.0
    for place in order:
        if begins[place] - reached > _PAUSE_S:
            yield _Pause(reached, float(begins[place]), before)
            before += float(begins[place]) - reached
        reached = max(reached, float(ends[place]))


def _cut(times: NDArray[np.float64], pauses: Sequence[_Pause]) -> NDArray[np.float64]:
    """The times without the pauses before them; none lies inside of one."""
    cut = times.copy()
    for pause in pauses:
        cut[times >= pause.end] -= pause.end - pause.begin
    return cut


def _axes(width: float, height: float) -> tuple[Figure, matplotlib.axes.Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    bare(axes)
    return figure, axes


def _svg(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return out.getvalue()
