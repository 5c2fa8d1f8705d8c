"""Shards on a real object store: listed, read as streams, and named in rows."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asymvae.faults import Fault
from asymvae.storage.filesystem import join, put_if_absent
from asymvae.storage.samples import BadSample, FieldNames, Sample, read_shard
from asymvae.storage.shards import InputError, list_shards
from tests.storage.tars import make_tar

FIELDS = FieldNames(image=("jpg", "image"), mask=(), prompt=(), given=(), json=(), key="key")


def test_shards_of_a_bucket_are_listed_and_read(s3_url: str, tmp_path: Path) -> None:
    big = b"x" * (9 * 2**20)  # more than one read-ahead
    for i in range(20):
        archive = make_tar([(f"{i}.jpg", big if i == 3 else b"small"), ("last.jpg", b"y")])
        put_if_absent(join(s3_url, f"in/t-{i:02}.tar"), archive[:-8500] if i == 5 else archive)
    put_if_absent(join(s3_url, "in/a%#b c.tar"), make_tar([]))
    missing = join(s3_url, "in/none.jpg")
    table = pa.table({"key": ["a", "b", "c"], "image": [join(s3_url, "in/pixels"), missing, "file:///etc/passwd"]})
    put_if_absent(join(s3_url, "in/pixels"), b"pixels")
    pq.write_table(table, tmp_path / "x.parquet")
    put_if_absent(join(s3_url, "in/sub/x.parquet"), tmp_path / "x.parquet")

    by_brace = list_shards(join(s3_url, "in/t-{00..19}.tar"), root=None, format="auto")
    assert [shard.name for shard in by_brace] == [f"t-{i:02}" for i in range(20)]
    assert all(shard.version and '"' not in shard.version for shard in by_brace)
    assert list_shards(join(s3_url, "in/t-*.tar"), root=None, format="auto") == by_brace
    few = join(s3_url, "in/t-{03..05}.tar")
    assert list_shards(few, root=join(s3_url, "in"), format="auto") == by_brace[3:6]
    every = list_shards([join(s3_url, "in/**/*.tar"), join(s3_url, "in/*/*.parquet")], root=None, format="auto")
    assert [shard.name for shard in every] == ["a~25~23b~20c", "sub~2Fx", *(shard.name for shard in by_brace)]
    with pytest.raises(InputError, match=r"t-20\.tar does not exist"):
        list_shards(join(s3_url, "in/t-{00..20}.tar"), root=None, format="auto")

    assert list(read_shard(every[0], FIELDS)) == []
    assert list(read_shard(by_brace[3], FIELDS)) == [
        Sample(0, "3", {"image": big}),
        Sample(1, "last", {"image": b"y"}),
    ]
    cut = list(read_shard(by_brace[5], FIELDS))
    assert cut == [Sample(0, "5", {"image": b"small"}), BadSample(None, None, Fault("tar_truncated", {"offset": 1740}))]
    assert list(read_shard(every[1], FIELDS)) == [
        Sample(0, "a", {"image": b"pixels"}),
        BadSample(1, "b", Fault("url_not_found", {"field": "image"})),
        BadSample(2, "c", Fault("url_refused", {"field": "image"})),
    ]
