"""Shards in columns."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest

from asymvae.storage import shards as module
from asymvae.storage.shard_table import ShardTable
from asymvae.storage.shards import Shard, list_shards

SHARDS = [
    Shard("s3://b/z.tar", "z", "webdataset", 3, "v1"),
    Shard("s3://b/a.parquet", "a", "parquet", 30, "v2", "s3://c/a.tar"),
    Shard("s3://b/m.tar", "m", "webdataset", 3, "v3"),
]


def test_it_is_a_sequence_of_the_shards_it_was_made_of() -> None:
    table = ShardTable(SHARDS)
    assert list(table) == SHARDS
    assert table == SHARDS
    assert table != SHARDS[:2]
    assert ShardTable() == ()
    assert not ShardTable()
    assert [table[place] for place in (0, 1, -1)] == [SHARDS[0], SHARDS[1], SHARDS[-1]]
    assert list(table.names_and_versions()) == [("z", "v1"), ("a", "v2"), ("m", "v3")]
    assert list(ShardTable().names_and_versions()) == []
    assert table[1:] == SHARDS[1:]
    assert table[::-1] == SHARDS[::-1]
    assert table.take([2, 0]) == [SHARDS[2], SHARDS[0]]
    assert table.take([]) == ()
    assert table.take([0, 1, 2]) is table
    assert table.find("m") == SHARDS[2]
    assert pickle.loads(pickle.dumps(table)) == table
    with pytest.raises(KeyError):
        table.find("n")
    with pytest.raises(IndexError):
        table[3]


def test_more_than_a_batch_of_them() -> None:
    many = [Shard(f"/in/{n:06d}.tar", f"{n:06d}", "webdataset", n % 7, str(n)) for n in range(25_000)]
    table = ShardTable(reversed(many))
    assert table.by_name() == many
    assert list(table.by_size()) == sorted(many, key=lambda shard: (-shard.size, shard.name))
    assert table[10_001] == many[-10_002]
    assert int(table.sizes.sum()) == sum(shard.size for shard in many)


def test_what_is_named_twice_is_there_once_and_two_of_one_name_are_told() -> None:
    table, two = ShardTable([*SHARDS, *SHARDS[:2]]).by_name().without_repeats()
    assert table == sorted(SHARDS, key=lambda shard: shard.name)
    assert two is None
    other = Shard("s3://b/m.tgz", "m", "webdataset", 3, "v3")
    _, two = ShardTable([*SHARDS, other]).by_name().without_repeats()
    assert two == (SHARDS[2], other)


@pytest.fixture
def folders() -> Iterator[None]:
    memory = fsspec.filesystem("memory")
    for n in range(60):
        memory.pipe_file(f"/wide/{n:02d}/x.tar", b"x" * n)
    yield
    memory.rm("/wide", recursive=True)


def test_files_of_very_many_folders_are_found_by_one_listing_where_that_is_cheaper(
    folders: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ASK_EACH_OF_ALL", 20)
    asked: list[Any] = []
    info = module.info
    monkeypatch.setattr(module, "info", lambda url: (asked.append(url), info(url))[1])
    wanted = "memory://wide/{00..49}/x.tar"
    found = list_shards(wanted, root="memory://wide", format="auto")
    assert [shard.size for shard in found] == list(range(50))
    assert not asked
    # Among very many others each is asked for by its name: here those that the listing's first file isn't.
    monkeypatch.setattr(module, "_LISTED_FOR_ONE", 0)
    assert list_shards(wanted, root="memory://wide", format="auto") == found
    assert len(asked) == 50
