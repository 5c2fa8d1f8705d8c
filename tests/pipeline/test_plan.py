"""What a driver means to do, and what of it others must know."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from asymvae.pipeline.executor import LocalExecutor
from asymvae.pipeline.job import run_job
from asymvae.pipeline.plan import ConfigurationError, make_plan
from asymvae.storage.ledger import REPLANNED, Ledger
from tests.tiny import job, sample, write_tar


class Folder:
    """An input and its output."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        self.folder, self.checkpoint, self.out = folder, checkpoint, folder / "out"

    def fill(self, name: str, samples: int) -> None:
        write_tar(self.folder / "in" / name, [(f"k{number}", sample(number, (64, 64))) for number in range(samples)])

    def run(self) -> list[str]:
        """The shards of all commits."""
        result = run_job(job(str(self.folder / "in" / "*.tar"), self.out, self.checkpoint), LocalExecutor())
        assert result.exit_code == 0, result
        return sorted(name.partition(".")[0] for name in Ledger(str(self.out)).committed_names())


@pytest.fixture
def folder(tmp_path: Path, checkpoint: Path) -> Folder:
    return Folder(tmp_path, checkpoint)


def test_a_driver_that_means_other_shards_leaves_a_mark_and_one_commit_a_shard(folder: Folder) -> None:
    folder.fill("a.tar", 1)
    assert folder.run() == ["a"]
    next((folder.out / "_commits").iterdir()).unlink()
    assert folder.run() == ["a"]
    assert not (folder.out / REPLANNED).exists(), "the same plan"
    folder.fill("a.tar", 2)
    assert folder.run() == ["a"]
    assert (folder.out / REPLANNED).exists()


def test_commits_whose_job_record_was_removed_may_be_of_any_plan(folder: Folder) -> None:
    folder.fill("a.tar", 1)
    folder.run()
    (folder.out / "_job.json").unlink()
    folder.fill("a.tar", 2)
    assert folder.run() == ["a"]
    assert Ledger(str(folder.out)).read_job()["plan"] is None


def test_an_input_that_is_wrong_is_said_before_all_commits_are_listed(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ledger, "committed_names", lambda _: map(str, itertools.count()))
    with pytest.raises(ConfigurationError, match="matches no file"):
        make_plan(job(str(folder.folder / "in" / "*.tar"), folder.out, folder.checkpoint))


def test_commits_that_can_not_be_listed_are_a_wrong_output(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: Ledger) -> Iterator[str]:
        raise PermissionError("not allowed to list")

    folder.fill("a.tar", 1)
    monkeypatch.setattr(Ledger, "committed_names", refused)
    with pytest.raises(ConfigurationError, match=r"output\.url .*not allowed to list"):
        make_plan(job(str(folder.folder / "in" / "*.tar"), folder.out, folder.checkpoint))
