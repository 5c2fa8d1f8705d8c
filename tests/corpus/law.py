"""The law, over any OUT: what was read is a result or an error, once; and what the commits count is in the parts.

By itself: it shares no code with the audit, which it stands beside.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow.parquet as pq
from fsspec.core import url_to_fs


def commits_of(out_url: str) -> list[dict[str, Any]]:
    """Every commit record of an OUT, by name."""
    fs, root = url_to_fs(str(out_url))
    folder = f"{root}/_commits"
    return [json.loads(fs.cat_file(path)) for path in sorted(fs.ls(folder, detail=False)) if path.endswith(".json")]


def rows_of_commit(out_url: str, commit: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The rows of the parts that a commit names, by kind (``latents`` for those of every bucket); images and latents
    themselves are left out. AssertionError where a part isn't what the commit says."""
    fs, root = url_to_fs(str(out_url))
    rows: dict[str, list[dict[str, Any]]] = {}
    for part in commit["parts"]:
        data = fs.cat_file(f"{root}/{part['object']}")
        assert hashlib.sha256(data).hexdigest() == part["sha256"], f"{part['object']} is another file"
        with pq.ParquetFile(io.BytesIO(data)) as file:
            wanted = [name for name in file.schema_arrow.names if name not in ("image", "mean", "logvar")]
            found = file.read(columns=wanted).to_pylist()
        assert len(found) == part["rows"] > 0, f"{part['object']} has {len(found)} rows"
        rows.setdefault(part["kind"].partition("/")[0], []).extend(found)
    return rows


def law_broken(out_url: str, samples: Mapping[str, int] | None = None) -> list[str]:
    """Where an OUT breaks the law, in words that begin with the shard's name; [] where it holds.

    ``samples``: how many were put into each shard, by its name, counted by whoever made them; a shard that is
    missing there is only held to its own commit.
    """
    broken: list[str] = []
    seen = Counter(commit["shard"] for commit in commits_of(out_url))
    broken += [f"{name}: {times} commits" for name, times in seen.items() if times > 1]
    broken += [f"{name}: no commit" for name in (samples or {}) if name not in seen]
    for commit in commits_of(out_url):
        try:
            lines = _of_shard(commit, rows_of_commit(out_url, commit), (samples or {}).get(commit["shard"]))
        except AssertionError as error:
            lines = [str(error)]
        broken += [f"{commit['shard']}: {line}" for line in lines]
    return broken


def _of_shard(commit: Mapping[str, Any], rows: Mapping[str, list[dict[str, Any]]], put_in: int | None) -> list[str]:
    counts = commit["counts"]
    results = rows.get("results", []) + rows.get("latents", [])
    errors = [row for row in rows.get("errors", []) if row["index"] is not None]
    own = [row for row in rows.get("errors", []) if row["index"] is None]
    read = {row["index"] for row in results + errors}
    variants = {row.get("variant", 0) for row in results + errors}
    broken = []

    def must(holds: bool, otherwise: str) -> None:
        if not holds:
            broken.append(otherwise)

    must(counts["results"] == len(results), f"{len(results)} results, {counts['results']} counted")
    must(counts["errors"] == len(errors), f"{len(errors)} errors, {counts['errors']} counted")
    must(counts["shard_errors"] == len(own), f"{len(own)} faults of the shard, {counts['shard_errors']} counted")
    must(counts["samples"] == len(read), f"{len(read)} samples among the rows, {counts['samples']} counted")
    must(put_in in (None, counts["samples"]), f"{put_in} samples were put in, {counts['samples']} counted")
    # Later rows keep their numbers where a row group is lost.
    must("parquet_corrupt" in {row["code"] for row in own} or read == set(range(len(read))), "the numbers have gaps")
    must(counts["planned"] == len(results) + len(errors), f"{counts['planned']} planned rows")
    must(len(read) * len(variants) == len(results) + len(errors), f"variants {sorted(variants)} of {len(read)} samples")
    places = Counter((row["index"], row.get("variant", 0)) for row in results + errors)
    must(all(times == 1 for times in places.values()), "a (sample, variant) comes more than once")
    good = Counter((row["key"], row.get("variant", 0)) for row in results)
    must(all(times == 1 for times in good.values()), "a (key, variant) has two results")
    first = {(row["key"], row.get("variant", 0)) for row in errors if row["code"] != "duplicate_key"}
    must(not first & good.keys(), "a (key, variant) is a result and an error")
    keys = Counter(
        (row["key"], row.get("variant", 0)) for row in errors if row["code"] != "duplicate_key" and row["key"]
    )
    must(
        all(times == 1 for times in keys.values()), "a (key, variant) has two errors, and neither is of its repetition"
    )
    repeated = {(row["key"], row.get("variant", 0)) for row in errors if row["code"] == "duplicate_key"}
    must(repeated <= good.keys() | first, "a repetition of a key that never came")
    must(all(row["key"] is None and row.get("variant") is None for row in own), "a shard's fault with a key or variant")
    by_code = Counter(row["code"] for row in errors + own)
    must(by_code == Counter(commit["errors_by_code"]), f"errors_by_code is {commit['errors_by_code']}, not {by_code}")
    must(commit["complete"] == (not own), f"complete is {commit['complete']} with {len(own)} faults")
    for kind in ("results", "errors"):
        order = [row["index"] for row in rows.get(kind, []) if row["index"] is not None]
        must(order == sorted(order), f"{kind} are not in input order")
    if "metrics" in rows or "results" in rows:
        same = [(row["key"], row["variant"], row["index"]) for row in rows.get("metrics", [])]
        must(same == [(row["key"], row["variant"], row["index"]) for row in results], "metrics are of other rows")
    return broken
