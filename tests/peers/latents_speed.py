"""How fast images become latents, end to end, beside the bare encoder; and what the CPU has to do for one. By hand.

``python -m tests.peers.latents_speed --model x-1-5 --images 4 --batch 2`` makes JPEGs of 512 px and of 12 megapixels
from the sample photographs, runs ``precompute_latents`` on them in this process, and the encoder alone on batches that
lie ready. ``x-1-5`` has the published shapes and random weights; a checkpoint's path will do too.

``prepare``: read from memory, decoded, resized and cropped, in milliseconds of one core. ``cores a GPU``: how many
cores that takes where a GPU encodes ``--gpu-rate`` images a second. ``share``: of the bare encoder's speed, by wall
clock, and by CPU time, which is what to look at where others are at work, and says nothing of a GPU.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from asymvae.batch import normalised
from asymvae.benchmark.turns import Spread, in_turns, ratios
from asymvae.config_latents import PrecomputeJob
from asymvae.faults import Fault
from asymvae.model import PUBLISHED, AsymmetricAutoencoderKL
from asymvae.pipeline.executor import LocalExecutor
from asymvae.pipeline.job import run_job
from asymvae.pipeline.plan import ready_model, resolve
from asymvae.pipeline.worker import make_deterministic
from asymvae.stages.prepare_latents import LatentsPlanned, PrepareLatents
from asymvae.storage.ledger import Ledger
from asymvae.tables import markdown
from tests.peers.latents_soak import photographs
from tests.tiny import file_bytes, write_tar
from tests.tiny_latents import precompute

SOURCES = {"512 px": (512, 512), "12 megapixels": (3000, 4000)}


def jpegs(height: int, width: int, count: int) -> list[bytes]:
    made = []
    for number, pixels in enumerate(photographs()[: min(count, 6)]):
        resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        grain = np.random.default_rng(number).integers(-6, 7, (height, width, 3))
        made.append(file_bytes((np.asarray(resized) + grain).clip(0, 255).astype(np.uint8), "JPEG", quality=90))
    return [made[number % len(made)] for number in range(count)]


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--model", default="configs/demo-checkpoint", help="a checkpoint, or x-1-5: its shapes, random")
    flags.add_argument("--size", type=int, default=512)
    flags.add_argument("--images", type=int, default=32)
    flags.add_argument("--batch", type=int, default=4)
    flags.add_argument("--rounds", type=int, default=3, help="bare encoder and jobs in turns")
    flags.add_argument("--threads", type=int, default=1)
    flags.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    flags.add_argument("--gpu-rate", type=float, default=357, help="images/s that a GPU encodes, for `cores a GPU`")
    options = flags.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = options.model
        if path in PUBLISHED:
            AsymmetricAutoencoderKL(**PUBLISHED[path]).save_pretrained(str(folder / "model"))
            path = str(folder / "model")
        readers: dict[str, Callable[[], float]] = {}
        costs: dict[str, float] = {}
        for source, (height, width) in SOURCES.items():
            data = jpegs(height, width, options.images)
            tar = write_tar(folder / f"{height}.tar", ((f"k{n}", {"jpg": each}) for n, each in enumerate(data)))
            job = resolve(precompute(str(tar), folder / "out", path, **settings_of(options)))
            make_deterministic(job)
            prepare = PrepareLatents(job)
            started = time.process_time()
            planned = [prepare(n, f"k{n}", {"image": each}) for n, each in enumerate(data[:8])]
            costs[source] = (time.process_time() - started) / len(planned)
            if "encoder" not in readers:
                readers["encoder"] = partial(encoder_alone, job, planned, options)
            readers[source] = partial(job_rate, job, folder, options.images)
        rates: dict[str, dict[int, float]] = {}
        for turn, name, rate in in_turns(readers, options.rounds):
            rates.setdefault(name, {})[turn] = rate
            print(f"{name}: {rate:.3g} images/s", file=sys.stderr, flush=True)
        heads = ("source", "prepare, ms of a core", "cores a GPU", "bare encoder, images/s", "job, images/s", "share")
        rows = [
            [
                source,
                f"{1000 * cost:.1f}",
                f"{options.gpu_rate * cost:.1f}",
                f"{Spread.of(list(rates['encoder'].values()))}",
                f"{Spread.of(list(rates[source].values()))}",
                f"{ratios(rates[source], rates['encoder'])}",
            ]
            for source, cost in costs.items()
        ]
        print(markdown(list(heads), rows))


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    gpus = int(options.device == "cuda")
    return {
        "workers": {"gpus": gpus, "cpu_threads": options.threads, "batch_size": options.batch},
        "crop": {"mode": "fixed", "size": [options.size, options.size]},
    }


def job_rate(job: PrecomputeJob, folder: Path, images: int) -> float:
    """Images a second of a run of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        job = job.model_copy(update={"output": job.output.model_copy(update={"url": out})})
        result = run_job(job, LocalExecutor())
        assert result.exit_code == 0, result
        ledger = Ledger(out)
        (commit,) = ledger.committed_names()
        return images / float(ledger.read_commit(commit)["run"]["seconds"])


def encoder_alone(job: PrecomputeJob, planned: list[LatentsPlanned | Fault], options: argparse.Namespace) -> float:
    """Images a second of batches that lie on the device, in a thread like a worker's."""
    windows = [one.items[0].pixels for one in planned if isinstance(one, LatentsPlanned)][: options.batch]
    rounds = max(2, options.images // options.batch)

    @torch.inference_mode()
    def measure() -> float:
        model = ready_model(job, options.device)
        pixels = torch.from_numpy(np.stack(windows)).to(options.device)

        def encode() -> None:
            model.encode(normalised(pixels).to(model.dtype))
            if options.device == "cuda":
                torch.cuda.synchronize()

        encode()
        started = time.perf_counter()
        for _ in range(rounds):
            encode()
        return rounds * len(windows) / (time.perf_counter() - started)

    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(options.threads,)) as thread:
        return thread.submit(measure).result()


if __name__ == "__main__":
    main()
