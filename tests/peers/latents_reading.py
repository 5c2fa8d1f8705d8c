"""Reading latents, side by side: LatentDataset, pyarrow alone, a WebDataset of .npy, a folder of .npz.

By hand: ``python -m tests.peers.latents_reading``. Prints samples a second and microseconds of CPU a sample, both in
turns, and bytes on disk a sample.

The samples are posteriors of SD's shape at 512 px, (4, 64, 64) in float16, with a caption of 80 bytes; the files are in
the page cache. ``pyarrow alone`` is a loop in this process, one thread, that reads LatentDataset's columns into numpy
arrays of a row group, in the file's order: no batches, no shuffle, no float32, nothing scaled, no noise. ``pyarrow, N
workers`` is the same in DataLoader workers, which hand over what they read, as any reader for training must; ``pyarrow
and torch.randn`` draws noise and scales, a row group at once. LatentDataset draws noise; with ``sample=False`` it takes
the means alone; both shuffle through a buffer of 64 MiB, as WebDataset through one of 1,000 samples, since filling the
usual one is a quarter of an epoch as short as this. The others end in float32 batches of means and logvars as they are.
The .npz are uncompressed, as kohya's scripts write them; the tars too.

CPU time is that of this process and its workers. On a machine where others are at work, it is what can be compared.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import webdataset
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
from torch.utils.dlpack import from_dlpack

from asymvae.benchmark.turns import Spread, in_turns, ratios
from asymvae.latents.dataset import LatentDataset
from asymvae.tables import markdown
from tests.latents.small_out import SmallOut

SHAPE = (4, 64, 64)
SHARDS = 4
BUFFER_MB = 64


def posteriors(count: int) -> Iterator[tuple[str, np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """(key, mean, logvar). Noise: natural images' latents may shrink better."""
    rng = np.random.default_rng(0)
    for index in range(count):
        mean = rng.normal(0, 5, SHAPE).astype(np.float16)
        yield f"{index:08d}", mean, rng.normal(-8, 1, SHAPE).astype(np.float16)


def write(folder: Path, count: int) -> None:
    """OUT, tars and npz of the same samples."""
    out = SmallOut(str(folder / "out"), folder / "spool", group_rows=128)
    (folder / "npz").mkdir()
    (folder / "tars").mkdir()
    caption = "c" * 80
    rows = []
    for key, mean, logvar in posteriors(count):
        arrays = {"mean": mean, "logvar": logvar}
        np.savez(folder / "npz" / f"{key}.npz", **arrays, caption=np.array(caption))
        rows.append((key, arrays))
    for shard in range(SHARDS):
        part = rows[shard::SHARDS]
        out.commit(
            f"{shard}", out.write(f"{shard}", {"512x512": [a_row(n, *row, caption) for n, row in enumerate(part)]})
        )
        with tarfile.open(folder / "tars" / f"{shard}.tar", "w") as tar:
            for key, arrays in part:
                for name, values in arrays.items():
                    add(tar, f"{key}.{name}.npy", npy(values))
                add(tar, f"{key}.json", json.dumps({"caption": caption}).encode())


def a_row(index: int, key: str, arrays: dict[str, np.ndarray[Any, Any]], caption: str) -> dict[str, Any]:
    sides = ("original_height", "original_width", "resized_height", "resized_width")
    return {
        "key": key,
        "variant": 0,
        "index": index,
        **{name: values.reshape(-1) for name, values in arrays.items()},
        "shape": list(SHAPE),
        **dict.fromkeys(sides, 512),
        "crop": [0, 0, 512, 512],
        "hflip": False,
        "caption": caption,
        "json": None,
        "source_sha256": f"{index:064x}",
    }


def npy(values: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


class NpzFolder(Dataset[tuple[torch.Tensor, torch.Tensor, str]]):
    """One .npz an image."""

    def __init__(self, folder: Path) -> None:
        self.files = sorted(folder.iterdir())

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, str]:
        with np.load(self.files[index]) as arrays:
            mean, logvar = (torch.from_numpy(arrays[name]).float() for name in ("mean", "logvar"))
            return mean, logvar, str(arrays["caption"])


class ArrowFiles(IterableDataset[dict[str, torch.Tensor]]):
    """pyarrow alone: each worker reads every n-th file into arrays (rows, values), a row group at a time."""

    def __init__(self, folder: Path, latents: Sequence[str], draw: bool) -> None:
        self.files, self.latents = sorted((folder / "out/latents").rglob("*.parquet")), latents
        self.draw = draw

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        first, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for file in self.files[first::workers]:
            with pq.ParquetFile(file) as parquet:
                for number in range(parquet.num_row_groups):
                    columns = ["key", "caption", "shape", *self.latents]
                    table = parquet.read_row_group(number, columns=columns, use_threads=False)
                    values = {name: table[name].combine_chunks().flatten() for name in self.latents}
                    group = {name: from_dlpack(array).view(table.num_rows, -1) for name, array in values.items()}
                    yield {"mean": draw(**group)} if self.draw else group


def draw(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    return torch.randn(mean.shape).mul_(logvar.float().mul_(0.5).exp_()).add_(mean).mul_(0.18215)


def read_pyarrow(folder: Path, workers: int, latents: Sequence[str] = ("mean", "logvar"), draw: bool = False) -> int:
    groups = ArrowFiles(folder, latents, draw)
    loader = DataLoader(groups, batch_size=None, num_workers=workers) if workers else groups
    return sum(len(group["mean"]) for group in loader)


def read_ours(folder: Path, workers: int, batch_size: int, sample: bool = True) -> int:
    data = LatentDataset(str(folder / "out"), batch_size=batch_size, sample=sample, buffer_mb=BUFFER_MB)
    loader = DataLoader(data, batch_size=None, num_workers=workers)
    return sum(int((~batch["is_padding"]).sum()) for batch in loader)


def read_npz(folder: Path, workers: int, batch_size: int) -> int:
    loader = DataLoader(NpzFolder(folder / "npz"), batch_size, shuffle=True, num_workers=workers)
    return sum(len(mean) for mean, _, _ in loader)


def as_float(sample: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, str]:
    mean, logvar = (torch.from_numpy(sample[f"{name}.npy"]).float() for name in ("mean", "logvar"))
    return mean, logvar, sample["json"]["caption"]


def read_tars(folder: Path, workers: int, batch_size: int) -> int:
    urls = sorted(str(path) for path in (folder / "tars").iterdir())
    tars = webdataset.WebDataset(urls, shardshuffle=SHARDS).shuffle(1000).decode().map(as_float)
    loader = DataLoader(tars.batched(batch_size), batch_size=None, num_workers=workers)
    return sum(len(batch[0]) for batch in loader)


def bytes_of(folder: Path) -> int:
    """On disk, by blocks."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def timed(read: Callable[[], int], count: int) -> tuple[float, float]:
    """(samples a second, microseconds of CPU a sample)."""
    start, spent = time.perf_counter(), cpu_seconds()
    rows = read()
    if rows != count:
        raise RuntimeError(f"{rows} samples were read, there are {count}")
    return count / (time.perf_counter() - start), 1e6 * (cpu_seconds() - spent) / count


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


BASES = ("pyarrow alone, mean and logvar", "pyarrow alone, mean")


def ways(folder: Path, workers: int, batch_size: int) -> dict[str, tuple[str, str, Callable[[], int]]]:
    """By name: where the files are, which of BASES it is set beside, and the reader."""
    of = "no worker" if not workers else "1 worker" if workers == 1 else f"{workers} workers"
    both, means = BASES
    names = (f"pyarrow, mean and logvar, {of}", f"pyarrow, mean, {of}") if workers else BASES
    return {
        names[0]: ("out", both, partial(read_pyarrow, folder, workers)),
        f"pyarrow and torch.randn, {of}": ("out", both, partial(read_pyarrow, folder, workers, draw=True)),
        f"LatentDataset, {of}": ("out", both, partial(read_ours, folder, workers, batch_size)),
        names[1]: ("out", means, partial(read_pyarrow, folder, workers, ("mean",))),
        f"LatentDataset, sample=False, {of}": ("out", means, partial(read_ours, folder, workers, batch_size, False)),
        f"WebDataset of .npy, {of}": ("tars", both, partial(read_tars, folder, workers, batch_size)),
        f".npz an image, {of}": ("npz", both, partial(read_npz, folder, workers, batch_size)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=16384, help="fewer fit the shuffle buffer: its filling")
    parser.add_argument("--batch", type=int, default=32, help="samples; pyarrow reads row groups of 128")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="of the DataLoader, beside none")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(folder, arguments.samples)
        readers = {
            name: of
            for workers in (0, *arguments.workers)
            for name, of in ways(folder, workers, arguments.batch).items()
        }
        speeds: dict[str, dict[int, float]] = {}
        costs: dict[str, dict[int, float]] = {}
        turns = {name: partial(timed, read, arguments.samples) for name, (_, _, read) in readers.items()}
        for turn, name, (speed, cost) in in_turns(turns, arguments.rounds):
            speeds.setdefault(name, {})[turn], costs.setdefault(name, {})[turn] = speed, cost
        sizes = {where: bytes_of(folder / where) / arguments.samples for where in ("out", "tars", "npz")}
        rows = [
            [
                name,
                f"{Spread.of(list(speeds[name].values()))}",
                f"{ratios(speeds[name], speeds[beside])}",
                f"{Spread.of(list(costs[name].values()))}",
                f"{ratios(costs[beside], costs[name])}",
                f"{sizes[where]:,.0f}",
            ]
            for name, (where, beside, _) in readers.items()
        ]
        print(
            f"{arguments.samples} samples, batches of {arguments.batch}, {arguments.rounds} rounds, {os.cpu_count()}"
            " cores; medians (least to most)\n"
        )
        heads = ["reader", "samples/s", "of pyarrow alone", "CPU us a sample", "pyarrow alone, of it", "bytes a sample"]
        print(markdown(heads, rows))


if __name__ == "__main__":
    main()
