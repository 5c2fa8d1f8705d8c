"""What both formats have in common: keys are unique in a shard, and every sample is accounted for."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import asymvae.storage.webdataset as webdataset
from asymvae.faults import Fault
from asymvae.storage.samples import BadSample, FieldNames, Sample, read_shard, safe_key
from asymvae.storage.shards import Shard, list_shards
from tests.storage.tars import make_tar

FIELDS = FieldNames(image=("jpg",), mask=(), prompt=(), given=(), json=(), key="key")
KEYS = ["a", "b", "a", "c", "c", "a"]
DUPLICATE = Fault("duplicate_key")


def tar_shard(folder: Path) -> Shard:
    (folder / "x.tar").write_bytes(make_tar([(f"{key}.jpg", bytes([i])) for i, key in enumerate(KEYS)]))
    return list_shards(str(folder / "x.tar"), root=None, format="auto")[0]


def parquet_shard(folder: Path) -> Shard:
    table = pa.table({"key": KEYS, "jpg": [bytes([i]) for i in range(len(KEYS))]})
    pq.write_table(table, folder / "x.parquet", row_group_size=2)
    return list_shards(str(folder / "x.parquet"), root=None, format="auto")[0]


@pytest.mark.parametrize("make", [tar_shard, parquet_shard])
def test_of_a_key_that_comes_again_the_first_sample_stays(tmp_path: Path, make: object) -> None:
    shard = make(tmp_path)  # type: ignore[operator]
    assert list(read_shard(shard, FIELDS)) == [
        Sample(0, "a", {"image": b"\0"}),
        Sample(1, "b", {"image": b"\1"}),
        BadSample(2, "a", DUPLICATE),
        Sample(3, "c", {"image": b"\3"}),
        BadSample(4, "c", DUPLICATE),
        BadSample(5, "a", DUPLICATE),
    ]


def test_the_first_of_a_key_counts_even_if_it_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset, "MAX_FIELD_BYTES", 5)
    data = make_tar([("a.jpg", b"too large"), ("b.jpg", b"b"), ("a.jpg", b"a")])
    (tmp_path / "x.tar").write_bytes(data)
    (shard,) = list_shards(str(tmp_path / "x.tar"), root=None, format="auto")
    rows = list(read_shard(shard, FIELDS))
    assert [(row.index, row.key, type(row)) for row in rows] == [
        (0, "a", BadSample),
        (1, "b", Sample),
        (2, "a", BadSample),
    ]
    assert isinstance(rows[0], BadSample)
    assert rows[0].fault.code == "field_too_large"
    assert rows[2] == BadSample(2, "a", DUPLICATE)


def test_a_cut_shard_gives_its_samples_its_duplicates_and_one_row_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(make_tar([(f"{key}.jpg", b"x") for key in KEYS])[: 4 * 1024 + 512])
    (shard,) = list_shards(str(tmp_path / "x.tar"), root=None, format="auto")
    rows = list(read_shard(shard, FIELDS))
    # "c" twice in a row is a field that comes again; the second one is in progress at the cut
    assert [(row.index, row.key) for row in rows] == [(0, "a"), (1, "b"), (2, "a"), (3, "c"), (None, None)]
    assert rows[-1] == BadSample(None, None, Fault("tar_truncated", {"offset": 4 * 1024 + 512}))


def test_safe_keys_are_utf8() -> None:
    assert safe_key("é😀".encode()) == "é😀"
    assert safe_key(b"a\xff\xed\xa0\x80").encode() == rb"a\xff\xed\xa0\x80"
