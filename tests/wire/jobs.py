"""A small job whose stores are behind a bad road, and what must be true of it at its end."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from asymvae.storage.audit import audit
from asymvae.storage.filesystem import list_files, read_bytes, resolve
from asymvae.storage.shards import list_shards
from tests.corpus.law import law_broken
from tests.tiny import file_bytes, sample, write_tar

_FIXED = ("--workers.gpus=0", "--workers.cpu_threads=1", "--workers.batch_size=4")


@dataclass(frozen=True)
class Ran:
    """What a call of the job came to; ``err`` is its stderr."""

    code: int | str | None
    err: str
    seconds: float


def run_here(checkpoint: Path, *flags: str) -> Ran:
    """``jobs.inpaint`` in this process."""
    from jobs.inpaint import main

    err, started = io.StringIO(), time.monotonic()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            code: int | str | None = main([*_FIXED, "--executor=local", f"--model.path={checkpoint}", *flags])
        except SystemExit as error:
            code = error.code
    return Ran(code, err.getvalue(), time.monotonic() - started)


def run_child(checkpoint: Path, env: Mapping[str, str], *flags: str, timeout_s: float) -> Ran:
    """``python -m jobs.inpaint`` in a process of its own."""
    command = [sys.executable, "-m", "jobs.inpaint", *_FIXED, f"--model.path={checkpoint}", *flags]
    started = time.monotonic()
    ended = subprocess.run(command, env=dict(env), capture_output=True, text=True, timeout=timeout_s)
    return Ran(ended.returncode, ended.stderr, time.monotonic() - started)


def write_input(folder: Path, shards: int, samples: int, side: int = 0) -> list[Path]:
    """Tars of good samples; with ``side``, squares of noise with a small hole: ``3 * side ** 2`` bytes a result."""

    def made(number: int) -> dict[str, bytes]:
        if not side:
            return sample(number)
        mask = np.zeros((side, side), np.uint8)
        mask[:16, :16] = 255
        noise = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
        return {"png": file_bytes(noise, "PNG"), "mask.png": file_bytes(mask, "PNG")}

    return [
        write_tar(folder / f"{shard:03d}.tar", [(f"{shard}-{n}", made(100 * shard + n)) for n in range(samples)])
        for shard in range(shards)
    ]


def parts(out: str) -> dict[str, bytes]:
    """Every part below OUT, by its path."""
    return {name: read_bytes(f"{out}/{name}") for name in list_files(out, recursive=True) if name.endswith(".parquet")}


def wrong(out: str, urls: str, expected: Mapping[str, bytes]) -> list[str]:
    """What isn't as it should be; [] after a good end: the same bytes, a clean deep audit, no unfinished upload."""
    found = []
    there = parts(out)
    if there != expected:
        odd = [name for name in sorted(there.keys() | expected) if there.get(name) != expected.get(name)]
        found.append(f"other bytes: {odd}")
    report = audit(out, deep=True, shards=list_shards(urls, root=None, format="auto"))
    if not report.ok:
        found.append(f"audit: {report}")
    found += law_broken(out)
    return found + [f"unfinished upload: {key}" for key in unfinished_uploads(out)]


def unfinished_uploads(url: str) -> list[str]:
    """Keys of the multipart uploads below an s3:// folder that nobody ended."""
    if not url.startswith("s3://"):
        return []
    fs, path = resolve(url)
    bucket, prefix, _ = fs.split_path(path + "/")
    answer = fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=prefix)
    return [upload["Key"] for upload in answer.get("Uploads", []) if upload["Key"].startswith(prefix)]
