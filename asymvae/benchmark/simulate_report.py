"""Simulated runs as a table, and as what a plot shows of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from asymvae.benchmark.simulate import SimulatedTiming
from asymvae.benchmark.turns import Panels, Spread, number, panels_of
from asymvae.tables import markdown

NOTES = (
    "Busy: the share of the time from each worker's first shard to the end of the last one in which its device had "
    "work (100%: it never waited). Idle: the share in which it had no shard. Largest: the largest shard over a "
    "worker's part of all; above 1 the run takes as long as that shard. With start-up: the ideal time of the shards "
    "over the whole run's.",
    "The nodes are processes of this machine and share its cores: what takes CPU (a commit, a worker's start, the "
    "driver's part) is slower here than on as many machines, and the shares are lower bounds.",
)


def table(timings: Sequence[SimulatedTiming]) -> str:
    """A row a number of workers and length of shards; of several rounds the median, with the least and the most."""
    head = ["workers", "nodes", "shards", "s a shard", "largest", "busy", "idle", "with start-up", "shards/s"]
    rows = []
    for (workers, nodes, shards, shard_s), several in _cases(timings):
        timed = shard_s > 0
        rows.append(
            [
                *(str(workers), str(nodes), f"{shards:,}", number(shard_s)),
                f"{several[0].largest:.2f}" if timed else "",
                str(Spread.of([100 * timing.busy for timing in several])) + "%" if timed else "",
                str(Spread.of([100 * timing.idle for timing in several])) + "%" if timed else "",
                f"{Spread.of([timing.ideal / timing.whole for timing in several]).median:.0%}" if timed else "",
                str(Spread.of([timing.shards_per_s for timing in several])),
                str(Spread.of([timing.ready for timing in several])),
                number(1000 * Spread.of([timing.commit for timing in several]).median),
                number(1000 * Spread.of([timing.driver / timing.shards for timing in several]).median),
                f"{Spread.of([timing.resident for timing in several]).median:.0f}",
            ]
        )
    return markdown([*head, "last worker ready, s", "commit, ms", "driver's CPU, ms a shard", "MiB a worker"], rows)


def _cases(
    timings: Sequence[SimulatedTiming],
) -> list[tuple[tuple[int, int, int, float], list[SimulatedTiming]]]:
    def case(timing: SimulatedTiming) -> tuple[int, int, int, float]:
        return timing.workers, timing.nodes, timing.shards, timing.shard_s

    ordered = sorted(timings, key=lambda timing: (timing.shard_s == 0, case(timing)))
    return [(of, list(several)) for of, several in groupby(ordered, case)]


def panels(timings: Sequence[SimulatedTiming]) -> Panels:
    """Shares of the ideal, by the number of workers."""
    timed = sorted((timing for timing in timings if timing.shard_s), key=lambda timing: timing.workers)
    return panels_of(
        ("workers", label, str(timing.workers), value)
        for timing in timed
        for label, value in (("busy", timing.busy), ("with start-up", timing.ideal / timing.whole))
    )
