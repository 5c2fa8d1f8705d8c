"""A job that is killed in the middle of an upload in pieces, and run again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import s3fs

from asymvae.storage import filesystem
from asymvae.storage.filesystem import list_files, read_bytes, resolve
from asymvae.storage.uploads import Upload, list_uploads, uploaded_bytes
from jobs import audit
from tests.jobs.conftest import Inpaint
from tests.jobs.stalled_upload import PIECE
from tests.tiny import box_mask, file_bytes, parts_of, write_tar

ROOT = Path(__file__).parents[2]


def begin_upload(url: str) -> None:
    fs, path = resolve(url)
    bucket, key, _ = fs.split_path(path)
    fs.call_s3("create_multipart_upload", Bucket=bucket, Key=key)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Four images of noise, whose results make a part of some 13 MB: three pieces."""
    noise = np.random.default_rng(0)
    made = []
    for number in range(4):
        mask = np.zeros((1024, 1024), np.uint8)
        mask[100:164, 100:164] = box_mask(64, 64, number)
        image = noise.integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
        made.append(
            (f"k{number}", {"png": file_bytes(image, "PNG", compress_level=1), "mask.png": file_bytes(mask, "PNG")})
        )
    return write_tar(tmp_path / "in" / "a.tar", made)


def kill_in_upload(marker: Path, log: Path, *flags: str) -> None:
    with log.open("wb") as said:
        command = [sys.executable, "-m", "tests.jobs.stalled_upload", str(marker), *flags]
        child = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said, start_new_session=True)
    try:
        end = time.monotonic() + 120
        while not marker.exists():
            assert child.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def test_a_kill_in_the_middle_of_an_upload_leaves_nothing_once_the_shard_is_committed(
    s3_url: str,
    shard: Path,
    tmp_path: Path,
    checkpoint: Path,
    inpaint: Inpaint,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = f"{s3_url}/out"
    strangers = [
        "out/results/theirs.bin",
        "out/backup/results/a.parquet",
        "results/a.parquet",
        "out-2/results/a.parquet",
    ]
    for name in strangers:
        begin_upload(f"{s3_url}/{name}")
    flags = [f"--input.urls={shard}", f"--output.url={out}"]
    fixed = ["--executor=local", "--workers.gpus=0", f"--model.path={checkpoint}"]
    kill_in_upload(tmp_path / "marker", tmp_path / "log", *fixed, *flags)

    def ours() -> list[Upload]:
        return [upload for upload in list_uploads(out) if upload.where == "results/a.parquet"]

    (left,) = ours()
    assert uploaded_bytes(out, left) >= PIECE
    assert list(list_files(out, recursive=True)) == ["_job.json"]
    assert audit.main([out, "--clean", "--dry-run", "--older-than=0h"]) == 1
    assert f"{uploaded_bytes(out, left):,} bytes" in capsys.readouterr().out

    def forbidden(*_: object) -> None:
        raise AssertionError("it takes every upload of the bucket, other people's too")

    monkeypatch.setattr(s3fs.S3FileSystem, "clear_multipart_uploads", forbidden)
    monkeypatch.setattr(filesystem, "UPLOAD_CHUNK_BYTES", PIECE)
    again = inpaint(*flags)
    assert again.code == 0, again.err
    assert ours() == []
    assert audit.main([out, "--deep", "--clean", "--older-than=0h"]) == 0
    left_alone = [upload.where for upload in list_uploads(s3_url)]
    assert sorted(left_alone) == sorted(strangers)

    assert inpaint(f"--input.urls={shard}", f"--output.url={tmp_path}/out").code == 0
    stored = [name for name in list_files(out, recursive=True) if name.endswith(".parquet")]
    assert {name: read_bytes(f"{out}/{name}") for name in stored} == parts_of(tmp_path / "out")
    assert list_files(out, recursive=True)["results/a.parquet"].size > 2 * PIECE


def test_nothing_here_clears_a_buckets_uploads() -> None:
    wanted = "clear_" + "multipart_uploads("
    files = [*(ROOT / "asymvae").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")]
    assert len(files) > 100
    assert [path.name for path in files if wanted in path.read_text()] == []
