"""``precompute_latents`` over many crops, killed and resumed: byte-identical parts, audit clean. Run by hand.

``python -m tests.peers.latents_soak --crops 20000`` cuts crops from the sample photographs, runs the job undisturbed in
one process, then with one and with two actors whose driver, and all that it started, is killed with SIGKILL at random
moments, each time started again, and compares every part.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image

from asymvae.storage.audit import audit
from tests.tiny import file_bytes, parts_of, tiny_model, write_tar

SAMPLES = Path(__file__).parents[2] / "configs" / "samples"
SIZES = ((64, 64), (64, 96), (96, 64))


def photographs() -> list[NDArray[np.uint8]]:
    found = []
    for path in sorted(SAMPLES.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                content = archive.extractfile(member)
                if member.name.endswith(".jpg") and "truncated" not in member.name and content is not None:
                    found.append(np.asarray(Image.open(io.BytesIO(content.read())).convert("RGB")))
    return found


def crops(count: int, shard: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    rng, whole = random.Random(shard), photographs()
    for number in range(count):
        pixels, (height, width) = rng.choice(whole), rng.choice(SIZES)
        top, left = rng.randrange(pixels.shape[0] - height), rng.randrange(pixels.shape[1] - width)
        content = file_bytes(pixels[top : top + height, left : left + width], "JPEG", quality=90)
        bad = number % 500 == 77
        yield f"{shard}-{number:05d}", {"jpg": content[:200] if bad else content, "txt": b"a crop"}


def command(folder: Path, out: str, *flags: str) -> list[str]:
    return [
        *(sys.executable, "-m", "jobs.precompute_latents", f"--input.urls={folder}/in/*.tar"),
        *(f"--output.url={folder}/{out}", f"--model.path={folder}/model", "--workers.gpus=0"),
        *("--crop.base=80", "--crop.step=32", "--crop.least=64", "--workers.batch_size=16", *flags),
    ]


def committed(out: Path) -> int:
    return len(list((out / "_commits").glob("*.json")))


def run_and_kill(folder: Path, out: str, actors: int, rng: random.Random, most: int) -> int:
    """Runs until it ends by itself, killed twice on the way, each time after 1 to ``most`` more shards and a random
    moment; the number of kills."""
    environment = os.environ | {"RAY_ADDRESS": "local", "RAY_worker_niceness": "0"}  # Ray's 15: others' work starves it
    wanted = command(folder, out, f"--workers.min={actors}", f"--workers.max={actors}")
    kills = 0
    while True:
        with (folder / f"{out}.log").open("ab") as log:
            driver = subprocess.Popen(wanted, env=environment, stdout=log, stderr=log)
        until = committed(folder / out) + rng.randint(1, most)
        while driver.poll() is None and (kills == 2 or committed(folder / out) < until):
            time.sleep(0.05)
        if driver.poll() is not None:
            if driver.returncode != 0:
                said = (folder / f"{out}.log").read_text(errors="replace")[-6000:]
                raise SystemExit(f"the job ended with {driver.returncode}:\n{said}")
            return kills
        time.sleep(rng.uniform(0, 1.5))
        family = psutil.Process(driver.pid).children(recursive=True)
        for process in [psutil.Process(driver.pid), *family]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        driver.wait()
        psutil.wait_procs(family, timeout=10)
        kills += 1
        print(f"  killed, {committed(folder / out)} shards committed", flush=True)


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--crops", type=int, default=20_000)
    flags.add_argument("--shards", type=int, default=20)
    flags.add_argument("--actors", type=int, nargs="+", default=[1, 2])
    options = flags.parse_args()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny_model().save_pretrained(str(folder / "model"))
        for shard in range(options.shards):
            write_tar(folder / "in" / f"{shard:05d}.tar", crops(options.crops // options.shards, shard))
        started = time.monotonic()
        subprocess.run(command(folder, "undisturbed", "--executor=local"), check=True, stdout=subprocess.DEVNULL)
        print(f"undisturbed: {time.monotonic() - started:.0f} s", flush=True)
        wanted = parts_of(folder / "undisturbed")
        for actors in options.actors:
            started = time.monotonic()
            kills = run_and_kill(folder, str(actors), actors, rng, max(1, options.shards // 4))
            report = audit(str(folder / str(actors)), deep=True)
            same = parts_of(folder / str(actors)) == wanted
            print(
                f"{actors} actors: {kills} kills, {time.monotonic() - started:.0f} s, {report.samples} samples = "
                f"{report.results} results + {report.errors} errors in {len(wanted)} parts; "
                f"{'byte-identical' if same else 'OTHER BYTES'}; audit {'clean' if report.ok else report}",
                flush=True,
            )
            if not same or not report.ok:
                raise SystemExit(1)


if __name__ == "__main__":
    main()
