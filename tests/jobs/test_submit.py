"""``python -m jobs.submit``: what it refuses, and real jobs on a real cluster of two nodes that wants a token."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from asymvae.pipeline.executor import LocalExecutor
from asymvae.pipeline.job import run_job
from jobs import shipment
from jobs.job_server import exit_code
from jobs.shipment import Shipment, as_command, make_shipment, pack, read_runtime_env
from jobs.submit import main
from tests.jobs.conftest import Ran
from tests.tiny import job, parts_of, write_shards

TOKEN = "0123456789abcdef" * 2
Submit = Callable[..., Ran]

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


@pytest.fixture
def submit(capsys: pytest.CaptureFixture[str]) -> Submit:
    """``jobs.submit`` with these arguments; no exception gets out but what would be a traceback."""

    def run(*arguments: str) -> Ran:
        capsys.readouterr()
        try:
            code: int | str | None = main(arguments)
        except SystemExit as error:
            code = error.code
        said = capsys.readouterr()
        return Ran(code, said.out, said.err)

    return run


# --- what is refused, before anything is sent -----------------------------------------------------------------------


FINE = ("--input.urls=s3://in/*.tar", "--output.url=s3://out/run")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["inpant"], "did you mean inpaint?"),
        (["inpaint"], "input.urls"),
        (["inpaint", *FINE, "--mask.fether=3"], "did you mean mask.feather?"),
        (["inpaint", *FINE, "--retry-errors=image_trunkated"], "did you mean image_truncated?"),
        (["inpaint", *FINE, "--config", "none.yaml"], "--config none.yaml: No such file"),
        (["inpaint", FINE[0], "--output.url=out/run"], "output.url out/run is relative"),
        (["inpaint", *FINE, "--model.path=configs/demo-checkpoint"], "model.path configs/demo-checkpoint is relative"),
        (["inpaint", *FINE, "--ray.address=head:6379"], "ray.address head:6379: leave it out"),
        (["inpaint", *FINE, "--workers.spool=spool"], "workers.spool spool is relative"),
        (["inpaint", FINE[0], "--output.url=s3://user:pass@out/run"], "URL with credentials"),
        (["inpaint", "--input.urls=https://h/a.tar?X-Amz-Signature=0a1b", FINE[1]], "URL with credentials"),
        (["inpaint", *FINE, "--runtime-env=none.yaml"], "--runtime-env none.yaml: No such file"),
        (["inpaint", *FINE, '--entrypoint-resources={"a": "b"}'], "--entrypoint-resources must be JSON"),
        (["audit", "out/run"], "OUT out/run is relative"),
        (["report", "s3://out/run"], "say --out URL"),
        (["evaluate", "--input.urls=s3://in/*.tar", "--picture=sheet.png"], "--picture sheet.png is relative"),
        (["benchmark", "codecs", "--output=out"], "--output out is relative"),
    ],
)
def test_what_can_not_run_there_is_refused_here(
    arguments: list[str], said: str, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.submit.connect", lambda _: pytest.fail("the cluster was asked"))
    ran = submit(*arguments)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("working_dir: .", "leave working_dir out"),
        ("pips: [a]", "did you mean pip?"),
        ("- a", "must hold fields"),
        ("{half", "is not YAML"),
        ("py_modules: [none]", "py_modules: there is no none here"),
        ("env_vars: {AWS_SECRET_ACCESS_KEY: x}", "AWS_SECRET_ACCESS_KEY looks like a secret"),
        ("pip: {packages: [a], pip_install_options: ['--index-url=https://me:pass@index/simple']}", "credentials"),
    ],
)
def test_a_runtime_environment_is_checked(content: str, said: str, submit: Submit, tmp_path: Path) -> None:
    file = tmp_path / "env.yaml"
    file.write_text(content)
    ran = submit("inpaint", *FINE, f"--runtime-env={file}")
    assert (ran.code, said in ran.err) == (2, True), ran.err


def test_a_secret_in_the_configuration_is_refused(submit: Submit, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("# was: s3://key:secret@bucket/\ninput: {urls: s3://in/a.tar}\noutput: {url: s3://out/run}\n")
    ran = submit("inpaint", "--config", str(file))
    assert (ran.code, "--config holds a URL with credentials" in ran.err) == (2, True)
    assert "secret@" not in ran.err


def test_what_is_sent_is_the_code_and_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYMVAE_SEED", "7")
    file = tmp_path / "my job.yaml"
    file.write_text("input: {urls: s3://in/a.tar}\noutput: {url: /shared/out}\n")
    checked = make_shipment("inpaint", ["--seed=1", f"--config={file}", "--retry-errors"], {}, {})
    made = checked.shipment
    assert made.entrypoint == "python -m jobs.inpaint --config 'configs/my job.yaml' --seed=1 --retry-errors"
    variables = made.runtime_env["env_vars"]
    assert variables["ASYMVAE_SEED"] == "7"  # it was read as a setting here
    assert "ASYMVAE_CACHE" not in variables  # of this machine
    assert checked.output == "/shared/out"
    assert "output.url /shared/out: on the cluster's disks" in checked.warnings[0]
    assert Shipment.from_json(made.to_json()) == made
    assert as_command(made) == ["inpaint", "--seed=1", "--retry-errors", "--config", str(file)]
    (tmp_path / "sent").mkdir()
    pack(made, tmp_path / "sent")
    assert {path.name.split("-")[0] for path in (tmp_path / "sent").iterdir()} == {"asymvae", "jobs", "configs"}
    assert (tmp_path / "sent/configs/my job.yaml").read_text() == file.read_text()
    assert (tmp_path / "sent/asymvae/report/page.html.j2").exists()
    assert not list((tmp_path / "sent").rglob("__pycache__"))
    code = "import asymvae, importlib.metadata; print(asymvae.__file__, importlib.metadata.version('asymvae'))"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "sent", capture_output=True, text=True, check=True
    )
    assert ran.stdout.startswith(str(tmp_path / "sent"))


def test_a_configuration_too_long_for_an_environment_variable_is_sent_but_not_kept(tmp_path: Path) -> None:
    urls = [f"s3://bucket/set/{number:06d}.tar" for number in range(5000)]
    (tmp_path / "job.yaml").write_text(json.dumps({"input": {"urls": urls}, "output": {"url": "s3://out/run"}}))
    made = make_shipment("inpaint", [f"--config={tmp_path}/job.yaml"], {}, {}).shipment
    assert made.to_json() == ""
    assert made.config is not None


def test_a_sub_command_stays_in_front_of_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("images: 2\n")
    made = make_shipment("benchmark", ["codecs", f"--config={tmp_path}/b.yaml", "--pairs=1"], {}, {}).shipment
    assert made.entrypoint == "python -m jobs.benchmark codecs --config configs/b.yaml --pairs=1"


def test_a_job_that_works_in_the_first_process_is_told_of_gpus() -> None:
    arguments = ["--input.urls=s3://in/a.tar"]
    assert "--entrypoint-num-gpus=1" in make_shipment("evaluate", arguments, {}, {}).warnings[0]
    assert make_shipment("evaluate", arguments, {}, {"entrypoint_num_gpus": 1}).warnings == []


def test_code_that_is_too_large_is_refused_by_name(submit: Submit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipment, "MAX_BYTES", 2**10)
    ran = submit("inpaint", *FINE)
    assert (ran.code, "at most 0 are sent; move out: asymvae/" in ran.err) == (2, True)


def test_local_paths_of_a_runtime_environment_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "env.yaml").write_text("py_modules: [mine, 's3://code/other.zip']")
    monkeypatch.chdir(tmp_path)
    assert read_runtime_env("env.yaml")["py_modules"] == [str(tmp_path / "mine"), "s3://code/other.zip"]


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 1, 1),
        (JobStatus.FAILED, 2, 2),
        (JobStatus.FAILED, -9, 137),
        (JobStatus.FAILED, None, 1),
        (JobStatus.STOPPED, None, 1),
    ],
)
def test_the_exit_code_is_the_jobs_own(status: JobStatus, driver: int | None, code: int) -> None:
    details = JobDetails(type=JobType.SUBMISSION, status=status, entrypoint="", driver_exit_code=driver)
    assert exit_code(details) == code


# --- the way to the cluster -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "said"),
    [("http://127.0.0.1:1", "no Ray job server answers at http://127.0.0.1:1"), ("head:6379", "http://HEAD:8265")],
)
def test_an_address_that_does_not_answer_is_one_line_within_seconds(address: str, said: str, submit: Submit) -> None:
    began = time.monotonic()
    ran = submit("list", "--address", address)
    assert time.monotonic() - began < 8
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert said in ran.err


@pytest.mark.parametrize("content", [None, " \n", b"\xff"])
def test_a_tokens_file_that_says_nothing_is_named(
    content: str | bytes | None, submit: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    if content is not None:
        (tmp_path / "token").write_bytes(content if isinstance(content, bytes) else content.encode())
    ran = submit("list")
    assert (ran.code, str(tmp_path / "token") in ran.err) == (2, True)


# --- a cluster ------------------------------------------------------------------------------------------------------


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
