"""The losses of a training run over its steps, as a picture."""

from __future__ import annotations

import io
from typing import Final

import matplotlib
import matplotlib.axes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from asymvae.report.style import BAR, INK, MARK, STYLE, bare
from asymvae.storage.filesystem import join, list_files, read_bytes

Series = tuple[NDArray[np.float64], NDArray[np.float64]]  # steps, values

_ERRORS: Final = {"l1": BAR, "l1_known": MARK, "lpips": "#4d7c0f"}  # positive: on a logarithmic axis
_GAME: Final = {"adversarial": "#7c3aed", "discriminator": "#0f766e"}  # of any sign, and of no unit
_COLUMNS: Final = ("stage", "step", "learning_rate", *_ERRORS, *_GAME)
_MOST_POINTS: Final = 200  # of a curve; each is the mean of its steps
_SMOOTH: Final = 40  # that share of them on either side is averaged for the bold curve
_WIDE, _HIGH, _LOW, _DPI = 4.8, 2.7, 1.3, 160


def draw_losses(url: str) -> bytes | None:
    """A PNG from the Parquet files of a run's folder of losses (a row a step); None where there are none yet.

    A column a stage, in the order of their names: the errors, smoothed, and the learning rate, faint and to no scale;
    below them the adversarial losses, where a stage has any. The legend says what each curve ends at.
    """
    files = [join(url, name) for name in list_files(url) if name.endswith(".parquet")]
    if not files:
        return None
    table = pa.concat_tables(pq.read_table(io.BytesIO(read_bytes(file)), columns=list(_COLUMNS)) for file in files)
    stages = sorted(set(table["stage"].to_pylist()))
    runs = [_by_step(table.filter(pa.compute.equal(table["stage"], stage))) for stage in stages]
    game = any(_has(run, _GAME) for run in runs)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(_WIDE * len(runs), _HIGH + _LOW * game), layout="constrained", dpi=_DPI)
        FigureCanvasAgg(figure)
        heights = [_HIGH, _LOW][: 1 + game]
        grid = figure.subplots(len(heights), len(runs), squeeze=False, height_ratios=heights)
        for column, (stage, run) in enumerate(zip(stages, runs, strict=True)):
            _draw_errors(grid[0, column], stage, run)
            if _has(run, _GAME):
                _draw_curves(grid[1, column], run, _GAME)
                grid[1, column].yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
            elif game:
                grid[1, column].set_visible(False)
            grid[-1 if _has(run, _GAME) else 0, column].set_xlabel("step")
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Software": None})
        return out.getvalue()


def _draw_errors(axes: matplotlib.axes.Axes, stage: str, run: dict[str, NDArray[np.float64]]) -> None:
    axes.set_yscale("log")
    lowest, highest = _draw_curves(axes, run, _ERRORS)
    narrow = highest < 10 * lowest
    axes.yaxis.set_major_locator(MaxNLocator(5) if narrow else LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    title = stage
    known = np.isfinite(run["learning_rate"])
    if known.any():
        most = float(run["learning_rate"][known].max())
        rate = axes.twinx()
        rate.set_axis_off()
        rate.fill_between(*_means(run["step"][known], run["learning_rate"][known]), color=INK, alpha=0.07, linewidth=0)
        rate.set_ylim(0, 1.02 * most or 1)
        axes.set_zorder(1)  # above it
        axes.patch.set_visible(False)
        title += f" (grey: the learning rate, at most {most:g})"
    axes.set_title(title, fontsize=8, loc="left", pad=20)


def _draw_curves(
    axes: matplotlib.axes.Axes, run: dict[str, NDArray[np.float64]], colours: dict[str, str]
) -> tuple[float, float]:
    """The least and the largest value that is drawn boldly."""
    bounds = [np.inf, 0.0]
    for name, colour in colours.items():
        known = np.isfinite(run[name])
        if known.any():
            steps, values = _means(run["step"][known], run[name][known])
            smooth = _smooth(values)
            label = f"{name.replace('_', ' ')} {smooth[-1]:.3g}"
            axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.3)
            axes.plot(steps, smooth, color=colour, linewidth=1.4, label=label)
            bounds = [min(bounds[0], float(smooth.min())), max(bounds[1], float(smooth.max()))]
    bare(axes)
    axes.set_xlim(0, float(run["step"].max()))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.015, 0.97), ncols=4, handlelength=1)
    return bounds[0], bounds[1]


def _by_step(table: pa.Table) -> dict[str, NDArray[np.float64]]:
    """A stage's columns in order of step, each step once; null is NaN. A crash may leave steps in two files."""
    columns = {name: np.asarray(table[name].to_numpy(), np.float64) for name in table.column_names if name != "stage"}
    _, places = np.unique(columns["step"], return_index=True)
    return {name: values[places] for name, values in columns.items()}


def _has(run: dict[str, NDArray[np.float64]], names: dict[str, str]) -> bool:
    return any(bool(np.isfinite(run[name]).any()) for name in names)


def _means(steps: NDArray[np.float64], values: NDArray[np.float64]) -> Series:
    """Of neighbouring steps, at most ``_MOST_POINTS``."""
    groups = np.array_split(np.arange(len(steps)), min(_MOST_POINTS, len(steps)))
    return np.array([steps[group].mean() for group in groups]), np.array([values[group].mean() for group in groups])


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each value's mean with its neighbours, fewer of them at the ends."""
    window = np.ones(2 * (len(values) // _SMOOTH) + 1)
    summed, counted = (np.convolve(each, window)[len(window) // 2 :] for each in (values, np.ones(len(values))))
    return np.asarray((summed / counted)[: len(values)])
