"""What is in a batch: the posterior's samples, scaled, and the columns beside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import asymvae
from asymvae.latents.dataset import LatentDataset
from tests.latents.lanes import epoch_of_all
from tests.latents.small_out import SCALING, SmallOut, as_float


def latents_by_key(batches: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Also of repeats, which must be alike."""
    found: dict[str, torch.Tensor] = {}
    for batch in batches:
        for key, latent in zip(batch["key"], batch["latents"], strict=True):
            assert torch.equal(found.setdefault(key, latent), latent)
    return found


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_means_come_back_exactly_and_samples_have_the_posterior_s_spread(tmp_path: Path, dtype: Any) -> None:
    out = SmallOut(str(tmp_path / "out"), tmp_path / "spool", dtype=dtype)
    out.shard("a", {"64x48": 8, "64x64": 5})
    means = latents_by_key(list(LatentDataset(out.url, batch_size=3, sample=False)))
    drawn = latents_by_key(list(LatentDataset(out.url, batch_size=3)))
    assert means.keys() == drawn.keys() == out.rows.keys()
    noise = []
    for key, row in out.rows.items():
        mean, logvar = (as_float(row[name], dtype).view(*row["shape"]) for name in ("mean", "logvar"))
        assert means[key].dtype == torch.float32
        assert torch.equal(means[key], mean * SCALING)
        noise.append(((drawn[key] / SCALING - mean) / torch.exp(0.5 * logvar)).flatten())
    eps = torch.cat(noise)
    assert abs(eps.mean()) < 0.1
    assert abs(eps.std() - 1) < 0.1
    for length in {len(one) for one in noise}:  # no two samples share theirs
        alike = torch.corrcoef(torch.stack([one for one in noise if len(one) == length])).fill_diagonal_(0)
        assert alike.abs().max() < 0.5


def test_a_sample_s_noise_hangs_on_epoch_and_seed_and_not_on_who_reads_it(buckets: SmallOut) -> None:
    def read(world_size: int, workers: int, seed: int = 0, epoch: int = 0) -> dict[str, torch.Tensor]:
        def make(rank: int) -> LatentDataset:
            data = LatentDataset(buckets.url, batch_size=5, seed=seed, rank=rank, world_size=world_size)
            data.set_epoch(epoch)
            return data

        ranks = epoch_of_all(make, world_size, workers)
        return latents_by_key([batch for batches in ranks for batch in batches])

    alone, many = read(1, 0), read(3, 2)
    assert alone.keys() == many.keys() == buckets.rows.keys()
    assert all(torch.equal(alone[key], many[key]) for key in alone)
    for other in (read(1, 0, epoch=1), read(1, 0, seed=1)):
        assert not any(torch.equal(alone[key], other[key]) for key in alone)


def test_columns_are_texts_or_tensors(buckets: SmallOut) -> None:
    names = ["key", "caption", "index", "original_height", "crop", "hflip", "shape", "json"]
    for batch in LatentDataset(buckets.url, batch_size=4, columns=names, dtype=torch.float16):
        assert list(batch) == ["latents", "is_padding", *names]
        assert batch["latents"].dtype == torch.float16
        rows = [buckets.rows[key] for key in batch["key"]]
        for name in ("caption", "json"):
            assert batch[name] == [row[name] for row in rows]
        for name in ("index", "original_height", "crop", "hflip", "shape"):
            assert torch.equal(batch[name], torch.tensor([row[name] for row in rows], dtype=batch[name].dtype))
        assert (batch["crop"].shape, batch["hflip"].dtype, batch["index"].dtype) == ((4, 4), torch.bool, torch.int64)
        assert not batch["is_padding"][0]


def test_wrong_arguments_are_named(buckets: SmallOut) -> None:
    for arguments, message in [
        ({"columns": ["key", "captoin"]}, "captoin"),
        ({"columns": "key"}, "columns must be names of key, variant"),
        ({"batch_size": 0}, "batch_size"),
        ({"remainder": "keep"}, "'pad' or 'drop', not 'keep'"),
    ]:
        with pytest.raises(ValueError, match=message):
            LatentDataset(buckets.url, **{"batch_size": 4, **arguments})  # type: ignore[arg-type]


def test_it_is_offered_by_the_package() -> None:
    assert asymvae.LatentDataset is LatentDataset
