"""Every metrics row of a job, read once, column by column: distributions, the worst rows, and the picked ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from asymvae.report.digest import Progress, ShardRecord
from asymvae.report.distribution import Distribution
from asymvae.storage import filesystem

_PARTS_AT_ONCE: Final = 8
_NEAR: Final = 100  # picks lie among a shard's first results: to show an input, its shard is streamed up to it


@dataclass(frozen=True, slots=True)
class Metric:
    """A column of ``metrics/``: which end is bad, how it is drawn, and what it means."""

    name: str
    worst: Literal["high", "low"] | None
    about: str
    unit: str = ""
    log: bool = False
    whole: bool = False


METRICS: Final = (
    Metric("psnr_known", "low", "of the decoder over known pixels", "dB"),
    Metric("mse_known", "high", "its mean squared error there, on [-1, 1]", log=True),
    Metric("mae_known", "high", "its mean absolute error there, on [-1, 1]", log=True),
    Metric("ssim_known", "low", "its similarity there, in wholly known windows"),
    Metric("max_abs_known", "high", "a known pixel's largest change in the result", "levels", whole=True),
    Metric("seam", "high", "step across the border, less that beside it", "levels/px"),
    Metric("hole_fraction", None, "share of the image that is hole"),
    Metric("latent_mean", None, "mean of the latent that was decoded"),
    Metric("latent_std", None, "standard deviation of that latent"),
)


@dataclass(frozen=True, slots=True)
class Row:
    """One result: its identity and its metrics (None where null)."""

    shard: ShardRecord
    index: int
    variant: int
    key: str
    values: dict[str, float | None]


@dataclass(slots=True)
class Summary:
    """A metric over all results. ``worst``: the worst rows, worst first."""

    metric: Metric
    distribution: Distribution
    nulls: int = 0
    worst: list[Row] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Measured:
    """What the metrics say: a summary a metric, the ``picked`` rows, and in words what could not be read."""

    summaries: list[Summary]
    picked: list[Row]
    unreadable: list[str]


def read_metrics(
    out_url: str, shards: Sequence[ShardRecord], *, picks: int, worst: int, progress: Progress | None = None
) -> Measured:
    """Read the metrics parts in order, a few at a time; a part that can't be read is named and skipped.

    Args:
        picks: rows to pick, spread evenly over the shards and over each shard's first 100 results.
        worst: rows to keep of each metric that has a bad end.
    """
    summaries = [Summary(metric, Distribution(log=metric.log, whole=metric.whole)) for metric in METRICS]
    measured = Measured(summaries, [], [])
    places = spread([min(shard.results, _NEAR) if shard.metrics_part else 0 for shard in shards], picks)
    for number, (shard, table) in enumerate(_tables(out_url, shards)):
        if isinstance(table, pa.Table):
            columns = {metric.name: _floats(table, metric.name) for metric in METRICS}
            for summary in summaries:
                _summarise(summary, shard, table, columns, worst)
            measured.picked.extend(_row(shard, table, columns, place) for place in places[number])
        elif table is not None:
            measured.unreadable.append(table)
        if progress:
            progress("metrics", number + 1, len(shards))
    return measured


def spread(sizes: Sequence[int], count: int) -> list[list[int]]:
    """``count`` places spread evenly over groups of these sizes: places in each group, ascending."""
    total = sum(sizes)
    chosen = [number * total // count for number in range(count)] if total > count else list(range(total))
    ends = np.cumsum(sizes)
    places: list[list[int]] = [[] for _ in sizes]
    for ordinal in chosen:
        group = int(np.searchsorted(ends, ordinal, side="right"))
        places[group].append(ordinal - int(ends[group]) + sizes[group])
    return places


def _tables(out_url: str, shards: Sequence[ShardRecord]) -> Iterator[tuple[ShardRecord, pa.Table | str | None]]:
    """Each shard with its metrics, None if it has none, or why they can't be read."""
    wanted = ["key", "index", "variant", *(metric.name for metric in METRICS)]

    def read(shard: ShardRecord) -> pa.Table | str | None:
        if shard.metrics_part is None:
            return None
        try:
            with filesystem.open_stream(filesystem.join(out_url, shard.metrics_part)) as stream:
                file = pq.ParquetFile(stream)
                table = file.read([name for name in wanted if name in file.schema_arrow.names])
        except (OSError, pa.ArrowException) as error:
            return f"{shard.metrics_part}: {type(error).__name__}"
        return table if table.num_rows == shard.results else f"{shard.metrics_part}: {table.num_rows} rows"

    with ThreadPoolExecutor(_PARTS_AT_ONCE) as pool:
        for begin in range(0, len(shards), 2 * _PARTS_AT_ONCE):  # so many tables are in memory
            chunk = shards[begin : begin + 2 * _PARTS_AT_ONCE]
            yield from zip(chunk, pool.map(read, chunk), strict=True)


def _floats(table: pa.Table, name: str) -> NDArray[np.float64]:
    """The column; NaN where it is null, or not there."""
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan)
    return np.asarray(table[name].cast(pa.float64()).to_numpy(), np.float64)


def _summarise(
    summary: Summary, shard: ShardRecord, table: pa.Table, columns: dict[str, NDArray[np.float64]], keep: int
) -> None:
    name = summary.metric.name
    values = columns[name]
    there = np.flatnonzero(np.isfinite(values))
    summary.nulls += len(values) - len(there)
    summary.distribution.add(values[there])
    if summary.metric.worst is None:
        return
    sign = -1 if summary.metric.worst == "low" else 1
    badness = sign * values
    if len(summary.worst) == keep:
        there = there[badness[there] > sign * (summary.worst[-1].values[name] or 0)]
    order = there[np.argsort(-badness[there], kind="stable")[:keep]]
    rows = summary.worst + [_row(shard, table, columns, int(place)) for place in order]
    # Stable, both: of equals the first in order of shards and rows.
    summary.worst = sorted(rows, key=lambda row: -sign * (row.values[name] or 0))[:keep]


def _row(shard: ShardRecord, table: pa.Table, columns: dict[str, NDArray[np.float64]], place: int) -> Row:
    values = {name: float(column[place]) if np.isfinite(column[place]) else None for name, column in columns.items()}
    index, variant, key = (table[name][place].as_py() for name in ("index", "variant", "key"))
    return Row(shard, index, variant, key, values)
