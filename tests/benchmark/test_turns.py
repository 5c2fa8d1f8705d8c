"""Ways in turns, and ratios of what belongs together."""

from __future__ import annotations

import pytest

from asymvae.benchmark.turns import Spread, in_turns, number, ratios


def test_every_other_round_is_in_reverse_so_that_drift_favours_none() -> None:
    called: list[str] = []
    ways = {name: (lambda name=name: called.append(name) or len(called)) for name in "abc"}  # type: ignore[func-returns-value]
    found = list(in_turns(ways, 3))
    assert "".join(called) == "abccbaabc"
    assert found[3:6] == [(1, "c", 4), (1, "b", 5), (1, "a", 6)]
    # a clock that runs away by one a call: in two rounds the sums are equal
    sums = {name: sum(value for number_, way, value in found if way == name and number_ < 2) for name in "abc"}
    assert set(sums.values()) == {7}


def test_ratios_are_those_of_one_round_each() -> None:
    # The machine was four times as slow in round 1: medians of each side would say 1.25 to 4 times, rounds say 2.
    ours, theirs = {0: 2.0, 1: 8.0, 2: 2.0}, {0: 1.0, 1: 4.0}
    assert ratios(ours, theirs) == Spread(2.0, 2.0, 2.0)
    assert str(Spread.of([3.0, 1.0, 200.0])) == "3 (1 to 200)"
    assert str(Spread.of([3.0])) == "3"
    with pytest.raises(ValueError, match="median"):
        ratios({0: 1.0}, {1: 1.0})


def test_numbers_have_three_digits() -> None:
    assert [number(value) for value in (0, 0.01234, 1.2345, 99.99, 123.4, 12345.6, 1.2e-7)] == [
        *("0", "0.0123", "1.23", "100", "123", "12346", "1.2e-07")
    ]
