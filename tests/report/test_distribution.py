"""Histograms of streams: exact counts, whatever the order and the range."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asymvae.report.distribution import Distribution
from asymvae.report.metrics import spread

NUMBERS = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60)


@given(st.lists(NUMBERS, min_size=1, max_size=8), st.integers(1, 60))
def test_every_number_is_counted_once(chunks: list[list[float]], bars: int) -> None:
    distribution = Distribution()
    for chunk in chunks:
        distribution.add(np.array(chunk))
    everything = np.concatenate([np.array(chunk) for chunk in chunks])
    edges, counts = distribution.bars(bars)
    assert counts.sum() == len(everything) == distribution.count
    assert len(counts) <= bars
    slack = np.diff(edges)[0]
    assert edges[0] - slack <= everything.min()
    assert everything.max() <= edges[-1] + slack
    assert distribution.mean == pytest.approx(everything.mean(), abs=1e-6, rel=1e-6)
    assert everything.min() <= distribution.quantile(0.5) <= everything.max()


def test_quantiles_are_close_however_the_numbers_come() -> None:
    numbers = np.random.default_rng(0).normal(30, 5, 20_000)
    for chunks in (np.split(numbers, 100), np.split(np.sort(numbers), 100), np.split(np.sort(numbers)[::-1], 100)):
        distribution = Distribution()
        for chunk in chunks:
            distribution.add(chunk)
        for share in (0.05, 0.5, 0.95):
            assert distribution.quantile(share) == pytest.approx(np.quantile(numbers, share), abs=0.2)


def test_logarithmic_bins_take_zeros() -> None:
    distribution = Distribution(log=True)
    distribution.add(np.array([1e-5, 1e-4, 1e-3]))
    distribution.add(np.array([0.0]))
    edges, counts = distribution.bars(40)
    assert counts.sum() == 4
    assert edges[0] <= -12
    assert distribution.minimum == 0
    assert 1e-5 <= distribution.quantile(0.6) < 1.2e-4


def test_whole_numbers_have_bins_of_their_own() -> None:
    distribution = Distribution(whole=True)
    distribution.add(np.array([0.0, 1, 1, 2, 255]))
    edges, counts = distribution.bars(256)
    assert list(counts[:3]) == [1, 2, 1]
    assert (edges[0], edges[1]) == (-0.5, 0.5)
    assert distribution.quantile(0.5) == 1


def test_nothing_is_not_a_number() -> None:
    assert np.isnan(Distribution().mean)
    assert np.isnan(Distribution().quantile(0.5))


@given(st.lists(st.integers(0, 20), max_size=12), st.integers(1, 30))
def test_picks_are_spread_over_all_groups(sizes: list[int], count: int) -> None:
    places = spread(sizes, count)
    assert sum(map(len, places)) == min(count, sum(sizes))
    for size, group in zip(sizes, places, strict=True):
        assert sorted(set(group)) == group
        assert all(0 <= place < size for place in group)
    if count >= sum(sizes):
        assert [len(group) for group in places] == sizes
