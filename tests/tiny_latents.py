"""Small jobs that precompute and decode latents, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from asymvae.config import ShardJob
from asymvae.config_latents import DecodeJob, PrecomputeJob
from asymvae.pipeline.executor import LocalExecutor
from asymvae.pipeline.job import JobResult, run_job
from asymvae.storage.audit import audit

SMALL = {"base": 96, "step": 32, "max_ratio": 2.0, "least": 32}


def precompute(urls: str, out: Path | str, checkpoint: Path | str, **settings: Any) -> PrecomputeJob:
    """``settings`` by section; ``crop`` beside small buckets."""
    return PrecomputeJob(**_values(urls, out, checkpoint, {"crop": SMALL | settings.pop("crop", {})} | settings))


def decode(urls: str, out: Path | str, checkpoint: Path | str, **settings: Any) -> DecodeJob:
    return DecodeJob(**_values(urls, out, checkpoint, settings))


def _values(urls: str, out: Path | str, checkpoint: Path | str, settings: dict[str, Any]) -> dict[str, Any]:
    workers = {"gpus": 0, "cpu_threads": 1, "batch_size": 4} | settings.pop("workers", {})
    values = {
        "input": {"urls": urls} | settings.pop("input", {}),
        "output": {"url": str(out)} | settings.pop("output", {}),
        "model": {"path": str(checkpoint)} | settings.pop("model", {}),
        "workers": workers,
        "max_error_fraction": 1.0,
    }
    return values | settings


def run(job: ShardJob) -> JobResult:
    """In this process; the audit reads every part and finds nothing wrong."""
    result = run_job(job, LocalExecutor())
    assert result.exit_code == 0, result
    report = audit(job.output.url, deep=True, shards=result.plan.shards)
    assert report.ok, report
    return result


def latents_of(out: Path | str) -> list[dict[str, Any]]:
    """Every row, by (key, variant), with its bucket's folder as ``bucket`` and arrays as lists."""
    found = []
    for path in sorted(Path(out, "latents").glob("*/*.parquet")):
        found += [row | {"bucket": path.parent.name} for row in pq.ParquetFile(path).read().to_pylist()]
    return sorted(found, key=lambda row: (row["key"], row["variant"]))
