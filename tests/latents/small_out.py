"""An OUT of latents as jobs.precompute_latents leaves it, written without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asymvae.storage.ledger import Ledger, commit_id
from asymvae.storage.parts import Part, PartWriter
from asymvae.storage.schemas import FORMAT_VERSION, LatentDtype, latents_schema
from asymvae.storage.shards import Shard

FINGERPRINT = "f" * 16
SCALING = 0.18215
CHANNELS, FACTOR = 2, 8


@dataclass
class SmallOut:
    """An OUT in the making; ``rows`` is what was committed, by key, means and logvars as they are stored."""

    url: str
    spool: Path
    dtype: LatentDtype = "float16"
    group_rows: int = 5
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def shard(self, name: str, counts: Mapping[str, int], *, commit: bool = True, **stamp: Any) -> list[Part]:
        """Write a shard with so many rows of each bucket ("16x24": pixels); ``stamp``: what its schema says."""
        rows: dict[str, list[dict[str, Any]]] = {}
        for bucket, count in counts.items():
            first = sum(map(len, rows.values()))
            rows[bucket] = [
                a_row(f"{name}/{index:04d}", index, bucket, self.dtype) for index in range(first, first + count)
            ]
        self.rows |= {row["key"]: row for of in rows.values() for row in of}
        parts = self.write(name, rows, **stamp)
        if commit:
            self.commit(name, parts)
        return parts

    def write(self, name: str, rows: Mapping[str, Sequence[dict[str, Any]]], **stamp: Any) -> list[Part]:
        """The parts of a shard with these rows, by bucket; not yet in OUT."""
        said = {"scaling_factor": SCALING, "model": "tiny", "weights_sha256": "a" * 64, **stamp}
        schema = latents_schema(said.pop("dtype", self.dtype), **said)
        self.spool.mkdir(parents=True, exist_ok=True)
        parts = []
        for bucket, of_bucket in rows.items():
            path, kind = self.spool / f"{name}-{bucket}.parquet", f"latents/bucket={bucket}"
            writer = PartWriter(path, schema, kind=kind, row_group_rows=self.group_rows, row_group_bytes=10**9)
            for row in of_bucket:
                writer.write(row)
            if part := writer.close():  # no row, no file
                parts.append(part)
        return parts

    def commit(self, name: str, parts: Sequence[Part]) -> None:
        ledger = Ledger(self.url)
        ledger.open_job({"format_version": FORMAT_VERSION, "fingerprint": FINGERPRINT})
        shard = Shard(f"in/{name}.tar", name, "webdataset", 1000, "v1")
        rows = sum(part.rows for part in parts)
        counts = {"samples": rows, "planned": rows, "results": rows, "errors": 0, "shard_errors": 0}
        ledger.commit(shard, commit_id(FINGERPRINT, shard), parts, counts, {})


def a_row(key: str, index: int, bucket: str, dtype: LatentDtype) -> dict[str, Any]:
    height, width = (int(side) for side in bucket.split("x"))
    shape = [CHANNELS, height // FACTOR, width // FACTOR]
    rng = np.random.default_rng([index, *key.encode()])
    mean = rng.normal(0, 5, shape).astype(np.float32)
    logvar = rng.normal(-4, 1, shape).astype(np.float32)
    return {
        "key": key,
        "variant": 0,
        "index": index,
        "mean": stored(mean, dtype).reshape(-1),
        "logvar": stored(logvar, dtype).reshape(-1),
        "shape": shape,
        "original_height": height + index,
        "original_width": width,
        "resized_height": height,
        "resized_width": width,
        "crop": [0, 0, height, width],
        "hflip": index % 2 == 1,
        "caption": None if index % 7 == 3 else f"caption of {key}",
        "json": None,
        "source_sha256": f"{index:064x}",
    }


def stored(values: np.ndarray[Any, Any], dtype: LatentDtype) -> np.ndarray[Any, Any]:
    if dtype == "bfloat16":
        return torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    return values.astype(dtype)


def as_float(values: np.ndarray[Any, Any], dtype: LatentDtype) -> torch.Tensor:
    """float32 of what is stored."""
    tensor = torch.from_numpy(values.copy())
    return (tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor).float()
