"""Timings of the pipeline as a table, and as what a plot shows of them."""

from __future__ import annotations

from collections.abc import Sequence

from asymvae.benchmark.pipeline import LOOP, PipelineTiming
from asymvae.benchmark.turns import Panels, Spread, number, panels_of, ratios
from asymvae.tables import markdown

STAGES = ("read", "prepare", "device", "finish", "write")


def table(timings: Sequence[PipelineTiming]) -> str:
    """A row a way. Speed over the loop is the median of the rounds' ratios, with the least and the most; seconds by
    stage are medians, a worker's."""
    by_way: dict[str, list[PipelineTiming]] = {}
    for timing in timings:
        by_way.setdefault(timing.way, []).append(timing)
    speeds = {way: {timing.round: timing.samples_per_s for timing in of} for way, of in by_way.items()}
    unit = "GPU" if timings[0].gpus else "worker"
    head = ("way", "samples/s", "speed over loop", f"an hour and {unit}", "with start-up", "device busy")
    rows = []
    for way, of in by_way.items():
        rows.append(
            [
                way,
                str(Spread.of([timing.samples_per_s for timing in of])),
                "" if way == LOOP else str(ratios(speeds[way], speeds[LOOP])),
                f"{Spread.of([timing.samples_per_hour_and_unit for timing in of]).median:,.0f}",
                number(Spread.of([timing.samples / timing.whole for timing in of]).median),
                f"{Spread.of([_of_stage(timing, 'device') / timing.seconds for timing in of]).median:.0%}",
                *(number(Spread.of([_of_stage(timing, stage) for timing in of]).median) for stage in STAGES),
            ]
        )
    return markdown([*head, *(f"{stage}, s" for stage in STAGES)], rows)


def _of_stage(timing: PipelineTiming, stage: str) -> float:
    return timing.stages.get(stage, 0.0) / timing.workers


def panels(timings: Sequence[PipelineTiming]) -> Panels:
    return panels_of(("", "samples/s", timing.way.replace(", ", "\n"), timing.samples_per_s) for timing in timings)
