"""The law's own check sees what breaks it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.corpus.law import commits_of, law_broken
from tests.storage.rows import a_shard, commit, error, open_job, result

Rows = list[dict[str, Any]]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Three results, two errors, one fault of the shard."""
    ledger = open_job(str(tmp_path / "out"))
    results = [result(index) for index in (0, 1, 3)]
    commit(ledger, a_shard(), tmp_path / "spool", results, [error(2), error(4), error(None, "tar_truncated")])
    return tmp_path / "out"


def tampered(out: Path, kind: str, change: Callable[[Rows], Rows]) -> None:
    """Another part under the same name, which the commit agrees with: only the rows are not what they were."""
    (path,) = (out / "_commits").iterdir()
    record = json.loads(path.read_text())
    part = next(part for part in record["parts"] if part["kind"] == kind)
    file = out / part["object"]
    table = pq.read_table(file)
    pq.write_table(pa.Table.from_pylist(change(table.to_pylist()), table.schema), file)
    part["rows"] = pq.read_metadata(file).num_rows
    part["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    path.write_text(json.dumps(record))


def counted(out: Path, **counts: int) -> None:
    (path,) = (out / "_commits").iterdir()
    record = json.loads(path.read_text())
    record["counts"] |= counts
    path.write_text(json.dumps(record))


def test_it_holds_where_all_is_well(out: Path) -> None:
    (record,) = commits_of(str(out))
    assert law_broken(str(out)) == []
    assert law_broken(str(out), {record["shard"]: 5}) == []


def test_samples_that_were_put_in_and_did_not_come_out(out: Path) -> None:
    assert law_broken(str(out), {"00000": 6}) == ["00000: 6 samples were put in, 5 counted"]
    assert law_broken(str(out), {"00001": 1}) == ["00001: no commit"]


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("results", lambda rows: rows[1:], "2 results, 3 counted"),
        ("results", lambda rows: [*rows, rows[0]], "a (sample, variant) comes more than once"),
        ("results", lambda rows: [rows[0], {**rows[1], "key": rows[0]["key"]}, rows[2]], "two results"),
        ("results", lambda rows: [{**rows[0], "key": "key-2"}, *rows[1:]], "a result and an error"),
        ("results", lambda rows: [rows[1], rows[0], rows[2]], "not in input order"),
        ("results", lambda rows: [*rows[:2], {**rows[2], "index": 9}], "the numbers have gaps"),
        ("results", lambda rows: [*rows[:2], {**rows[2], "variant": 1}], "variants [0, 1] of 5 samples"),
        ("metrics", lambda rows: [rows[1], rows[0], rows[2]], "metrics are of other rows"),
        ("errors", lambda rows: rows[:-1], "0 faults of the shard, 1 counted"),
        ("errors", lambda rows: [{**rows[0], "code": "image_empty"}, *rows[1:]], "errors_by_code"),
        ("errors", lambda rows: [{**rows[0], "code": "duplicate_key"}, *rows[1:]], "a repetition of a key"),
        ("errors", lambda rows: [rows[0], {**rows[1], "key": "key-2"}, *rows[2:]], "two errors"),
    ],
)
def test_rows_that_break_it_are_told(out: Path, kind: str, change: Callable[[Rows], Rows], said: str) -> None:
    tampered(out, kind, change)
    assert any(said in line for line in law_broken(str(out))), law_broken(str(out))


def test_counts_and_bytes_that_break_it_are_told(out: Path) -> None:
    counted(out, planned=6, samples=6)
    assert {"00000: 6 planned rows", "00000: 5 samples among the rows, 6 counted"} <= set(law_broken(str(out)))
    (path,) = (out / "results").iterdir()
    path.write_bytes(path.read_bytes() + b"!")
    (line,) = law_broken(str(out))
    assert "is another file" in line
