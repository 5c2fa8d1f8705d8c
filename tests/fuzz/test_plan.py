"""The batch plan: a function of the samples alone, and every planned row in one batch."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from asymvae.batch import Item
from asymvae.pipeline.batcher import Batcher
from tests.fuzz.examples import examples

SAMPLES = st.lists(
    st.tuples(st.sampled_from([8, 16, 24, 32]), st.integers(0, 4), st.integers(1, 400), st.sampled_from(["", "b"])),
    max_size=50,
)
Samples = list[tuple[int, int, int, str]]


def plan(samples: Samples, batch_size: int, waiting: int, span: int) -> list[list[tuple[int, int]]]:
    batcher = Batcher(lambda _: batch_size, waiting_bytes=waiting, span_bytes=span)
    given_out = []
    for index, (side, variants, cost, key) in enumerate(samples):
        item = Item(
            index, str(index), 0, 0, np.zeros((side, side, 3), np.uint8), np.zeros((side, side), bool), (side, side)
        )
        item.batch_key = key
        given_out += batcher.admit([dataclasses.replace(item, variant=n) for n in range(variants)], cost)
    given_out += batcher.flush()
    for batch in given_out:
        assert 0 < len(batch) <= batch_size
        assert len({item.shape_key for item in batch}) == 1
    return [[(item.index, item.variant) for item in batch] for batch in given_out]


@examples(100)
@given(SAMPLES, st.integers(1, 9), st.integers(1, 2000), st.integers(1, 4000))
def test_the_same_samples_make_the_same_batches_and_each_row_is_in_one(
    samples: Samples, batch_size: int, waiting: int, span: int
) -> None:
    batches = plan(samples, batch_size, waiting, span)
    assert plan(samples, batch_size, waiting, span) == batches
    rows = Counter(row for batch in batches for row in batch)
    assert rows == Counter((i, n) for i, (_, variants, _, _) in enumerate(samples) for n in range(variants))
    for batch in batches:
        assert batch == sorted(batch), "in input order"


@examples(40)
@given(SAMPLES, SAMPLES, st.integers(1, 9), st.integers(1, 2000))
def test_what_comes_later_changes_no_batch_that_is_full(
    samples: Samples, more: Samples, batch_size: int, waiting: int
) -> None:
    alone = plan(samples, batch_size, waiting, 2 * waiting)
    longer = plan(samples + more, batch_size, waiting, 2 * waiting)
    full = [batch for batch in alone if len(batch) == batch_size]
    assert [batch for batch in longer if batch in full] == full
