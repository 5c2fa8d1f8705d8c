"""``python -m jobs.audit``: what it prints, and how it exits."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from asymvae.storage import filesystem
from asymvae.storage.ledger import Ledger
from asymvae.storage.shards import list_shards
from jobs import audit
from tests.object_store import SECRET_KEY
from tests.storage.rows import FINGERPRINT, commit, error, result


def write_tar(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("a.txt")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"a"))


def run_job(out_url: str, folder: Path) -> list[str]:
    """What a job that did shard a and not b leaves in OUT; the shards' names."""
    for name in ("a", "b"):
        write_tar(folder / "in" / f"{name}.tar")
    urls, root = f"{folder}/in/{{a,b}}.tar", str(folder / "in")
    ledger = Ledger(out_url)
    settings = {"input": {"urls": urls, "format": "auto"}}
    ledger.open_job({"fingerprint": FINGERPRINT, "settings": settings, "input": {"root": root}})
    shards = list_shards(urls, root=root, format="auto")
    commit(ledger, shards[0], folder / "spool", [result(0)], [error(1)])
    return [shard.name for shard in shards]


def finish(out_url: str, folder: Path) -> None:
    shards = list_shards(f"{folder}/in/*.tar", root=f"{folder}/in", format="auto")
    commit(Ledger(out_url), shards[1], folder / "spool", [result(0)])


def test_a_finished_job_exits_with_0_and_its_numbers(
    out_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_job(out_url, tmp_path)
    finish(out_url, tmp_path)
    assert audit.main([out_url, "--deep"]) == 0
    text = capsys.readouterr().out
    assert "all is well" in text
    assert "missing_mask" in text
    assert SECRET_KEY not in text


def test_an_unfinished_job_exits_with_1_and_names_the_shard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_job(str(tmp_path / "out"), tmp_path)
    (tmp_path / "out" / "results" / "stray.parquet").write_bytes(b"x")
    assert audit.main([str(tmp_path / "out")]) == 1
    text = capsys.readouterr().out
    assert "MISSING: 1" in text
    assert "b: no commit" in text
    assert "ORPHANED: 1" in text
    assert "results/stray.parquet" in text


def test_json_holds_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_job(str(tmp_path / "out"), tmp_path)
    assert audit.main([str(tmp_path / "out"), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["missing"] == ["b: no commit"]
    assert (report["ok"], report["results"], report["errors_by_code"]) == (False, 1, {"missing_mask": 1})


def test_an_input_that_is_gone_is_noted_and_the_rest_audited(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_job(str(tmp_path / "out"), tmp_path)
    for path in (tmp_path / "in").iterdir():
        path.unlink()
    assert audit.main([str(tmp_path / "out")]) == 0
    assert "note: the input can't be listed" in capsys.readouterr().out


def test_long_lists_are_cut_in_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_job(str(tmp_path / "out"), tmp_path)
    for number in range(30):
        (tmp_path / "out" / "results" / f"stray-{number:02d}.parquet").write_bytes(b"x")
    audit.main([str(tmp_path / "out")])
    text = capsys.readouterr().out
    assert "stray-19" in text
    assert "stray-20" not in text
    assert "... and 10 more; --json lists them" in text


@pytest.mark.parametrize("content", [None, b"{half", b"{}"], ids=["no job", "damaged", "of something else"])
def test_a_folder_that_is_no_jobs_output_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "_job.json").write_bytes(content)
    assert audit.main([str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "_job.json" in said.err


def litter(out_url: str) -> dict[str, int]:
    """What a crash may leave: path -> bytes."""
    left = {"results/gone.parquet": 5, "errors/gone.parquet": 3}
    for name, size in left.items():
        filesystem.put_if_absent(filesystem.join(out_url, name), bytes(size))
    filesystem.put_if_absent(filesystem.join(out_url, "mine.txt"), b"")
    return left


def test_cleaning_says_what_it_removed_and_the_exit_code_is_of_what_is_left(
    out_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_job(out_url, tmp_path)
    finish(out_url, tmp_path)
    left = litter(out_url)
    assert audit.main([out_url]) == 1

    capsys.readouterr()
    assert audit.main([out_url, "--clean"]) == 1  # younger than a day
    text = capsys.readouterr().out
    assert "REMOVED: 0, 0 bytes" in text
    assert "LEFT, TOO YOUNG: 2" in text
    assert "ORPHANED: 2" in text

    assert audit.main([out_url, "--clean", "--older-than=0h", "--dry-run"]) == 1
    dry = capsys.readouterr().out
    assert "WOULD REMOVE: 2, 8 bytes" in dry
    assert left.keys() < filesystem.list_files(out_url, recursive=True).keys()

    assert audit.main([out_url, "--clean", "--older-than=0h", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["cleaning"]
    assert {each["path"]: each["bytes"] for each in said["removed"]} == left
    assert (said["bytes"], said["dry_run"], said["too_young"], said["not_ours"]) == (8, False, [], ["mine.txt"])
    assert not left.keys() & filesystem.list_files(out_url, recursive=True).keys()

    assert audit.main([out_url, "--clean", "--older-than=30m"]) == 0
    text = capsys.readouterr().out
    assert "NOT OF THIS PROJECT, left: 1\n  mine.txt" in text
    assert "all is well" in text


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--clean", "--older-than=24"], "'24' is no age: write a number and a unit, as 30m, 24h or 7d"),
        (["--clean", "--older-than=-1h"], "'-1h' is no age"),
        (["--clean", "--older-than=1 day"], "'1 day' is no age"),
        (["--older-than=24h"], "go with --clean"),
        (["--dry-run"], "go with --clean"),
    ],
)
def test_wrong_flags_of_cleaning_exit_with_2_and_the_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    run_job(str(tmp_path / "out"), tmp_path)
    litter(str(tmp_path / "out"))
    with pytest.raises(SystemExit) as ended:
        audit.main([str(tmp_path / "out"), *flags])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert (tmp_path / "out" / "results" / "gone.parquet").exists()


@pytest.mark.parametrize(("age", "hours"), [("90m", 1.5), ("2d", 48), ("1.5h", 1.5), ("1w", 168), ("30s", 1 / 120)])
def test_ages_are_read_with_their_unit(tmp_path: Path, age: str, hours: float) -> None:
    run_job(str(tmp_path / "out"), tmp_path)
    litter(str(tmp_path / "out"))
    for name, older in (("results", 1.05), ("errors", 0.95)):
        then = time.time() - hours * 3600 * older
        os.utime(tmp_path / "out" / name / "gone.parquet", (then, then))
    audit.main([str(tmp_path / "out"), "--clean", f"--older-than={age}"])
    assert not (tmp_path / "out" / "results" / "gone.parquet").exists()
    assert (tmp_path / "out" / "errors" / "gone.parquet").exists()


def test_as_a_command_it_teaches_and_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "jobs.audit", *arguments]
        return subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)

    taught = run("--help")
    assert taught.returncode == 0
    for word in ("exit codes", "--deep", "s3://", "planned = results + errors", "--clean", "--older-than"):
        assert word in taught.stdout
    assert run("out", "--depe").returncode == 2
    assert run(os.fspath(tmp_path)).returncode == 2
