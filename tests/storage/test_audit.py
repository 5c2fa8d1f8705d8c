"""The audit: it follows the commits, and nothing that is wrong passes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from asymvae.storage import filesystem, schemas
from asymvae.storage.audit import audit
from asymvae.storage.ledger import Ledger, commit_id
from asymvae.storage.parts import hash_file
from tests.storage.rows import FINGERPRINT, a_part, a_set, a_shard, commit, error, metric, open_job, result


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A local OUT with one shard of three samples: two results, one error."""
    ledger = open_job(str(tmp_path / "out"))
    commit(ledger, a_shard(), tmp_path / "spool", [result(0), result(1)], [error(2)])
    return tmp_path / "out"


def record_of(out: Path) -> Path:
    return next((out / "_commits").iterdir())


def edit(out: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = record_of(out)
    record = json.loads(path.read_bytes())
    change(record)
    path.write_text(json.dumps(record))


def put_rows(out: Path, kind: str, rows: list[dict[str, Any]]) -> None:
    """Replace a part by one of other rows, its commit saying so in all it can."""
    part = a_part(out / kind / "00000.parquet", getattr(schemas, kind.upper()), rows)
    assert part

    def change(record: dict[str, Any]) -> None:
        named = next(each for each in record["parts"] if each["kind"] == kind)
        named.update(rows=part.rows, size=part.size, sha256=part.sha256)

    edit(out, change)


def test_what_was_committed_is_counted(out_url: str, tmp_path: Path) -> None:
    ledger = open_job(out_url)
    commit(ledger, a_shard("a"), tmp_path / "a", [result(0), result(1)], [error(2)])
    commit(ledger, a_shard("b"), tmp_path / "b", [result(0)], [error(None, "tar_truncated")])
    commit(ledger, a_shard("empty"), tmp_path / "empty", [], [error(None, "shard_empty")])
    looked_at = []
    for deep in (False, True):
        report = audit(
            out_url,
            deep=deep,
            shards=[a_shard(name) for name in ("a", "b", "empty")],
            progress=lambda done, total: looked_at.append((done, total)),
        )
        assert report.ok, report
        assert (report.shards, report.incomplete, report.degraded) == (3, 2, 0)
        assert (report.samples, report.planned, report.results, report.errors) == (4, 4, 3, 1)
        assert report.shard_errors == 2
        assert report.errors_by_code == {"missing_mask": 1, "tar_truncated": 1, "shard_empty": 1}
        assert set(report.bytes_by_kind) == {"results", "metrics", "errors"}
        stored = filesystem.list_files(filesystem.join(out_url, "results")).values()
        assert report.bytes_by_kind["results"] == sum(file.size for file in stored)
    assert looked_at == [(1, 3), (2, 3), (3, 3)] * 2


def test_a_folder_without_a_job_is_not_audited(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        audit(str(tmp_path), deep=False)


def test_a_removed_object_is_missing(out: Path) -> None:
    (out / "metrics" / "00000.parquet").unlink()
    report = audit(str(out), deep=False)
    assert not report.ok
    assert [line.split(":")[0] for line in report.missing] == ["metrics/00000.parquet"]


def test_an_object_put_after_the_listing_is_not_missing(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = filesystem.list_files

    def before_the_part(url: str, **options: Any) -> Any:
        return {name: file for name, file in whole(url, **options).items() if not name.startswith("results/")}

    monkeypatch.setattr(filesystem, "list_files", before_the_part)
    assert audit(str(out), deep=False).ok


def test_shards_without_a_commit_are_missing_and_those_given_up_on_failed(out: Path) -> None:
    Ledger(str(out)).fail(a_shard("poison"), {"reason": "its worker died 3 times"})
    shards = [a_shard(), a_shard("new"), a_shard("poison")]
    report = audit(str(out), deep=False, shards=shards)
    assert report.missing == ["new: no commit"]
    assert report.failed == ["poison: its worker died 3 times (attempts: 1)"]
    changed = audit(str(out), deep=False, shards=[a_shard(version="v2")])
    assert changed.missing == ["00000: the input changed since its commit"]


def test_what_no_commit_names_is_orphaned(out: Path) -> None:
    hidden = f".{'0' * 32}.tmp"
    strays = [
        f"._job.json{hidden}",
        "_failed/00000.json",
        f"_commits/.x.json{hidden}",
        "latents/bucket=64x64/00000.parquet",
        "results/other.parquet",
        f"results/.other.parquet{hidden}",
    ]
    for name in strays:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(b"{}")
    (out / "report.html").write_bytes(b"not ours to judge")
    report = audit(str(out), deep=False)
    assert report.orphaned == sorted(strays)
    assert not report.missing
    assert not report.broken
    assert not report.failed
    assert not report.ok


def test_another_size_is_broken(out: Path) -> None:
    with (out / "results" / "00000.parquet").open("ab") as file:
        file.write(b"x")
    report = audit(str(out), deep=False)
    assert len(report.broken) == 1
    assert report.broken[0].startswith("results/00000.parquet: ")


def test_a_flipped_bit_is_found_by_reading_deep(out_url: str, tmp_path: Path) -> None:
    ledger = open_job(out_url)
    commit(ledger, a_shard(), tmp_path, [result(0, image=b"pixels" * 100)])
    url = filesystem.join(out_url, "results/00000.parquet")
    content = bytearray(filesystem.read_bytes(url))
    content[content.index(b"pixels")] ^= 1
    filesystem.replace(url, bytes(content))
    assert audit(out_url, deep=False).ok
    assert audit(out_url, deep=True).broken == ["results/00000.parquet: its sha256 is not the committed one"]


def test_a_part_that_is_no_parquet_file_is_broken_even_if_its_sha256_agrees(out: Path) -> None:
    path = out / "results" / "00000.parquet"
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)
    edit(out, lambda record: record["parts"][0].update(sha256=hash_file(path)[0]))
    broken = audit(str(out), deep=True).broken
    assert len(broken) == 1
    assert "not a readable Parquet file" in broken[0]


@pytest.mark.parametrize(
    "content", [b"", b"{half", b"[]", b"{}", b'{"parts": []}', b'{"counts": {}, "parts": [1]}', b"\xff\xfe"]
)
def test_a_record_that_is_none_is_broken(out: Path, content: bytes) -> None:
    record_of(out).write_bytes(content)
    report = audit(str(out), deep=True)
    assert len(report.broken) == 1
    assert "is no commit record" in report.broken[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda record: record["counts"].update(planned=4), "planned 4 != results 2 + errors 1"),
        (lambda record: record["counts"].update(errors=2, planned=4), "errors part"),
        (lambda record: record.update(fingerprint="0"), "of another job"),
        (lambda record: record.update(shard="00001"), "says it is of 00001"),
    ],
)
def test_a_record_that_contradicts_itself_is_broken(out: Path, change: Any, said: str) -> None:
    edit(out, change)
    broken = audit(str(out), deep=False).broken
    assert len(broken) == 1
    assert said in broken[0]


def test_two_commits_of_one_shard_are_broken(out: Path) -> None:
    other = json.loads(record_of(out).read_bytes()) | {"id": "0" * 16}
    (out / "_commits" / f"00000.{'0' * 16}.json").write_text(json.dumps(other))
    broken = audit(str(out), deep=False).broken
    assert len(broken) == 1
    assert broken[0].startswith("00000: 2 commits")


@pytest.mark.parametrize(
    ("kind", "rows", "said"),
    [
        ("results", [result(0), result(0, key="other")], "(index, variant) (0, 0)"),
        ("results", [result(0), result(2)], "(index, variant) (2, 0)"),
        ("results", [result(0), result(7)], "samples without each of their 1 rows, or unknown: [1, 7]"),
        ("results", [result(0), result(1, key="key-0")], "(key, variant) more than once: ('key-0', 0)"),
        ("results", [result(0), result(1, key="key-2")], "(key, variant) more than once: ('key-2', 0)"),
        ("metrics", [metric(result(0)), metric(result(5))], "metrics and results are not of the same rows"),
        ("errors", [error(None)], "0 error rows with an index, 1 are counted"),
        ("errors", [error(2, "missing_image")], "errors_by_code is not what the error rows say"),
    ],
)
def test_rows_that_break_the_law_are_found_by_reading_deep(
    out: Path, kind: str, rows: list[dict[str, Any]], said: str
) -> None:
    put_rows(out, kind, rows)
    assert audit(str(out), deep=False).ok
    broken = audit(str(out), deep=True).broken
    assert any(said in line for line in broken), broken


def test_a_later_sample_of_the_same_key_is_an_error_beside_the_first_ones_result(tmp_path: Path) -> None:
    ledger = open_job(str(tmp_path / "out"))
    again = error(1, "duplicate_key") | {"key": "key-0"}
    commit(ledger, a_shard(), tmp_path / "spool", [result(0)], [again])
    assert audit(ledger.url, deep=True).ok


def test_variants_are_counted_each(tmp_path: Path) -> None:
    ledger = open_job(str(tmp_path / "out"))
    rows = [result(0), result(0) | {"variant": 1}]
    parts, counts, by_code = a_set(tmp_path / "spool", rows, [error(1), error(1) | {"variant": 1}])
    counts["samples"] = 2
    shard = a_shard()
    ledger.commit(shard, commit_id(FINGERPRINT, shard), parts, counts, {}, errors_by_code=by_code)
    report = audit(ledger.url, deep=True)
    assert report.ok, report
    assert (report.samples, report.planned) == (2, 4)


def test_a_part_of_another_kind_is_broken(out: Path) -> None:
    path = out / "metrics" / "00000.parquet"
    table = pq.read_table(path).drop_columns(["seam"])
    pq.write_table(table, path)
    digest, size = hash_file(path)
    edit(out, lambda record: record["parts"][1].update(sha256=digest, size=size))
    assert audit(str(out), deep=True).broken == ["metrics/00000.parquet: its columns are not those of its kind"]


@pytest.mark.parametrize(("code", "gap_is_well"), [("parquet_corrupt", True), ("tar_truncated", False)])
def test_rows_behind_a_lost_row_group_keep_their_numbers(tmp_path: Path, code: str, gap_is_well: bool) -> None:
    ledger = open_job(str(tmp_path / "out"))
    commit(ledger, a_shard(), tmp_path / "spool", [result(0), result(20)], [error(21), error(None, code)])
    report = audit(ledger.url, deep=True)
    assert report.ok == gap_is_well, report.broken
    assert (report.samples, report.incomplete) == (3, 1)
