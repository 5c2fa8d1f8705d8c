"""Measurements as a picture: medians as points, the least and the most as a bar through each."""

from __future__ import annotations

import io
from collections.abc import Mapping
from textwrap import wrap
from typing import Final

import matplotlib
import matplotlib.axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from asymvae.benchmark.turns import Panels, Series
from asymvae.report.style import BAR, INK, MARK, STYLE, bare

_COLOURS: Final = (BAR, MARK, "#4d7c0f", "#7c3aed", "#0f766e", "#b45309", "#be185d", INK)
_WIDE, _HIGH, _DPI = 4.2, 3.2, 160
_LETTERS: Final = 17  # of a title, an inch


def draw(panels: Panels, unit: str, *, title: str = "") -> bytes:
    """A PNG with a panel a title; every series has its colour in all of them."""
    labels = list(dict.fromkeys(label for series in panels.values() for label in series))
    colours = {label: _COLOURS[place % len(_COLOURS)] for place, label in enumerate(labels)}
    with matplotlib.rc_context(STYLE):
        wide = _WIDE * max(1.5, len(panels))
        figure = Figure(figsize=(wide, _HIGH + 0.16 * len(labels)), layout="constrained", dpi=_DPI)
        FigureCanvasAgg(figure)
        grid = figure.subplots(1, max(1, len(panels)), squeeze=False)[0]
        for axes, (name, series) in zip(grid, panels.items(), strict=False):
            _draw_panel(axes, name, series, colours)
        grid[0].set_ylabel(unit)
        lines = [part for line in title.splitlines() for part in wrap(line, int(wide * _LETTERS))]
        figure.suptitle("\n".join(lines), fontsize=7)
        if len(labels) > 1:
            entries = [Line2D([], [], color=colours[label], marker="o", markersize=3.5) for label in labels]
            figure.legend(entries, labels, loc="outside lower center", ncols=2, frameon=False)
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": None})
        return out.getvalue()


def _draw_panel(axes: matplotlib.axes.Axes, name: str, series: Series, colours: Mapping[str, str]) -> None:
    places = list(dict.fromkeys(place for of in series.values() for place in of))
    for number, (label, of) in enumerate(series.items()):
        at = [places.index(place) + 0.06 * (number - (len(series) - 1) / 2) for place in of]
        medians = [spread.median for spread in of.values()]
        below = [spread.median - spread.least for spread in of.values()]
        above = [spread.most - spread.median for spread in of.values()]
        line = "o-" if len(series) > 1 else "o"  # a single series is of things that have no order
        axes.errorbar(
            at, medians, (below, above), fmt=line, color=colours[label], label=label, markersize=3.5, linewidth=1
        )
    bare(axes)
    axes.set_xticks(range(len(places)), places)
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_ylim(bottom=0)
    axes.set_title(name, fontsize=8, loc="left")
