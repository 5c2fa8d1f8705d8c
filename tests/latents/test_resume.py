"""A run that stops anywhere in an epoch goes on with exactly what was left."""

from __future__ import annotations

import random
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torchdata.stateful_dataloader import StatefulDataLoader

from asymvae.latents.dataset import LatentDataset
from tests.latents.lanes import as_worker, epoch_of_rank
from tests.latents.small_out import SmallOut

EPOCH = 2


def data_set(out: SmallOut, **arguments: Any) -> LatentDataset:
    return LatentDataset(out.url, **{"batch_size": 4, "seed": 5, **arguments})


def assert_same(batches: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [batch["key"] for batch in batches] == [batch["key"] for batch in expected]
    for batch, other in zip(batches, expected, strict=True):
        assert torch.equal(batch["latents"], other["latents"])
        assert torch.equal(batch["is_padding"], other["is_padding"])


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> SmallOut:
    """Many row groups of two buckets, so that the shuffle buffer is a small part of the stretch."""
    folder = tmp_path_factory.mktemp("long")
    out = SmallOut(str(folder / "out"), folder / "spool", group_rows=7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pq, "ParquetWriter", partial(pq.ParquetWriter, data_page_size=1))  # 2 rows or 1 a page
        for number in range(3):
            out.shard(f"{number}", {"16x24": 60, "16x16": 25})
    return out


# The least buffer holds a batch; the usual one all that these stretches have.
@pytest.mark.parametrize("buffer_bytes", [1, 128 * 2**20])
def test_what_is_left_is_what_would_have_come(
    long: SmallOut, buffer_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start() -> LatentDataset:
        data = data_set(long, rank=1, world_size=2)
        monkeypatch.setattr(data, "_order", type(data._order)(4, True, 5, buffer_bytes))
        return data

    rng = random.Random(0)
    for worker, workers in [(0, 1), (0, 2), (1, 2)]:
        with as_worker(worker, workers):
            data = start()
            data.set_epoch(EPOCH)
            whole = list(data)
            for stop in rng.sample(range(len(whole) + 1), 7):
                stopped = start()
                stopped.set_epoch(EPOCH)
                assert_same(list(islice(stopped, stop)), whole[:stop])
                resumed = start()
                resumed.load_state_dict(stopped.state_dict())
                assert resumed.epoch == EPOCH
                assert_same(list(resumed), whole[stop:])
                assert_same(list(resumed), whole)  # the next iteration begins at the beginning


@pytest.mark.parametrize("workers", [0, 2])
def test_torchdata_s_loader_resumes_with_its_workers(buckets: SmallOut, workers: int) -> None:
    whole = epoch_of_rank(data_set(buckets), workers)
    for stop in (1, 8, len(whole) - 1):
        loader = StatefulDataLoader(data_set(buckets), batch_size=None, num_workers=workers)
        assert_same(list(islice(loader, stop)), whole[:stop])
        state = loader.state_dict()
        loader = StatefulDataLoader(data_set(buckets), batch_size=None, num_workers=workers)
        loader.load_state_dict(state)
        assert_same(list(loader), whole[stop:])
        assert_same(list(loader), whole)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_state_of_a_finished_epoch_leads_to_the_next(buckets: SmallOut, workers: int) -> None:
    loader = StatefulDataLoader(data_set(buckets), batch_size=None, num_workers=workers)
    assert len(list(loader)) == len(loader)
    state = loader.state_dict()
    data = data_set(buckets)
    loader = StatefulDataLoader(data, batch_size=None, num_workers=workers)
    loader.load_state_dict(state)
    data.set_epoch(1)
    expected = data_set(buckets)
    expected.set_epoch(1)
    assert_same(list(loader), epoch_of_rank(expected, workers))


def test_a_state_is_not_of_the_batches_read_ahead(long: SmallOut) -> None:
    data = data_set(long)
    batches = iter(data)
    assert data.state_dict()["batches"] == 0
    next(batches)
    next(batches)
    assert data.state_dict()["batches"] == 2
    batches.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_size": 2}, "batch_size: was 4, is 2"),
        ({"seed": 6}, "seed: was 5, is 6"),
        ({"rank": 0, "world_size": 2}, "world_size: was 1, is 2"),
        ({"bucket": "16x24"}, "data: was"),
        ({"shuffle": False}, "shuffle: was True, is False"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(buckets: SmallOut, change: dict[str, Any], named: str) -> None:
    state = data_set(buckets).state_dict()
    with pytest.raises(ValueError, match=named):
        data_set(buckets, **change).load_state_dict(state)


def test_another_number_of_workers_is_refused(buckets: SmallOut) -> None:
    with as_worker(0, 2):
        state = data_set(buckets).state_dict()
    with as_worker(0, 3), pytest.raises(ValueError, match="num_workers: was 2, is 3"):
        data_set(buckets).load_state_dict(state)


def test_a_state_in_the_middle_of_another_epoch_is_refused(buckets: SmallOut) -> None:
    data = data_set(buckets)
    list(islice(data, 3))
    state = data.state_dict()
    other = data_set(buckets)
    other.set_epoch(1)
    with pytest.raises(ValueError, match=r"in the middle of epoch 0; call set_epoch\(0\)"):
        other.load_state_dict(state)


def test_more_shards_since_are_other_data(tmp_path: Path) -> None:
    out = SmallOut(str(tmp_path / "out"), tmp_path / "spool")
    out.shard("a", {"16x16": 9})
    data = data_set(out)
    state = data.state_dict()
    out.shard("b", {"16x16": 9})
    with pytest.raises(ValueError, match="data: was"):
        data_set(out).load_state_dict(state)
