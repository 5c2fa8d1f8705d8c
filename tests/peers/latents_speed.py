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
    flags.add_argument("--gpu-rate", type=float, default=357, help="images/s that a GPU encodes, for `cores a GPU`")
    options = flags.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = options.model
        if path in PUBLISHED:
            AsymmetricAutoencoderKL(**PUBLISHED[path]).save_pretrained(str(folder / "model"))
            path = str(folder / "model")
        heads = ("source", "prepare, ms of a core", "cores a GPU", "bare encoder", "job", "share", "of CPU time")
        print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
        bare: tuple[float, float] | None = None
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
            bare = bare or encoder_alone(job, planned, options)
            started = time.process_time()
            result = run_job(job, LocalExecutor())
            spent = (time.process_time() - started) / options.images
            assert result.exit_code == 0, result
            rate = result.samples / result.seconds
            print(
                f"| {source} | {1000 * cost:.1f} | {options.gpu_rate * cost:.1f} | {bare[0]:.3g} images/s |"
                f" {rate:.3g} images/s | {rate / bare[0]:.0%} | {bare[1] / spent:.0%} of {spent:.2f} s |",
                flush=True,
            )


def encoder_alone(
    job: PrecomputeJob, planned: list[LatentsPlanned | Fault], options: argparse.Namespace
) -> tuple[float, float]:
    """(images a second, seconds of CPU an image) of batches that lie on the device."""
    model = load_model(job, options.device)
    windows = [one.items[0].pixels for one in planned if isinstance(one, LatentsPlanned)][: options.batch]
    pixels = torch.from_numpy(np.stack(windows)).to(options.device)
    rounds = max(2, options.images // options.batch)

    def encode() -> None:
        model.encode(normalised(pixels).to(model.dtype))
        if options.device == "cuda":
            torch.cuda.synchronize()

    with torch.inference_mode():
        encode()
        started, spent = time.perf_counter(), time.process_time()
        for _ in range(rounds):
            encode()
    images = rounds * len(windows)
    return images / (time.perf_counter() - started), (time.process_time() - spent) / images


if __name__ == "__main__":
    main()
