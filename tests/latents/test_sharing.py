"""Every sample exactly once an epoch, over any number of ranks and workers."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from asymvae.latents.dataset import LatentDataset
from tests.latents.lanes import epoch_of_all, epoch_of_rank, real_keys
from tests.latents.small_out import SmallOut


@pytest.mark.parametrize("remainder", ["pad", "drop"])
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_no_sample_is_lost_or_doubled(buckets: SmallOut, world_size: int, workers: int, remainder: Any) -> None:
    def make(rank: int) -> LatentDataset:
        data = LatentDataset(
            buckets.url, batch_size=4, seed=7, rank=rank, world_size=world_size, remainder=remainder, sample=False
        )
        data.set_epoch(3)
        return data

    ranks = epoch_of_all(make, world_size, workers)
    data = make(0)
    assert [len(batches) for batches in ranks] == [len(data)] * world_size
    for batch in (batch for batches in ranks for batch in batches):
        assert len(batch["latents"]) == len(batch["key"]) == len(batch["is_padding"]) == 4
        bucket = {tuple(buckets.rows[key]["shape"]) for key in batch["key"]}
        assert bucket == {tuple(batch["latents"].shape[1:])}
    seen = [key for batches in ranks for key in real_keys(batches)]
    assert len(seen) == len(set(seen)) == len(buckets.rows) - data.rest
    padding = sum(int(batch["is_padding"].sum()) for batches in ranks for batch in batches)
    if remainder == "pad":
        assert sorted(seen) == sorted(buckets.rows)
        assert padding == data.padding == len(data) * world_size * 4 - len(buckets.rows)
        # less than a batch of each bucket, and a batch of each rank but one
        assert padding < 4 * 4 + 4 * (world_size - 1)
    else:
        assert padding == data.padding == 0
        assert data.rest == len(buckets.rows) - len(data) * world_size * 4


@pytest.mark.parametrize("workers", [1, 2])
def test_a_data_loader_gives_what_its_workers_make_in_turn(buckets: SmallOut, workers: int) -> None:
    data = LatentDataset(buckets.url, batch_size=4, rank=1, world_size=2)
    loader = DataLoader(data, batch_size=None, num_workers=workers)
    loaded = list(loader)
    assert len(loaded) == len(loader) == len(data)
    for batch, expected in zip(loaded, epoch_of_rank(data, workers), strict=True):
        assert batch["key"] == expected["key"]
        assert torch.equal(batch["latents"], expected["latents"])


def test_workers_that_live_on_hear_of_the_next_epoch(buckets: SmallOut) -> None:
    data = LatentDataset(buckets.url, batch_size=4)
    loader = DataLoader(data, batch_size=None, num_workers=2, persistent_workers=True)
    for epoch in (0, 1):
        data.set_epoch(epoch)
        assert [batch["key"] for batch in loader] == [batch["key"] for batch in epoch_of_rank(data, 2)]


def test_epochs_differ_and_repeat(buckets: SmallOut) -> None:
    data = LatentDataset(buckets.url, batch_size=4)

    def epoch(number: int) -> list[list[str]]:
        data.set_epoch(number)
        return [batch["key"] for batch in data]

    first, second = epoch(0), epoch(1)
    assert first != second
    assert epoch(0) == first
    assert first != [batch["key"] for batch in LatentDataset(buckets.url, batch_size=4, seed=1)]


def test_without_shuffling_rows_come_as_written_and_buckets_evenly(buckets: SmallOut) -> None:
    data = LatentDataset(buckets.url, "16x24", batch_size=4, shuffle=False)
    assert real_keys(list(data)) == sorted(key for key, row in buckets.rows.items() if row["shape"] == [2, 2, 3])
    shapes = [tuple(batch["latents"].shape[2:]) for batch in LatentDataset(buckets.url, batch_size=2, shuffle=False)]
    places = [number for number, shape in enumerate(shapes) if shape == (3, 2)]
    assert len(places) == 12
    assert max(later - earlier for earlier, later in pairwise(places)) <= 5


def test_what_is_dropped_changes_with_the_epoch(tmp_path: Path) -> None:
    out = SmallOut(str(tmp_path / "out"), tmp_path / "spool", group_rows=100)
    out.shard("a", {"16x16": 11})
    data = LatentDataset(out.url, batch_size=4, remainder="drop")
    assert (len(data), data.rest) == (2, 3)
    dropped = set()
    for epoch in range(20):
        data.set_epoch(epoch)
        dropped |= set(out.rows) - set(real_keys(list(data)))
    assert dropped == set(out.rows)


def test_all_ranks_do_the_same_shape_at_once_but_for_the_rest(tmp_path: Path) -> None:
    out = SmallOut(str(tmp_path / "out"), tmp_path / "spool", group_rows=10)
    out.shard("a", {"16x16": 40, "8x8": 24, "8x16": 9})
    ranks = epoch_of_all(lambda rank: LatentDataset(out.url, batch_size=2, rank=rank, world_size=3), 3, 2)
    alike = [len({batch["latents"].shape for batch in step}) == 1 for step in zip(*ranks, strict=True)]
    assert (len(alike), sum(alike)) == (13, 12)  # 20 + 12 + 5 batches and 2 more, 21 + 13 + 5 for 3 ranks


def test_where_rows_are_fewer_than_batches_each_rank_still_has_one(tmp_path: Path) -> None:
    out = SmallOut(str(tmp_path / "out"), tmp_path / "spool")
    out.shard("a", {"16x16": 6, "8x8": 1, "8x16": 1})
    ranks = epoch_of_all(lambda rank: LatentDataset(out.url, batch_size=4, rank=rank, world_size=8), 8, 1)
    assert all(len(real_keys(batches)) == 1 for batches in ranks)


def test_batches_of_padding_alone_come_only_where_rows_are_fewer_than_batches(tmp_path: Path) -> None:
    out = SmallOut(str(tmp_path / "out"), tmp_path / "spool")
    out.shard("a", {f"8x{8 * number}": 1 for number in range(1, 10)})  # 9 shapes: 16 batches for 8 ranks
    for workers in (1, 3):
        ranks = epoch_of_all(lambda rank: LatentDataset(out.url, batch_size=4, rank=rank, world_size=8), 8, workers)
        assert sorted(key for batches in ranks for key in real_keys(batches)) == sorted(out.rows)
        assert {len(batches) for batches in ranks} == {2}


def test_too_few_samples_are_an_error(buckets: SmallOut) -> None:
    with pytest.raises(ValueError, match="1 samples are fewer than the 2 ranks"):
        LatentDataset(buckets.url, "8x8", batch_size=1, rank=0, world_size=2)
    with pytest.raises(ValueError, match="don't make a batch of 64 for each of the 1 ranks"):
        LatentDataset(buckets.url, batch_size=64, remainder="drop", rank=0, world_size=1)


def test_ranks_come_from_torchrun_s_environment(buckets: SmallOut, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    data = LatentDataset(buckets.url, batch_size=4)
    assert (data.rank, data.world_size) == (1, 3)
    with pytest.raises(ValueError, match="both rank and world_size"):
        LatentDataset(buckets.url, batch_size=4, rank=1)
    with pytest.raises(ValueError, match="rank 3 is none of the 3"):
        LatentDataset(buckets.url, batch_size=4, rank=3, world_size=3)
