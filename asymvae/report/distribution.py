"""A stream of numbers as a histogram, in memory that does not grow with their count."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_BINS: Final = 512  # even: the range grows by merging bins in pairs
_LEAST: Final = 1e-12  # where a logarithm begins: 0 is counted there


class Distribution:
    """Counts in equal bins; when a number lies outside, bins are merged in pairs until it doesn't.

    Args:
        log: bins are equal in log10; numbers at most 0 are counted as 1e-12.
        whole: the numbers are whole, and a bin never splits between two of them.
    """

    def __init__(self, *, log: bool = False, whole: bool = False) -> None:
        self.log, self.whole = log, whole
        self.count = 0
        self.minimum, self.maximum = np.inf, -np.inf
        self._sum = 0.0
        self._counts = np.zeros(_BINS, np.int64)
        self._low = -0.5
        self._width = 1.0 if whole else 0.0  # 0: not known before the first numbers

    @property
    def mean(self) -> float:
        """Of the numbers themselves, exact. NaN where there are none."""
        return self._sum / self.count if self.count else float("nan")

    def add(self, numbers: NDArray[np.float64]) -> None:
        """Count finite numbers."""
        if not numbers.size:
            return
        self.count += numbers.size
        self._sum += float(numbers.sum())
        self.minimum = min(self.minimum, float(numbers.min()))
        self.maximum = max(self.maximum, float(numbers.max()))
        scaled = np.log10(np.maximum(numbers, _LEAST)) if self.log else numbers
        low, high = float(scaled.min()), float(scaled.max())
        if self._width == 0:
            # A little more than the range, so that the largest number has a bin; never too narrow to tell apart.
            self._width = max((high - low) / (_BINS - 1), 1e-7 * max(abs(low), abs(high), 1e-30))
            self._low = low
        while high >= self._low + _BINS * self._width:
            self._merge(at=0)
        while low < self._low:
            self._low -= _BINS * self._width
            self._merge(at=_BINS // 2)
        places = ((scaled - self._low) / self._width).astype(np.int64)
        self._counts += np.bincount(np.clip(places, 0, _BINS - 1), minlength=_BINS)

    def _merge(self, at: int) -> None:
        """Double the width; the old bins take one half of the new ones, from ``at`` on."""
        merged = self._counts.reshape(-1, 2).sum(axis=1)
        self._counts = np.zeros(_BINS, np.int64)
        self._counts[at : at + _BINS // 2] = merged
        self._width *= 2

    def quantile(self, share: float) -> float:
        """The number below which ``share`` of all lie, to a bin's width; NaN where there are none."""
        if not self.count:
            return float("nan")
        reached = np.cumsum(self._counts)
        place = int(np.searchsorted(reached, share * self.count))
        inside = (share * self.count - (reached[place] - self._counts[place])) / self._counts[place]
        value = self._low + self._width * (place + (0.5 if self.whole else inside))
        value = 10**value if self.log else value
        return float(min(max(value, self.minimum), self.maximum))

    def bars(self, most: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(edges, counts) of at most ``most`` bars over the numbers' range; edges are log10 where ``log``."""
        used = np.flatnonzero(self._counts)
        first, end = (int(used[0]), int(used[-1]) + 1) if used.size else (0, 1)
        step = -(-(end - first) // most)  # whole bins a bar: none is counted twice or split
        bars = -(-(end - first) // step)
        padded = np.zeros(bars * step, np.int64)
        padded[: end - first] = self._counts[first:end]
        edges = self._low + self._width * (first + step * np.arange(bars + 1, dtype=np.float64))
        return edges, np.add.reduceat(padded, np.arange(0, bars * step, step))
