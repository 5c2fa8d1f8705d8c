"""OUTs of latents for the tests of this room."""

from __future__ import annotations

import pytest

from tests.latents.small_out import SmallOut


@pytest.fixture(scope="module")
def buckets(tmp_path_factory: pytest.TempPathFactory) -> SmallOut:
    """Four shards of four buckets: 52, 24, 3 and 1 rows, in row groups of 5."""
    folder = tmp_path_factory.mktemp("buckets")
    out = SmallOut(str(folder / "out"), folder / "spool")
    for number, extra in enumerate((0, 2, 1, 1)):
        out.shard(f"{number:05d}", {"16x24": 12 + extra, "24x16": 6, "32x32": 1 if number else 0, "8x8": number // 3})
    return out
