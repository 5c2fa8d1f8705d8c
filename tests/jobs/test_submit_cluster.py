"""``python -m jobs.submit`` with real jobs, on a real cluster of two nodes that wants a token."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from asymvae.pipeline.executor import LocalExecutor
from asymvae.pipeline.job import run_job
from jobs import shipment
from tests.jobs.conftest import Submit
from tests.tiny import job, parts_of, write_shards

TOKEN = "0123456789abcdef" * 2
# An inpainter that waits at its first batch, having said on which node; a user's own code, which is sent along.
HELD = """
import os, time
from pathlib import Path

import ray

from asymvae.inpaint.harmonic import HarmonicFill

class Held(HarmonicFill):
    def __init__(self, folder):
        super().__init__()
        self.folder = Path(folder)

    def fill(self, batch, vae):
        node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else "local"
        (self.folder / f"at-work.{node}.{os.getpid()}").touch()
        for _ in range(2400):
            if (self.folder / "go").exists():
                return super().fill(batch, vae)
            time.sleep(0.05)
        raise RuntimeError("nobody said go")
"""


@dataclass
class TwoNodes:
    """A cluster in another process, see :mod:`tests.jobs.two_nodes`."""

    process: subprocess.Popen[str]
    address: str
    second: str  # the second node's id

    def tell(self, word: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(word, file=self.process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[TwoNodes]:
    # Short, for sockets lie below; its own, so that no other Ray on this machine is told of this one.
    folder = tempfile.mkdtemp(prefix="two-nodes-", dir="/tmp")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "ASYMVAE_"))}
    environment |= {
        "RAY_TMPDIR": folder,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # the jobs' `python`
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.jobs.two_nodes"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdin is not None
    yield TwoNodes(process, **json.loads(process.stdout.readline()))
    process.stdin.close()
    process.wait(60)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code, which nobody edits while jobs are sent and sent again."""
    folder = tmp_path_factory.mktemp("code")
    for package in ("asymvae", "jobs"):
        shutil.copytree(shipment._CODE / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture
def cluster(two_nodes: TwoNodes, code: Path, monkeypatch: pytest.MonkeyPatch) -> TwoNodes:
    """The cluster, as where ``jobs.submit`` goes, with its token."""
    monkeypatch.setattr(shipment, "_CODE", code)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", two_nodes.address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    return two_nodes


@dataclass(frozen=True)
class Work:
    """A job that is held at its first batch until it is let go, and the parts that it must come to."""

    folder: Path
    out: Path
    flags: list[str]
    expected: dict[str, bytes]

    def at_work(self) -> set[str]:
        return {path.name.split(".")[1] for path in self.folder.glob("at-work.*")}

    def wait_for(self, nodes: int, submit: Submit, sent: str) -> None:
        """Until workers of so many nodes have begun, those that are gone counted, or the job has ended."""
        until = time.monotonic() + 240
        while len(self.at_work()) < nodes:
            running = submit("status", sent).out.split("\n")[0].split()[-1] in ("pending", "running")
            if not running or time.monotonic() > until:
                pytest.fail(f"at work: {self.at_work()}\n{submit('logs', sent).out}")
            time.sleep(0.5)

    def let_go(self) -> None:
        (self.folder / "go").touch()


@pytest.fixture
def work(tmp_path: Path, checkpoint: Path) -> Work:
    urls = write_shards(tmp_path / "in", shards=3, samples=4)
    assert run_job(job(urls, tmp_path / "alone", checkpoint), LocalExecutor()).exit_code == 0
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "__init__.py").write_text(HELD)
    (tmp_path / "env.yaml").write_text(
        f"py_modules: [{tmp_path / 'held'}]\nenv_vars: {{RAY_JOB_STOP_WAIT_TIME_S: '3'}}"  # it hangs, as it is held
    )
    config = {
        "input": {"urls": urls},
        "output": {"url": str(tmp_path / "out")},
        "model": {"path": str(checkpoint)},
        "inpaint": {"method": "held:Held", "options": {"folder": str(tmp_path)}},
        "workers": {"gpus": 0, "cpu_threads": 1, "batch_size": 4, "min": 2, "max": 2, "shards_in_flight": 1},
        "max_error_fraction": 0.5,
    }
    (tmp_path / "job.yaml").write_text(json.dumps(config))
    # The method comes with the runtime environment, so it isn't there in this process.
    flags = ["inpaint", f"--config={tmp_path}/job.yaml", f"--runtime-env={tmp_path}/env.yaml"]
    return Work(tmp_path, tmp_path / "out", flags, parts_of(tmp_path / "alone"))


def id_in(said: str) -> str:
    return next(word.rstrip(":") for word in said.split() if word.startswith("raysubmit_"))


def test_a_token_that_is_missing_or_wrong_is_one_line(
    cluster: TwoNodes, submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another" * 5)
    ran = submit("list")
    assert (ran.code, ran.err.count("\n"), "doesn't take this token; set" in ran.err) == (2, 1, True)
    assert "another" not in ran.err
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("HOME", str(tmp_path))
    ran = submit("list")
    assert (ran.code, ran.err.count("\n"), "wants a token, and there is none here" in ran.err) == (2, 1, True)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(TOKEN + "\n")
    assert submit("list").code == 0


@pytest.mark.timeout(600)
def test_a_node_killed_at_work_and_another_one_change_no_byte(cluster: TwoNodes, work: Work, submit: Submit) -> None:
    sent = submit(*work.flags, "--no-wait")
    assert sent.code == 0, sent.err
    work.wait_for(2, submit, id_in(sent.err))
    assert cluster.second in work.at_work()
    assert parts_of(work.out) == {}  # both hold their first shard
    cluster.tell("kill")
    cluster.second = cluster.tell("add")["second"]
    work.wait_for(3, submit, id_in(sent.err))  # the new one has begun the lost shard
    work.let_go()
    ran = submit("logs", id_in(sent.err), "--follow")
    assert ran.code == 0, ran.out + ran.err
    assert "3 shards committed, 12 samples = 9 results + 3 errors, of 12 planned" in ran.out
    assert parts_of(work.out) == work.expected


@pytest.mark.timeout(600)
def test_a_job_that_was_stopped_is_sent_again_and_goes_on(cluster: TwoNodes, work: Work, submit: Submit) -> None:
    sent = submit(*work.flags, "--executor=local", "--no-wait")  # one process, on the head: it starts sooner
    stopped = id_in(sent.err)
    work.wait_for(1, submit, stopped)
    assert "stop it first" in submit("resubmit", stopped).err
    ran = submit("stop", stopped)
    assert (ran.code, "stopped; what is committed stays" in ran.out) == (0, True)
    assert "stopped" in submit("status", stopped).out
    assert parts_of(work.out) == {}
    work.let_go()
    ran = submit("resubmit", stopped)
    assert ran.code == 0, ran.out + ran.err
    assert parts_of(work.out) == work.expected
    listed = submit("list").out
    assert f"{stopped}  " in listed
    assert f"{id_in(ran.err)}  " in listed
    assert str(work.out) in listed
    assert "Running entrypoint" in submit("logs", stopped).out
    assert "had ended" in submit("stop", stopped).out


def test_code_that_has_changed_is_not_sent_as_the_same(
    cluster: TwoNodes, submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = submit("audit", str(tmp_path / "none"))
    assert ran.code == 2  # the job's own: there is no job in that folder
    assert "is not a job's output" in ran.out
    monkeypatch.setattr("jobs.submit.code_digest", lambda: "another")
    again = submit("resubmit", id_in(ran.err))
    assert (again.code, "ran other code than is here" in again.err) == (2, True)
    assert f"python -m jobs.submit audit {tmp_path}/none" in again.err


def test_an_id_that_is_none_is_one_line(cluster: TwoNodes, submit: Submit) -> None:
    for verb in ("status", "logs", "stop", "resubmit"):
        ran = submit(verb, "raysubmit_none")
        assert (ran.code, "raysubmit_none does not exist" in ran.err, ran.err.count("\n")) == (2, True, 1), ran.err
