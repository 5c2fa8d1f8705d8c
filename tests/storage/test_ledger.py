"""Commits: exactly once, with several drivers, crashes at every step, and changed inputs."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asymvae.storage import filesystem
from asymvae.storage.audit import audit
from asymvae.storage.job_records import compare_jobs
from asymvae.storage.ledger import Ledger, commit_id, commit_names, shard_of
from asymvae.storage.shard_table import ShardTable
from tests.object_store import SECRET_KEY
from tests.storage.rows import FINGERPRINT, a_set, a_shard, commit, error, files, open_job, result

ROWS = [result(0), result(1)]
OTHER_BYTES = [result(0), result(1, image=b"other threads, other bytes")]
COMMIT = f"_commits/00000.{commit_id(FINGERPRINT, a_shard())}.json"


class Crash(BaseException):
    """As SIGKILL: no `except Exception` sees it."""


def assert_clean(out_url: str) -> None:
    report = audit(out_url, deep=True, shards=[a_shard()])
    assert report.ok, report


def rerun(ledger: Ledger, folder: Path, rows: list[dict[str, Any]], shard: Any = None) -> dict[str, Any]:
    """What the next run of a job does for one shard, and at its end."""
    shard = shard or a_shard()
    name = f"{shard.name}.{commit_id(FINGERPRINT, shard)}"
    done = name in ledger.committed()
    record = ledger.read_commit(name) if done else commit(ledger, shard, folder, rows)
    ledger.sweep(audit(ledger.url, deep=False).orphaned)
    return record


def test_a_commit_names_exact_objects_and_their_content(out_url: str, tmp_path: Path) -> None:
    ledger = open_job(out_url)
    shard = a_shard()
    ledger.fail(shard, {"reason": "its worker died"})
    record = commit(ledger, shard, tmp_path, ROWS, [error(2), error(None, "tar_truncated")])
    assert files(out_url) == [
        COMMIT,
        "_job.json",
        "errors/00000.parquet",
        "metrics/00000.parquet",
        "results/00000.parquet",
    ]
    assert [part["object"] for part in record["parts"]] == [
        "results/00000.parquet",
        "metrics/00000.parquet",
        "errors/00000.parquet",
    ]
    for part in record["parts"]:
        url = filesystem.join(out_url, part["object"])
        assert filesystem.info(url).size == part["size"]
        assert filesystem.hash_stream(url) == part["sha256"]
    assert record["input"] == {"url": "s3://in/00000.tar", "size": 1000, "version": "v1"}
    assert record["counts"] == {"samples": 3, "planned": 3, "results": 2, "errors": 1, "shard_errors": 1}
    assert record["errors_by_code"] == {"missing_mask": 1, "tar_truncated": 1}
    assert record["complete"] is False
    assert list(ledger.committed()) == [f"00000.{record['id']}"]
    assert ledger.failed() == {}
    assert_clean(out_url)


def test_records_are_sorted_json_without_secrets(out_url: str, tmp_path: Path) -> None:
    ledger = open_job(out_url)
    url = "https://me:secret@host/a?X-Amz-Signature=secret"
    ledger.fail(a_shard("bad"), {"reason": f"GET {url} timed out"})
    parts, counts, _ = a_set(tmp_path, ROWS)
    ledger.commit(a_shard(), commit_id(FINGERPRINT, a_shard()), parts, counts, {"from": [url]})
    for name in (COMMIT, "_failed/bad.json", "_job.json"):
        text = filesystem.read_bytes(filesystem.join(out_url, name)).decode()
        assert "secret" not in text
        assert SECRET_KEY not in text
        assert text == json.dumps(json.loads(text), sort_keys=True, indent=1) + "\n"
    assert "https://host/a timed out" in ledger.failed()["bad"]["reason"]


def test_failing_again_counts_the_attempts(tmp_path: Path) -> None:
    ledger = open_job(str(tmp_path))
    for _ in range(2):
        ledger.fail(a_shard(), {"reason": "its worker died"})
    assert ledger.failed()["00000"]["attempts"] == 2


def test_counts_that_do_not_add_up_are_never_committed(tmp_path: Path) -> None:
    ledger = open_job(str(tmp_path / "out"))
    parts, counts, _ = a_set(tmp_path, ROWS, [error(2)])
    wrong = [
        (parts, {**counts, "planned": 4}),
        (parts[:2], counts),
        (parts[1:], counts),
        ([parts[0], parts[2]], counts),
        ([], counts),
    ]
    for these, say in wrong:
        with pytest.raises(ValueError, match="not committed"):
            ledger.commit(a_shard(), "0" * 16, these, say, {})
    assert files(ledger.url) == ["_job.json"]


def test_the_first_job_stays_and_differences_are_named(out_url: str) -> None:
    def job(fingerprint: str, batch_size: int) -> dict[str, Any]:
        return {
            "fingerprint": fingerprint,
            "affects_output": {"workers": {"batch_size": batch_size}, "seed": 0},
            "model": {"weights_sha256": "w"},
            "created": batch_size,
        }

    ledger = Ledger(out_url)
    with pytest.raises(FileNotFoundError):
        ledger.read_job()
    assert ledger.open_job(job("a", 8)) == job("a", 8)
    earlier = ledger.open_job(job("b", 4))
    assert earlier == job("a", 8)
    assert compare_jobs(earlier, job("b", 4)) == ["workers.batch_size: was 8, is 4"]
    assert compare_jobs(earlier, job("a", 8)) == []
    assert compare_jobs(earlier, job("c", 8)) == ["fingerprint: was a, is c"]


@pytest.mark.parametrize("second", [ROWS, OTHER_BYTES], ids=["same bytes", "other bytes"])
def test_two_drivers_at_once_end_with_one_consistent_set(
    out_url: str, tmp_path: Path, second: list[dict[str, Any]]
) -> None:
    for round_number in range(3):
        url = filesystem.join(out_url, str(round_number))
        open_job(url)
        barrier, records = threading.Barrier(2), {}

        def drive(
            name: str, rows: list[dict[str, Any]], url: str = url, gate: Any = barrier, to: Any = records
        ) -> None:
            gate.wait()
            to[name] = commit(Ledger(url), a_shard(), tmp_path / url[-1] / name, rows, worker=name)

        threads = [threading.Thread(target=drive, args=pair) for pair in (("one", ROWS), ("other", second))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert records["one"] == records["other"]
        assert len(Ledger(url).committed()) == 1
        assert_clean(url)


@contextlib.contextmanager
def watched(before: Callable[[], None]) -> Iterator[None]:
    """``before()`` is called before each thing that a ledger asks of the file system."""

    def wrap(work: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **options: Any) -> Any:
            before()
            return work(*args, **options)

        return step

    with pytest.MonkeyPatch.context() as patch:
        for name in ("put_if_absent", "remove", "replace", "read_bytes", "list_files", "info", "hash_stream"):
            patch.setattr(filesystem, name, wrap(getattr(filesystem, name)))
        yield


@pytest.mark.parametrize("rows", [ROWS, OTHER_BYTES], ids=["same bytes", "other bytes"])
def test_a_crash_at_any_step_is_made_good_by_the_next_run(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    """A commit of a changed input, cut off before each thing it asks of the file system, in turn."""
    changed = a_shard(version="v2")

    def crashed_at(step: int) -> bool:
        folder = tmp_path / str(step)
        ledger = open_job(str(folder / "out"))
        commit(ledger, a_shard(), folder / "first", [result(0, image=b"of the old input")])
        steps = itertools.count()

        def cut() -> None:
            if next(steps) == step:
                raise Crash

        crashed = False
        with watched(cut):
            try:
                commit(ledger, changed, folder / "crashed", rows)
            except Crash:
                crashed = True
        record = rerun(ledger, folder / "again", ROWS, changed)
        report = audit(ledger.url, deep=True, shards=[changed])
        assert report.ok, (step, report)
        named = {part["object"] for part in record["parts"]}
        assert set(files(ledger.url)) == named | {"_job.json", f"_commits/00000.{record['id']}.json"}
        return crashed

    steps = next(step for step in itertools.count() if not crashed_at(step))
    assert steps > 12


def test_three_drivers_in_any_order_one_of_them_killed_leave_one_consistent_set(tmp_path: Path) -> None:
    """A changed input, redone by three drivers at once, one of them with other bytes, at random paces."""
    changed = a_shard(version="v2")
    for seed in range(25):
        folder = tmp_path / str(seed)
        url = str(folder / "out")
        commit(open_job(url), a_shard(), folder / "first", [result(0, image=b"of the old input")])
        pace, doomed, own = random.Random(seed), seed % 4, threading.local()
        death = pace.randrange(20)

        def step(pace: random.Random = pace, doomed: int = doomed, own: Any = own, death: int = death) -> None:
            own.steps = getattr(own, "steps", -1) + 1
            if own.number == doomed and own.steps == death:
                raise Crash
            time.sleep(pace.random() * 0.002)

        def drive(number: int, to: Any, url: str = url, folder: Path = folder, own: Any = own) -> None:
            own.number = number
            with contextlib.suppress(Crash):
                rows = OTHER_BYTES if number == 1 else ROWS
                to.append(commit(Ledger(url), changed, folder / str(number), rows, worker=str(number)))

        records: list[dict[str, Any]] = []
        with watched(step):
            threads = [threading.Thread(target=drive, args=(number, records)) for number in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(records) >= 2
        assert all(record == records[0] for record in records)
        rerun(Ledger(url), folder / "again", ROWS, changed)
        report = audit(url, deep=True, shards=[changed])
        assert report.ok, (seed, report)


def test_a_crash_between_parts_and_commit_lets_the_next_run_adopt_the_parts(out_url: str, tmp_path: Path) -> None:
    ledger = open_job(out_url)
    parts, _, _ = a_set(tmp_path / "crashed", ROWS)
    for part in parts:
        filesystem.put_if_absent(filesystem.join(out_url, part.kind, "00000.parquet"), part.path)
    before = filesystem.list_files(out_url, recursive=True)
    record = rerun(ledger, tmp_path / "again", ROWS)
    assert {part["object"] for part in record["parts"]} == {"results/00000.parquet", "metrics/00000.parquet"}
    after = filesystem.list_files(out_url, recursive=True)
    assert {name: after[name] for name in before} == before
    assert_clean(out_url)


def test_parts_of_a_crashed_run_with_other_bytes_are_replaced_as_a_set(out_url: str, tmp_path: Path) -> None:
    ledger = open_job(out_url)
    parts, _, _ = a_set(tmp_path / "crashed", OTHER_BYTES, [error(2)])
    for part in parts:
        filesystem.put_if_absent(filesystem.join(out_url, part.kind, "00000.parquet"), part.path)
    record = rerun(ledger, tmp_path / "again", ROWS)
    objects = [part["object"] for part in record["parts"]]
    assert all("~r" in name for name in objects), "metrics are equal, and yet of the other set"
    assert len(files(out_url)) == 2 + len(objects)
    assert_clean(out_url)


def test_a_changed_input_replaces_its_commit_and_parts(out_url: str, tmp_path: Path) -> None:
    ledger = open_job(out_url)
    commit(ledger, a_shard(), tmp_path / "old", ROWS)
    commit(ledger, a_shard("00000.tail"), tmp_path / "neighbour", ROWS)
    changed = a_shard(version="v2")
    record = commit(ledger, changed, tmp_path / "new", OTHER_BYTES)
    assert sorted(ledger.committed()) == sorted(
        [f"00000.{record['id']}", f"00000.tail.{commit_id(FINGERPRINT, a_shard('00000.tail'))}"]
    )
    report = audit(out_url, deep=True, shards=[changed, a_shard("00000.tail")])
    assert report.ok, report


def planned(out_url: str, plan: str | None) -> Ledger:
    """A driver's ledger, its job opened."""
    ledger = Ledger(out_url)
    ledger.open_job({"format_version": 1, "fingerprint": FINGERPRINT, "plan": plan})
    return ledger


def test_in_a_local_folder_of_one_plan_a_commit_reads_no_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path / "out")
    ledgers = [planned(url, "p1"), planned(url, "p1")]
    with monkeypatch.context() as patch:
        patch.setattr(filesystem, "iter_files", lambda *_, **__: pytest.fail("a folder was read"))
        records = [commit(ledger, a_shard(), tmp_path / str(n), ROWS) for n, ledger in enumerate(ledgers)]
    assert records[0] == records[1]
    assert "_replanned.json" not in files(url)
    assert_clean(url)


@pytest.mark.parametrize("plans", [("p1", "p2"), ("p1", None), (None, "p2"), (None, None)])
def test_whichever_driver_is_last_of_two_with_other_plans_replaces_the_others_commit(
    out_url: str, tmp_path: Path, plans: tuple[str | None, str | None]
) -> None:
    changed = a_shard(version="v2")
    first = planned(out_url, plans[0])
    commit(first, a_shard(), tmp_path / "1", ROWS)
    second = planned(out_url, plans[1])
    commit(second, changed, tmp_path / "2", OTHER_BYTES)
    assert list(first.committed()) == [f"00000.{commit_id(FINGERPRINT, changed)}"]
    assert audit(out_url, deep=True, shards=[changed]).ok
    commit(first, a_shard(), tmp_path / "3", ROWS)  # still at work, on what its plan says
    assert list(first.committed()) == [f"00000.{commit_id(FINGERPRINT, a_shard())}"]
    assert_clean(out_url)


def test_a_job_that_is_refused_leaves_no_mark(tmp_path: Path) -> None:
    ledger = planned(str(tmp_path), "p1")
    ledger.open_job({"format_version": 1, "fingerprint": "of another job", "plan": "p2"})
    assert files(ledger.url) == ["_job.json"]


def test_a_redo_whose_bytes_are_the_same_keeps_the_parts(tmp_path: Path) -> None:
    ledger = open_job(str(tmp_path / "out"))
    commit(ledger, a_shard(), tmp_path / "old", ROWS)
    record = commit(ledger, a_shard(version="touched"), tmp_path / "new", ROWS)
    assert [part["object"] for part in record["parts"]] == ["results/00000.parquet", "metrics/00000.parquet"]
    assert len(files(ledger.url)) == 4


def test_a_withdrawn_commit_can_be_done_again_with_other_rows(tmp_path: Path) -> None:
    ledger = open_job(str(tmp_path / "out"))
    record = commit(ledger, a_shard(), tmp_path / "with errors", [result(0)], [error(1)])
    ledger.withdraw(f"00000.{record['id']}")
    rerun(ledger, tmp_path / "retried", ROWS)
    assert_clean(ledger.url)


def test_sweeping_spares_what_may_be_another_drivers_work(out_url: str, tmp_path: Path) -> None:
    ledger = open_job(out_url)
    commit(ledger, a_shard("a"), tmp_path, ROWS)
    hidden = f".{'0' * 32}.tmp"
    left_by_crashes = [
        "errors/a.parquet",
        "results/a~r01234567.parquet",
        f"metrics/.a.parquet{hidden}",
        f"._job.json{hidden}",
        "_failed/a.json",
    ]
    others = ["results/b.parquet", "results/a.01234567.parquet", f"results/.b.parquet{hidden}"]
    for name in left_by_crashes + others:
        filesystem.put_if_absent(filesystem.join(out_url, name), b"{}")
    orphans = audit(out_url, deep=False).orphaned
    assert sorted(orphans) == sorted(left_by_crashes + others)
    assert sorted(ledger.sweep(orphans)) == sorted(left_by_crashes)
    assert sorted(audit(out_url, deep=False).orphaned) == sorted(others)


def test_sweeping_aborts_unfinished_uploads_of_committed_shards_alone(s3_url: str, tmp_path: Path) -> None:
    ledger = open_job(s3_url)
    commit(ledger, a_shard("a"), tmp_path, ROWS)
    fs, path = filesystem.resolve(s3_url)
    bucket, _, folder = path.partition("/")
    for name in ("results/a.parquet", "results/a~r01234567.parquet", "results/b.parquet"):
        fs.call_s3("create_multipart_upload", Bucket=bucket, Key=f"{folder}/{name}")
    assert sorted(ledger.sweep([])) == ["results/a.parquet", "results/a~r01234567.parquet"]
    left = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=f"{folder}/")["Uploads"]
    assert [upload["Key"] for upload in left] == [f"{folder}/results/b.parquet"]


def test_who_may_not_look_for_unfinished_uploads_is_told_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = open_job(str(tmp_path / "out"))
    commit(ledger, a_shard("a"), tmp_path, ROWS)
    filesystem.put_if_absent(f"{ledger.url}/errors/a.parquet", b"")

    def denied(*_: object) -> list[str]:
        raise PermissionError("Access Denied")

    monkeypatch.setattr("asymvae.storage.ledger.abort_uploads", denied)
    assert ledger.sweep(["errors/a.parquet"]) == ["errors/a.parquet"]
    assert "s3:ListBucketMultipartUploads" in caplog.text


def test_sweeping_keeps_everything_of_a_shard_whose_record_cannot_be_read(tmp_path: Path) -> None:
    ledger = open_job(str(tmp_path / "out"))
    record = commit(ledger, a_shard(), tmp_path, ROWS)
    (tmp_path / "out" / COMMIT).write_bytes(b"{half")
    assert ledger.sweep([part["object"] for part in record["parts"]]) == []
    with pytest.raises(ValueError, match="is no commit record: remove it"):
        ledger.read_commit(f"00000.{record['id']}")


def test_the_id_changes_with_the_settings_and_with_the_input() -> None:
    ids = {commit_id(mark, a_shard(version=version)) for mark in ("f1", "f2") for version in ("v1", "v2")}
    assert len(ids) == 4
    assert commit_id("f1", a_shard()) == commit_id("f1", a_shard("another"))
    assert all(len(each) == 16 for each in ids)
    shards = [a_shard("b", version="v1"), a_shard("a", version="v2")]
    assert [*commit_names("f1", ShardTable(shards))] == [f"{each.name}.{commit_id('f1', each)}" for each in shards]


@pytest.mark.parametrize(
    ("name", "shard"),
    [
        ("results/a.parquet", "a"),
        ("results/a.b.parquet", "a.b"),
        ("latents/bucket=64x64/a.parquet", "a"),
        ("results/a~r01234567.parquet", "a"),
        ("results/a.01234567.parquet", "a.01234567"),
        (f"results/.a.parquet.{'0' * 32}.tmp", "a"),
        ("_commits/a.b.0123456789abcdef.json", "a.b"),
        (f"_commits/.a.0123456789abcdef.json.{'0' * 32}.tmp", "a"),
        ("_failed/a.json", "a"),
        ("_job.json", None),
        ("report.html", None),
        (
            "results/a~2Fb~h0123456789abcdef0123456789abcdef~r01234567.parquet",
            "a~2Fb~h0123456789abcdef0123456789abcdef",
        ),
        ("backup/results/a.parquet", None),
        ("results/my copy.parquet", None),
        ("results/.hidden.parquet", None),
        ("latents/a.parquet", None),
    ],
)
def test_every_object_belongs_to_one_shard(name: str, shard: str | None) -> None:
    assert shard_of(name) == shard
