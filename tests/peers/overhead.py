"""What the pipeline costs over a plain loop, paired: jobs.inpaint with one Ray actor against one process that decodes,
runs the same model on the same batches, encodes with the same codecs, and writes nothing.

    python -m tests.peers.overhead [--samples 200] [--size 512] [--pairs 3]

The loop runs twice, with malloc as it comes and with the actor's settings of it, which are worth more than anything
else that is measured here. Prints samples/s for each pair, the ratios, and where the actor's time went. All use two
threads. The loop is timed from its first byte to its last; the job by its commit's own clock (first byte read to
commit), so that neither counts its start-up, and by the whole command as well.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asymvae.batch import Batch, collate
from asymvae.config import InpaintJob
from asymvae.inpaint.base import load_inpainter
from asymvae.media.image import encode_image
from asymvae.model.autoencoder import AsymmetricAutoencoderKL
from asymvae.pipeline.allocator import KEEP_FREED_MEMORY
from asymvae.stages.composite import composite
from asymvae.stages.prepare import Planned, Prepare
from asymvae.storage.samples import FieldNames, Sample, read_shard
from asymvae.storage.shards import list_shards
from tests.tiny import box_mask, file_bytes, job, picture, write_tar

BATCH = 4
THREADS = 2


def make(folder: Path, samples: int, size: int) -> None:
    torch.manual_seed(0)
    AsymmetricAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        down_block_out_channels=(16, 32, 64, 64),
        layers_per_down_block=2,
        up_block_types=("UpDecoderBlock2D",) * 4,
        up_block_out_channels=(16, 32, 64, 64),
        layers_per_up_block=2,
        norm_num_groups=8,
    ).save_pretrained(str(folder / "checkpoint"))
    fields = [
        {
            "jpg": file_bytes(picture(size, size, number), "JPEG", quality=90),
            "mask.png": file_bytes(box_mask(size, size, number), "PNG"),
        }
        for number in range(8)
    ]
    write_tar(folder / "set.tar", ((f"k{n:05d}", fields[n % len(fields)]) for n in range(samples)))


def settings(folder: Path, out: Path) -> InpaintJob:
    return job(
        str(folder / "set.tar"),
        out,
        folder / "checkpoint",
        geometry={"mode": "whole"},
        workers={"cpu_threads": THREADS, "batch_size": BATCH},
    )


@torch.inference_mode()
def loop(folder: Path) -> float:
    """Seconds of the plain loop over the whole shard."""
    torch.set_num_threads(THREADS)
    todo = settings(folder, folder / "unused")
    model = AsymmetricAutoencoderKL.from_pretrained(str(folder / "checkpoint")).eval()
    inpainter = load_inpainter("harmonic", {})
    prepare = Prepare(todo, inpainter, model.config.encoder_factor)
    names = todo.input
    (shard,) = list_shards(names.urls, root=None, format="auto")
    fields = FieldNames(names.image, names.mask, names.prompt, names.given, ("json",))
    planned: list[Planned] = []
    started = time.perf_counter()

    def run_batch() -> None:
        items = [one.items[0] for one in planned]
        batch: Batch = collate(items, len(items), torch.device("cpu"), torch.float32)
        batch.latents["prefilled"] = model.encode(inpainter.prefill(batch)).latent_dist.mode()
        decoded = model.decode(inpainter.fill(batch, model), image=batch.masked_image, mask=batch.mask).sample
        pixels = decoded.add(1).mul(127.5).clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        for one, work in zip(planned, pixels, strict=True):
            out = composite(one.prepared, np.ascontiguousarray(work), "paste")
            encode_image(out, None, image_format="png")
        planned.clear()

    for sample in read_shard(shard, fields):
        assert isinstance(sample, Sample)
        one = prepare(sample.index, sample.key, sample.fields)
        assert isinstance(one, Planned)
        planned.append(one)
        if len(planned) == BATCH:
            run_batch()
    if planned:
        run_batch()
    return time.perf_counter() - started


def actor(folder: Path, out: Path) -> tuple[float, float, dict[str, float]]:
    """Seconds by the commit's clock, of the whole command, and by stage."""
    todo = settings(folder, out)
    command = [sys.executable, "-m", "jobs.inpaint", f"--input.urls={todo.input.urls[0]}", f"--output.url={out}"]
    command += [f"--model.path={todo.model.path}", "--workers.gpus=0", f"--workers.cpu_threads={THREADS}"]
    command += [f"--workers.batch_size={BATCH}", "--geometry.mode=whole"]
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    whole = time.perf_counter() - started
    (record,) = (out / "_commits").glob("*.json")
    run: dict[str, Any] = json.loads(record.read_text())["run"]
    return run["seconds"], whole, run["stages"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--loop", metavar="FOLDER", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.loop:
        print(loop(Path(flags.loop)))
        return
    ratios: dict[str, list[float]] = {"as it comes": [], "as the actor's": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, flags.samples, flags.size)
        for pair in range(flags.pairs):
            # A process each, as the actor has one.
            command = [sys.executable, "-m", "tests.peers.overhead", "--loop", name]
            loops = {}
            for allocator, extra in zip(ratios, ({}, KEEP_FREED_MEMORY), strict=True):
                environment = os.environ | extra
                ran = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
                loops[allocator] = float(ran.stdout)
            seconds, whole, stages = actor(folder, folder / f"out{pair}")
            print(
                f"pair {pair}: actor {flags.samples / seconds:.3f} samples/s, whole command {flags.samples / whole:.3f}"
            )
            for allocator, plain in loops.items():
                ratios[allocator].append(plain / seconds)
                print(f"  loop, allocator {allocator}: {flags.samples / plain:.3f}, ratio {plain / seconds:.3f}")
            print(f"  device computes {stages['device'] / seconds:.1%} of the wall time; seconds by stage: {stages}")
    for allocator, several in ratios.items():
        print(f"median ratio actor / loop, allocator {allocator}: {statistics.median(several):.3f}")


if __name__ == "__main__":
    main()
