"""Samples by key: each as often as it is asked for, in any order, nothing on disk where the order is the shard's."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from asymvae.faults import Fault
from asymvae.storage.keyed_samples import KeyedSamples
from asymvae.storage.samples import FieldNames
from asymvae.storage.shards import Shard
from tests.tiny import write_tar

FIELDS = FieldNames(("img",), (), (), (), ())


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    samples = [(f"k{number}", {"img": bytes([number]) * 1000}) for number in range(20)]
    path = write_tar(tmp_path / "a.tar", [*samples, ("k3", {"img": b"again"})])
    return Shard(str(path), "a", "webdataset", path.stat().st_size, "")


def test_in_the_shard_s_order_nothing_is_written(shard: Shard, tmp_path: Path) -> None:
    asked = [f"k{number // 2}" for number in range(40)]
    with KeyedSamples(shard, FIELDS, asked, tmp_path) as samples:
        for key in asked:
            assert samples.take(key) == {"image": bytes([int(key[1:])]) * 1000}
        assert (tmp_path / "originals").stat().st_size == 0


def test_in_any_order_each_is_found_as_often_as_it_is_asked_for(shard: Shard, tmp_path: Path) -> None:
    asked = [f"k{number % 20}" for number in range(60)] + ["absent", "absent"]
    random.Random(0).shuffle(asked)
    with KeyedSamples(shard, FIELDS, asked, tmp_path) as samples:
        for key in asked:
            found = samples.take(key)
            if key == "absent":
                assert found == Fault("missing_original")
            else:
                assert found == {"image": bytes([int(key[1:])]) * 1000}


def test_only_what_will_be_asked_for_is_kept(shard: Shard, tmp_path: Path) -> None:
    with KeyedSamples(shard, FIELDS, ["k19", "k5"], tmp_path) as samples:
        samples.take("k19")
        samples.take("k5")
        samples._file.flush()
        assert (tmp_path / "originals").stat().st_size == 1000
