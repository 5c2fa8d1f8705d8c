"""The lists of an audit: files in columns, commits by shard."""

from __future__ import annotations

import random
import tracemalloc

from asymvae.storage.filesystem import FileInfo
from asymvae.storage.inventory import CommitNames, Inventory

IDS = [f"{number:016x}" for number in range(3)]


def test_an_inventory_knows_what_was_listed_and_not_struck_off() -> None:
    inventory = Inventory([("results/a", FileInfo(2**40, "", 1.5)), ("b", FileInfo(0, "")), ("c", FileInfo(3, ""))])
    assert (inventory.size("results/a"), inventory.size("b"), inventory.size("d")) == (2**40, 0, None)
    assert [inventory.strike("c"), inventory.strike("c")] == [True, False]
    assert inventory.size("c") is None
    assert list(inventory) == ["results/a", "b"]
    assert list(inventory.items()) == [("results/a", 2**40, 1.5), ("b", 0, None)]


def test_an_inventory_takes_little_more_than_the_names() -> None:
    count = 50_000
    tracemalloc.start()
    try:
        inventory = Inventory(
            (f"results/{number:040}.parquet", FileInfo(number, "e" * 40, 1.0)) for number in range(count)
        )
        taken = tracemalloc.get_traced_memory()[0] / count
    finally:
        tracemalloc.stop()
    assert inventory.size(f"results/{7:040}.parquet") == 7
    assert taken < 220, f"{taken:.0f} bytes a file"


def test_commits_are_found_by_their_shard_whatever_its_neighbours_are_called() -> None:
    # In the order of whole names those of "a" aren't side by side.
    by_shard = {"a": IDS[:2], "a.0000000000000000": IDS[1:], "a-b": IDS[2:], "a.b": IDS[:1], "A": IDS}
    names = [f"{shard}.{each}" for shard, ids in by_shard.items() for each in ids]
    random.Random(0).shuffle(names)
    commits = CommitNames(names)
    assert {shard: commits.of(shard) for shard in by_shard} == {
        shard: [f"{shard}.{each}" for each in ids] for shard, ids in by_shard.items()
    }
    assert commits.of("b") == commits.of("") == commits.of("a.b.0") == []
    assert dict(commits.by_shard()) == {shard: commits.of(shard) for shard in sorted(by_shard)}
    assert len(commits) == len(names)
    assert sorted(name for chunk in commits.chunks(2) for name in chunk) == sorted(names)
