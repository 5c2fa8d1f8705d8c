"""Several ways to do one thing, timed in turns, so that a machine that slows down favours none of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

K = TypeVar("K")
T = TypeVar("T")


def in_turns(ways: Mapping[K, Callable[[], T]], rounds: int) -> Iterator[tuple[int, K, T]]:
    """(round, way, what it returned): every way once a round, every other round in reverse order."""
    names = list(ways)
    for number in range(rounds):
        for name in names[:: -1 if number % 2 else 1]:
            yield number, name, ways[name]()


@dataclass(frozen=True, slots=True)
class Spread:
    """Of several measurements: the median, the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Raises ValueError where there are none."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        if self.least == self.most:
            return number(self.median)
        return f"{number(self.median)} ({number(self.least)} to {number(self.most)})"


Series = Mapping[str, Mapping[str, Spread]]  # what a plot shows: label -> place on the x axis -> value
Panels = Mapping[str, Series]  # by title


def panels_of(values: Iterable[tuple[str, str, str, float]]) -> Panels:
    """Of (panel, label, place, value), the spread of each place's."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for panel, label, place, value in values:
        found.setdefault(panel, {}).setdefault(label, {}).setdefault(place, []).append(value)
    return {
        panel: {label: {place: Spread.of(several) for place, several in places.items()} for label, places in of.items()}
        for panel, of in found.items()
    }


def ratios(above: Mapping[int, float], below: Mapping[int, float]) -> Spread:
    """Of two measurements of the same rounds, by round: the spread of each round's own ratio."""
    return Spread.of([above[round_] / below[round_] for round_ in sorted(above.keys() & below.keys())])


def number(value: float) -> str:
    """Three digits, and no exponent: 0.0123, 1.23, 123, 12345."""
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    text = f"{value:.3g}"
    return text if "e" not in text else f"{value:.1e}"
