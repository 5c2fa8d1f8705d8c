"""Spool folders: gone with their run, and what a SIGKILL left is swept, but nobody else's."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from asymvae.pipeline import spool
from asymvae.pipeline.executor import LocalExecutor
from asymvae.pipeline.job import JobStoppedError, run_job
from asymvae.pipeline.plan import resolve
from asymvae.storage import ledger
from tests.tiny import job


def gone() -> int:
    """The id of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        return process.pid


def test_a_folder_is_gone_after_its_run_and_no_other_is_taken_for_it(tmp_path: Path) -> None:
    with spool.spool_folder(str(tmp_path), 0) as folder:
        spool.sweep_spools(str(tmp_path))
        assert folder.is_dir()
    assert not folder.exists()


def test_the_folder_of_a_dead_process_is_swept(tmp_path: Path) -> None:
    folder = tmp_path / f"{spool._PREFIX}{gone()}-abcd_123"
    folder.mkdir()
    spool.sweep_spools(str(tmp_path))
    assert not folder.exists()


def test_a_host_whose_name_begins_alike_keeps_its_folders(tmp_path: Path) -> None:
    # Of host "<ours>-<number>" the number was taken for the id of a dead process, and its work removed under it.
    folder = tmp_path / f"{spool._PREFIX}{gone()}-{os.getpid()}-abcd_123"
    folder.mkdir()
    spool.sweep_spools(str(tmp_path))
    assert folder.exists()


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"workers\.spool to a larger disk"),
        spool.spool_folder(str(tmp_path), 2**60),
    ):
        raise AssertionError("not to be reached")
    assert not list(tmp_path.iterdir())


def test_a_shard_waits_for_space_that_its_neighbour_was_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each saw the same free space, and both began: the disk was full in the middle of both.
    monkeypatch.setattr(spool, "_LOOK_AGAIN_S", 0.01)
    monkeypatch.setattr(spool, "_LEAST_FREE", 0)
    free = 10_000_000
    monkeypatch.setattr(spool.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    waited: list[int] = []
    neighbour = ExitStack()
    mine = neighbour.enter_context(spool.spool_folder(str(tmp_path), 6_000_000))
    # What it writes is in its promise: the second shard finds as much room as before.
    (mine / "results.parquet").write_bytes(bytes(4_000_000))
    free -= 4_000_000

    def waiting() -> None:
        nonlocal free
        waited.append(len(waited))
        if len(waited) == 3:
            neighbour.close()
            free += 4_000_000

    with spool.spool_folder(str(tmp_path), 4_500_000, waiting) as folder:
        assert folder.is_dir()
    assert waited == [0, 1, 2]
    with spool.spool_folder(str(tmp_path), 6_000_000), spool.spool_folder(str(tmp_path), 3_500_000, pytest.fail):
        pass


def test_no_space_is_waited_for_that_the_others_do_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool.shutil, "disk_usage", lambda _: SimpleNamespace(free=2**27))
    with (
        spool.spool_folder(str(tmp_path), 1000),
        pytest.raises(OSError, match=r"has 128 MiB free and this shard may need 192"),
        spool.spool_folder(str(tmp_path), 2**27, pytest.fail),
    ):
        raise AssertionError("not to be reached")


def test_what_was_promised_to_the_dead_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = tmp_path / f"{spool._PREFIX}{gone()}-abcd_123"
    left.mkdir()
    (left / spool._NOTE).write_text(str(2**60))
    with spool.spool_folder(str(tmp_path), 0, pytest.fail) as folder:
        assert folder.is_dir()


def test_a_full_disk_is_named_with_its_remedy(
    shards: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    settings = job(
        shards, tmp_path / "out", checkpoint, workers={"spool": str(tmp_path / "spool")}, ray={"attempts": 0}
    )
    monkeypatch.setattr(spool.PartWriter, "write", lambda *_: (_ for _ in ()).throw(full))
    result = run_job(settings, LocalExecutor())
    assert result.exit_code == 1
    said = rf"no space is left in the spool folder {tmp_path}/spool: .*set workers\.spool .*the same command goes on"
    assert all(re.search(said, reason) for reason in result.failed.values())
    monkeypatch.undo()
    put = ledger.filesystem.put_if_absent

    def put_where_there_is_room(url: str, source: bytes | Path) -> bool:
        if "/results/" in url:
            raise full
        return put(url, source)

    monkeypatch.setattr(ledger.filesystem, "put_if_absent", put_where_there_is_room)
    monkeypatch.setattr(ledger.filesystem, "replace", lambda *_: (_ for _ in ()).throw(full))
    result = run_job(settings, LocalExecutor())
    assert result.exit_code == 1
    said = rf"no space is left in output\.url {tmp_path}/out: free some.*the same command goes on"
    assert [re.search(said, reason) is not None for reason in result.failed.values()] == [True] * 4
    other = job(shards, tmp_path / "other", checkpoint)
    monkeypatch.setattr(ledger.filesystem, "put_if_absent", lambda *_: (_ for _ in ()).throw(full))
    with pytest.raises(JobStoppedError, match=r"no space is left in output\.url .*other: free some"):
        run_job(other, LocalExecutor())
    monkeypatch.undo()
    assert run_job(settings, LocalExecutor()).exit_code == 0
    assert not list((tmp_path / "spool").iterdir())
    assert "Traceback" not in capfd.readouterr().err


def test_a_relative_folder_is_the_drivers_not_each_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    resolved = resolve(job("unused", "unused", "unused", workers={"spool": "here"}))
    assert resolved.workers.spool == str(tmp_path / "here")
    assert resolve(job("unused", "unused", "unused")).workers.spool is None
