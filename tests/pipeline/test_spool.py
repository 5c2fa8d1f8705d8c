"""Spool folders: gone with their run, and what a SIGKILL left is swept, but nobody else's."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from asymvae.pipeline import spool
from asymvae.pipeline.plan import resolve
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


def test_a_relative_folder_is_the_drivers_not_each_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    resolved = resolve(job("unused", "unused", "unused", workers={"spool": "here"}))
    assert resolved.workers.spool == str(tmp_path / "here")
    assert resolve(job("unused", "unused", "unused")).workers.spool is None
