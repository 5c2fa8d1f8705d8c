"""A batch on its way from a DataLoader worker."""

from __future__ import annotations

import pickle
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from asymvae.latents.dataset import LatentDataset
from asymvae.latents.handing import Handed
from tests.latents.small_out import SmallOut

COLUMNS = ("key", "crop", "hflip")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_what_arrives_is_what_one_process_makes(tmp_path: Path, dtype: torch.dtype, start: str) -> None:
    out = SmallOut(str(tmp_path / "out"), tmp_path / "spool")
    out.shard("a", {"128x128": 14})
    data = LatentDataset(out.url, batch_size=9, columns=COLUMNS, dtype=dtype)  # 18 KiB in float32; with padding
    loader = DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context=start)
    arrived, made = list(loader), list(data)
    assert len(arrived) == len(made)
    for batch, other in zip(arrived, made, strict=True):
        assert type(batch) is dict
        assert list(batch) == list(other)
        assert batch["key"] == other["key"]
        for name in ("latents", "is_padding", "crop", "hflip"):
            assert batch[name].dtype == other[name].dtype
            assert torch.equal(batch[name], other[name])
            batch[name].zero_()  # it may be written to


def test_small_tensors_take_no_shared_memory() -> None:
    batch: dict[str, Any] = {
        "latents": torch.ones(2**14),
        "few": torch.ones(3, dtype=torch.bfloat16),
        "is_padding": torch.zeros(32, dtype=torch.bool),
        "key": ["a"] * 32,
    }
    handed: Any = pickle.loads(bytes(ForkingPickler.dumps(Handed(batch))))
    assert type(handed) is dict
    assert list(handed) == list(batch)
    assert [handed[name].is_shared() for name in ("latents", "few", "is_padding")] == [True, True, False]
    for name in ("latents", "few", "is_padding"):
        assert torch.equal(handed[name], batch[name])
