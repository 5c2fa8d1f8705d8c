"""What may be read: committed parts, all there, all of one kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from asymvae.latents.dataset import LatentDataset
from asymvae.storage import filesystem
from asymvae.storage.ledger import Ledger
from tests.latents.lanes import real_keys
from tests.latents.small_out import SmallOut, a_row


@pytest.fixture
def out(tmp_path: Path) -> SmallOut:
    return SmallOut(str(tmp_path / "out"), tmp_path / "spool")


def read(out: SmallOut, bucket: str | None = None) -> list[str]:
    return sorted(real_keys(list(LatentDataset(out.url, bucket, batch_size=3))))


@pytest.mark.parametrize(
    ("stamp", "lines"),
    [
        ({"weights_sha256": "b" * 64}, "weights_sha256 can't be mixed:\n  aaa+: {a}\n  bbb+: {b}"),
        ({"scaling_factor": 0.13025}, "scaling_factor can't be mixed:\n  0.13025: {b}\n  0.18215: {a}"),
        ({"dtype": "float32"}, "latent_dtype can't be mixed:\n  float16: {a}\n  float32: {b}"),
    ],
)
def test_latents_of_two_kinds_are_not_mixed(out: SmallOut, stamp: dict[str, Any], lines: str) -> None:
    out.shard("a", {"16x16": 4})
    out.shard("b", {"16x24": 4}, **stamp)
    named = {name: f"latents/bucket={bucket}/{name}.parquet" for name, bucket in [("a", "16x16"), ("b", "16x24")]}
    with pytest.raises(ValueError, match=lines.format(**named)):
        read(out)
    assert len(read(out, "16x16")) == 4


def test_only_what_is_committed_is_read(out: SmallOut, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing is committed"):
        read(out)
    (part,) = out.shard("b", {"16x16": 3}, commit=False)
    assert filesystem.put_if_absent(f"{out.url}/latents/bucket=16x16/b.parquet", part.path)
    with pytest.raises(FileNotFoundError, match="holds parts, but none is committed"):
        read(out)
    out.rows.clear()
    out.shard("a", {"16x16": 4})
    assert read(out) == sorted(out.rows)


def test_a_redone_shard_is_read_by_the_name_that_its_commit_says(out: SmallOut) -> None:
    filesystem.put_if_absent(f"{out.url}/latents/bucket=16x16/a.parquet", b"what a run before left")
    out.shard("a", {"16x16": 4})
    assert any("~r" in name for name in filesystem.list_files(f"{out.url}/latents", recursive=True))
    assert read(out) == sorted(out.rows)


def test_a_part_that_is_gone_or_cut_is_named(out: SmallOut) -> None:
    out.shard("a", {"16x16": 4})
    part = Path(out.url) / "latents/bucket=16x16/a.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[:-20])
    with pytest.raises(OSError, match=r"bucket=16x16/a.parquet of shard a is not what its commit says.* jobs.audit"):
        read(out)
    part.unlink()
    with pytest.raises(FileNotFoundError, match=r"bucket=16x16/a.parquet of shard a is committed, and isn't there"):
        read(out)


def test_a_part_that_is_damaged_inside_is_named(out: SmallOut) -> None:
    out.shard("a", {"16x16": 4})
    part = Path(out.url) / "latents/bucket=16x16/a.parquet"
    data = LatentDataset(out.url, batch_size=4)
    content = part.read_bytes()
    part.write_bytes(content[:4] + bytes(len(content) // 2) + content[4 + len(content) // 2 :])
    with pytest.raises(OSError, match=r"bucket=16x16/a.parquet can't be read"):
        list(data)


def test_commits_without_latents_are_another_job_s(out: SmallOut) -> None:
    out.commit("a", [])
    with pytest.raises(FileNotFoundError, match="the 1 commits name no latents"):
        read(out)


def test_a_bucket_that_is_not_there_is_refused_with_those_that_are(out: SmallOut) -> None:
    out.shard("a", {"16x16": 4, "16x24": 2})
    with pytest.raises(ValueError, match="no bucket '512x512'; it has 16x16, 16x24"):
        read(out, "512x512")
    assert len(read(out, "16x24")) == 2


def test_straight_from_an_object_store_and_in_its_workers(s3_url: str, tmp_path: Path) -> None:
    out = SmallOut(s3_url, tmp_path / "spool")
    out.shard("a", {"16x16": 11, "16x24": 6})
    out.shard("b", {"16x16": 7})
    assert read(out) == sorted(out.rows)
    loader = DataLoader(LatentDataset(s3_url, batch_size=3), batch_size=None, num_workers=2)
    assert sorted(real_keys(list(loader))) == sorted(out.rows)
    (name,) = [name for name in Ledger(s3_url).committed() if name.startswith("b.")]
    filesystem.remove(f"{s3_url}/latents/bucket=16x16/b.parquet")
    with pytest.raises(FileNotFoundError, match=r"b.parquet of shard b is committed"):
        read(out)
    Ledger(s3_url).withdraw(name)
    assert read(out) == [key for key in sorted(out.rows) if key.startswith("a/")]


@pytest.mark.parametrize("shape", [[0, 2, 2], [2, 2], [-2, 2, -2]], ids=str)
def test_a_shape_that_is_none_is_named(out: SmallOut, shape: list[int]) -> None:
    row = a_row("a/0000", 0, "16x16", "float16") | {"shape": shape}
    out.commit("a", out.write("a", {"16x16": [row]}))
    with pytest.raises(ValueError, match=r"bucket=16x16/a.parquet: shape is \[.*, not channels, height and width"):
        read(out)
