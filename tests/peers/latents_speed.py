"""How fast images become latents, end to end, beside the bare encoder; and what the CPU has to do for one. By hand.

``python -m tests.peers.latents_speed --model configs/demo-checkpoint --size 512`` makes JPEGs of 512 px and of 12
megapixels from the sample photographs, runs ``precompute_latents`` on them in this process, and the encoder alone on
batches that lie ready. ``cores to keep up``: how many cores preparing would need to keep up with the bare encoder.
With ``--device cuda`` on a GPU, ``--model x-1-5`` for the published shapes with random weights.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from asymvae.batch import normalised
from asymvae.config_latents import PrecomputeJob
from asymvae.faults import Fault
from asymvae.model import PUBLISHED, AsymmetricAutoencoderKL
from asymvae.pipeline.executor import LocalExecutor
from asymvae.pipeline.job import run_job
from asymvae.pipeline.plan import load_model, resolve
from asymvae.pipeline.worker import make_deterministic
from asymvae.stages.prepare_latents import LatentsPlanned, PrepareLatents
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
    flags.add_argument("--threads", type=int, default=1)
    flags.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = flags.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = options.model
        if path in PUBLISHED:
            AsymmetricAutoencoderKL(**PUBLISHED[path]).save_pretrained(str(folder / "model"))
            path = str(folder / "model")
        print("| source | prepare, ms of a core | bare encoder, images/s | job, images/s | share | cores to keep up |")
        print("|---|---|---|---|---|---|")
        for source, (height, width) in SOURCES.items():
            data = jpegs(height, width, options.images)
            tar = write_tar(folder / f"{height}.tar", ((f"k{n}", {"jpg": each}) for n, each in enumerate(data)))
            workers = {
                "gpus": int(options.device == "cuda"),
                "cpu_threads": options.threads,
                "batch_size": options.batch,
            }
            crop = {"mode": "fixed", "size": [options.size, options.size]}
            job = resolve(precompute(str(tar), folder / f"out{height}", path, workers=workers, crop=crop))
            make_deterministic(job)
            prepare = PrepareLatents(job)
            started = time.process_time()
            planned = [prepare(n, f"k{n}", {"image": each}) for n, each in enumerate(data[:8])]
            cost = (time.process_time() - started) / len(planned)
            bare = encoder_alone(job, planned, options)
            result = run_job(job, LocalExecutor())
            assert result.exit_code == 0, result
            rate = result.samples / result.seconds
            print(
                f"| {source} | {1000 * cost:.1f} | {bare:.2f} | {rate:.2f} | {rate / bare:.0%} | {bare * cost:.2f} |",
                flush=True,
            )


def encoder_alone(job: PrecomputeJob, planned: list[LatentsPlanned | Fault], options: argparse.Namespace) -> float:
    """Images a second of batches that lie on the device."""
    model = load_model(job, options.device)
    windows = [one.items[0].pixels for one in planned if isinstance(one, LatentsPlanned)][: options.batch]
    pixels = torch.from_numpy(np.stack(windows)).to(options.device)
    rounds = max(2, options.images // options.batch)
    with torch.inference_mode():
        model.encode(normalised(pixels).to(model.dtype))
        if options.device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(rounds):
            model.encode(normalised(pixels).to(model.dtype))
        if options.device == "cuda":
            torch.cuda.synchronize()
    return rounds * len(windows) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
