"""Peak resident memory of a worker over shards of different length: it must not grow with the shard.

python -m tests.peers.memory [--samples 2000 20000] [--size 64]
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.tiny import box_mask, file_bytes, job, picture, tiny_model, write_tar


def peak_mib(folder: Path, samples: int, **workers: int) -> float:
    """MiB at the most, of a process that runs one shard of ``samples`` through LocalExecutor."""
    arguments = [f"{name}={value}" for name, value in workers.items()]
    command = [sys.executable, "-m", "tests.peers.memory", "--run", str(folder), str(samples), *arguments]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def make(folder: Path, samples: int, size: int) -> None:
    tiny_model().save_pretrained(str(folder / "checkpoint"))
    fields = [
        {
            "jpg": file_bytes(picture(size + 8 * (number % 3), size, number), "JPEG"),
            "mask.png": file_bytes(box_mask(size + 8 * (number % 3), size, number), "PNG"),
        }
        for number in range(48)
    ]
    write_tar(folder / f"{samples}.tar", ((f"k{n:06d}", fields[n % len(fields)]) for n in range(samples)))


def run(folder: Path, samples: int, arguments: Sequence[str]) -> None:
    from asymvae.pipeline.executor import LocalExecutor
    from asymvae.pipeline.job import run_job

    workers = {"batch_size": 8} | {name: int(value) for name, _, value in (a.partition("=") for a in arguments)}
    todo = job(str(folder / f"{samples}.tar"), folder / f"out{samples}", folder / "checkpoint", workers=workers)
    result = run_job(todo, LocalExecutor())
    assert result.exit_code == 0, result
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    if sys.argv[1:2] == ["--run"]:
        run(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[2000, 20000])
    parser.add_argument("--size", type=int, default=64)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        first = 0.0
        for samples in flags.samples:
            make(Path(name), samples, flags.size)
            peak = peak_mib(Path(name), samples)
            first = first or peak
            print(f"{samples} samples: peak {peak:.0f} MiB, {peak / first:.3f} of the first", flush=True)


if __name__ == "__main__":
    main()
