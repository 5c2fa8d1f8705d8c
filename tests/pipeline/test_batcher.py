"""The batch plan: a pure function of what comes, with bounded waiting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asymvae.batch import Item, padded_size
from asymvae.pipeline.batcher import Batcher
from asymvae.pipeline.budget import ByteBudget


def item(index: int, size: int) -> Item:
    return Item(
        index, str(index), 0, 0, np.zeros((size, size, 3), np.uint8), np.zeros((size, size), bool), (size, size)
    )


def numbers(batches: list[list[Item]]) -> list[list[int]]:
    return [[item.index for item in batch] for batch in batches]


def test_a_full_shape_goes_out_and_the_rest_at_the_end() -> None:
    batcher = Batcher(lambda _: 2, waiting_bytes=1000, span_bytes=1000)
    assert numbers(batcher.admit([item(0, 8)], 1)) == []
    assert numbers(batcher.admit([item(1, 16)], 1)) == []
    assert numbers(batcher.admit([item(2, 8)], 1)) == [[0, 2]]
    assert numbers(batcher.flush()) == [[1]]


def test_the_fullest_shape_goes_first_when_too_much_waits() -> None:
    batcher = Batcher(lambda _: 8, waiting_bytes=30, span_bytes=1000)
    for index, size in enumerate((8, 16, 16)):
        assert numbers(batcher.admit([item(index, size)], 10)) == []
    assert numbers(batcher.admit([item(3, 8), item(4, 24)], 10)) == [[0, 3]]


def test_a_rare_shape_does_not_wait_for_ever() -> None:
    batcher = Batcher(lambda _: 2, waiting_bytes=1000, span_bytes=50)
    given = numbers(batcher.admit([item(0, 24)], 10))
    for index in range(1, 8):
        given += numbers(batcher.admit([item(index, 8)], 10))
    assert [0] in given
    assert given.index([0]) < len(given) - 1


def test_samples_that_need_no_device_count_for_the_span() -> None:
    batcher = Batcher(lambda _: 2, waiting_bytes=1000, span_bytes=50)
    batcher.admit([item(0, 8)], 10)
    given = [batch for _ in range(5) for batch in numbers(batcher.admit([], 10))]
    assert given == [[0]]


@pytest.mark.parametrize(("count", "size"), [(1, 1), (2, 2), (3, 4), (5, 6), (6, 6)])
def test_partial_batches_run_at_few_sizes(count: int, size: int) -> None:
    assert padded_size(count, 6) == size


@given(
    st.lists(st.tuples(st.sampled_from([8, 16, 24, 32]), st.integers(0, 3), st.integers(1, 400)), max_size=60),
    st.integers(1, 5),
)
def test_every_item_goes_out_once_and_what_waits_stays_bounded(
    samples: list[tuple[int, int, int]], batch_size: int
) -> None:
    budget = ByteBudget(400)
    batcher = Batcher(lambda _: batch_size, waiting_bytes=100, span_bytes=200)
    out: list[Item] = []
    costs: list[int] = []
    expected = 0
    for index, (size, variants, cost) in enumerate(samples):
        batches = batcher.admit([item(index, size) for _ in range(variants)], budget.counted(cost))
        assert all(0 < len(batch) <= batch_size for batch in batches)
        assert all(len({work.image.shape for work in batch}) == 1 for batch in batches)
        out += [work for batch in batches for work in batch]
        costs.append(budget.counted(cost))
        expected += variants
        # The promise that keeps the byte budget from blocking: the span of the oldest that waits is at most 200.
        gone = [work.index for work in out]
        waiting = [i for i, (_, n, _) in enumerate(samples[: index + 1]) if gone.count(i) < n]
        assert sum(costs[min(waiting) :]) <= 200 if waiting else True
    out += [work for batch in batcher.flush() for work in batch]
    assert len(out) == expected
    assert sorted(work.index for work in out) == sorted(
        i for i, (_, variants, _) in enumerate(samples) for _ in range(variants)
    )
