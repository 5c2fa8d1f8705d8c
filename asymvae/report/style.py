"""How every plot of ours looks."""

from __future__ import annotations

from typing import Any, Final

import matplotlib.axes

INK, GRID, BAR, MARK = "#5b6472", "#e6e9ee", "#7aa2d6", "#c2410c"
STYLE: Final[Any] = {
    "svg.hashsalt": "asymvae",  # the same numbers give the same file
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 8,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": INK,
}


def bare(axes: matplotlib.axes.Axes) -> None:
    """No frame but the line below, and pale lines to read heights by, behind everything."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
