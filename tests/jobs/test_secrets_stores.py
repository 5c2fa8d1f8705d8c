"""Secrets lead to every place of a job; none of them is in what it writes, says, or has Ray keep."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from asymvae.storage.filesystem import list_files, read_bytes
from jobs import audit, report
from tests.jobs.conftest import Inpaint
from tests.jobs.test_inpaint_stores import PASSWORD, TOKEN, web  # noqa: F401  a fixture
from tests.object_store import ACCESS_KEY, SECRET_KEY, ObjectStore
from tests.tiny import sample, write_tar

HUSH = "hush/in+url"
UNUSED = "hush-in-the-environment"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tars; what ``web`` serves."""
    for shard in range(2):
        write_tar(tmp_path / "in" / f"{shard}.tar", [(f"s{shard}-{number}", sample(number)) for number in range(2)])
    return tmp_path / "in"


@pytest.mark.parametrize("place", ["input.urls", "output.url", "model.path", "OUT"])
def test_credentials_in_a_buckets_url_are_refused_and_not_repeated(
    folder: Path,
    tmp_path: Path,
    inpaint: Inpaint,
    place: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for scheme in ("s3", "gs"):
        url = f"{scheme}://AKIAME:{HUSH}@bucket/a.tar"
        if place == "OUT":
            assert (audit.main([url]), report.main([url])) == (2, 2)
            said = "".join(capsys.readouterr())
        else:
            flags = {"input.urls": f"{folder}/*.tar", "output.url": f"{tmp_path}/out"} | {place: url}
            ran = inpaint(*(f"--{name}={value}" for name, value in flags.items()))
            assert ran.code == 2
            said = ran.out + ran.err
        assert f"{scheme}://bucket/" in said
        for secret in ("hush", "in+url", "AKIAME"):
            assert secret not in said


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """For Ray's session: short, since it makes sockets in it."""
    made = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def test_no_byte_that_a_job_on_ray_leaves_holds_a_secret(
    object_store: ObjectStore,
    s3_url: str,
    web: str,  # noqa: F811
    folder: Path,
    checkpoint: Path,
    ray_folder: Path,
) -> None:
    """From http with a password and a signature to s3; one of the two tars may be looked at and not read, and fails."""
    signed = f"http://me:{PASSWORD}@{web}/{{name}}.tar?token={TOKEN}"
    (folder / "unreadable.tar").write_bytes((folder / "0.tar").read_bytes())
    known = {"key": ACCESS_KEY, "secret": SECRET_KEY, "endpoint_url": object_store.endpoint}
    env = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    env |= {"FSSPEC_S3": json.dumps(known), "AWS_SECRET_ACCESS_KEY": UNUSED, "AWS_SESSION_TOKEN": UNUSED}
    env |= {"RAY_TMPDIR": str(ray_folder), "RAY_LOG_TO_STDERR": "0", "CUDA_VISIBLE_DEVICES": ""}
    out = f"{s3_url}/out"
    urls = signed.format(name="{0,unreadable}")
    flags = [f"--input.urls={urls}", f"--output.url={out}", f"--model.path={checkpoint}", "--workers.gpus=0"]
    flags += ["--ray.attempts=0", "--max_error_fraction=1"]
    command = [sys.executable, "-m", "jobs.inpaint", *flags]
    ran = subprocess.run(command, env=env, cwd=Path(__file__).parents[2], capture_output=True, timeout=250, check=False)
    said = (ran.stdout + ran.stderr).decode()
    assert ran.returncode == 1, said
    records = {name: read_bytes(f"{out}/{name}") for name in list_files(out, recursive=True)}
    logs = {str(path): path.read_bytes() for path in ray_folder.rglob("*") if path.is_file() and not path.is_symlink()}
    assert "failed: shard unreadable: " in said
    assert {name.partition("/")[0] for name in records} >= {"_job.json", "_commits", "_failed", "results"}
    assert any("worker" in Path(name).name for name in logs)
    for name, content in {"said": said.encode(), **records, **logs}.items():
        for secret in (SECRET_KEY, PASSWORD, TOKEN, UNUSED):
            assert secret.encode() not in content, name
