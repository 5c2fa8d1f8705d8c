"""``python -m jobs.submit``: what it refuses, and what it sends."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from jobs import shipment
from jobs.job_server import exit_code
from jobs.shipment import Shipment, as_command, make_shipment, pack, read_runtime_env
from tests.jobs.conftest import Submit

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
