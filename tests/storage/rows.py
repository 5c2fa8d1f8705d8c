"""Rows, parts and shards for the tests of this room."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from asymvae.storage import filesystem, schemas
from asymvae.storage.ledger import Ledger, commit_id
from asymvae.storage.parts import Part, PartWriter
from asymvae.storage.shards import Shard

FINGERPRINT = "f" * 16


def a_shard(name: str = "00000", version: str = "v1") -> Shard:
    return Shard(f"s3://user:secret@in/{name}.tar?sig=secret", name, "webdataset", 1000, version)


def result(index: int, *, key: str | None = None, image: bytes = b"image") -> dict[str, Any]:
    key = f"key-{index}" if key is None else key
    return {
        "key": key,
        "variant": 0,
        "index": index,
        "image": {"bytes": image, "path": f"{key}.png"},
        "width": 64,
        "height": 48,
        "seed": 2**64 - 1 - index,
        "prompt": None,
        "negative_prompt": None,
        "crop": [0, 0, 48, 64],
        "work_width": 64,
        "work_height": 64,
        "passed_through": False,
        "bit_depth_reduced": False,
    }


def metric(row: dict[str, Any]) -> dict[str, Any]:
    empty = dict.fromkeys(schemas.METRICS.names)
    return {**empty, **{name: row[name] for name in ("key", "variant", "index")}, "hole_fraction": 0.25}


def error(index: int | None, code: str = "missing_mask") -> dict[str, Any]:
    key, variant = (None, None) if index is None else (f"key-{index}", 0)
    return {"key": key, "variant": variant, "index": index, "stage": "read", "code": code, "message": "..."}


def a_part(path: Path, schema: Any, rows: list[dict[str, Any]]) -> Part | None:
    writer = PartWriter(path, schema, row_group_rows=10, row_group_bytes=10**6)
    for row in rows:
        writer.write(row)
    return writer.close()


def a_set(
    folder: Path,
    results: list[dict[str, Any]],
    errors: list[dict[str, Any]] | None = None,
    metrics: list[dict[str, Any]] | None = None,
) -> tuple[list[Part], dict[str, int], dict[str, int]]:
    """(parts, counts, errors by code) of a shard with these rows."""
    folder.mkdir(parents=True, exist_ok=True)
    errors = errors or []
    metrics = [metric(row) for row in results] if metrics is None else metrics
    written = [
        a_part(folder / "results", schemas.RESULTS, results),
        a_part(folder / "metrics", schemas.METRICS, metrics),
        a_part(folder / "errors", schemas.ERRORS, errors),
    ]
    of_samples = sum(row["index"] is not None for row in errors)
    planned = len(results) + of_samples
    counts = {
        "samples": planned,
        "planned": planned,
        "results": len(results),
        "errors": of_samples,
        "shard_errors": len(errors) - of_samples,
    }
    return [part for part in written if part], counts, dict(Counter(row["code"] for row in errors))


def open_job(out_url: str) -> Ledger:
    ledger = Ledger(out_url)
    ledger.open_job({"format_version": 1, "fingerprint": FINGERPRINT})
    return ledger


def commit(
    ledger: Ledger,
    shard: Shard,
    folder: Path,
    results: list[dict[str, Any]],
    errors: list[dict[str, Any]] | None = None,
    worker: str = "one",
) -> dict[str, Any]:
    """Commit a shard with these rows, as a worker does."""
    parts, counts, by_code = a_set(folder, results, errors)
    identity = commit_id(FINGERPRINT, shard)
    return ledger.commit(shard, identity, parts, counts, {"worker": worker}, errors_by_code=by_code)


def files(out_url: str) -> list[str]:
    return list(filesystem.list_files(out_url, recursive=True))
