"""Reading latents, side by side: LatentDataset, pyarrow alone, a WebDataset of .npy, a folder of .npz.

By hand: ``python -m tests.peers.latents_reading``. Prints samples a second, in turns, and bytes on disk a sample.

The samples are posteriors of SD's shape at 512 px, (4, 64, 64) in float16, with a caption of 80 bytes. All ways end in
float32 batches of 32; LatentDataset samples the posterior, those beside it take mean and logvar as they are, which is
less. The files are in the page cache. The .npz are uncompressed, as kohya's scripts write them; the tars too.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import webdataset
from torch.utils.data import DataLoader, Dataset

from asymvae.benchmark.turns import Spread, in_turns, ratios
from asymvae.latents.dataset import LatentDataset
from asymvae.tables import markdown
from tests.latents.small_out import SmallOut

SHAPE = (4, 64, 64)
BATCH = 32
SHARDS = 4
PYARROW = "pyarrow alone, read_row_group"


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


def read_pyarrow(folder: Path) -> int:
    rows = 0
    for file in sorted((folder / "out/latents").rglob("*.parquet")):
        with pq.ParquetFile(file) as parquet:
            for group in range(parquet.num_row_groups):
                rows += parquet.read_row_group(group).num_rows
    return rows


def read_ours(folder: Path, workers: int, sample: bool = True) -> int:
    data = LatentDataset(str(folder / "out"), batch_size=BATCH, sample=sample)
    loader = DataLoader(data, batch_size=None, num_workers=workers)
    return sum(int((~batch["is_padding"]).sum()) for batch in loader)


def read_npz(folder: Path, workers: int) -> int:
    loader = DataLoader(NpzFolder(folder / "npz"), BATCH, shuffle=True, num_workers=workers)
    return sum(len(mean) for mean, _, _ in loader)


def as_float(sample: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, str]:
    mean, logvar = (torch.from_numpy(sample[f"{name}.npy"]).float() for name in ("mean", "logvar"))
    return mean, logvar, sample["json"]["caption"]


def read_tars(folder: Path, workers: int) -> int:
    urls = sorted(str(path) for path in (folder / "tars").iterdir())
    tars = webdataset.WebDataset(urls, shardshuffle=SHARDS).shuffle(1000).decode().map(as_float)
    loader = DataLoader(tars.batched(BATCH), batch_size=None, num_workers=workers)
    return sum(len(batch[0]) for batch in loader)


def bytes_of(folder: Path) -> int:
    """On disk, by blocks."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def timed(read: Callable[[], int], count: int) -> float:
    """Samples a second."""
    start = time.perf_counter()
    rows = read()
    if rows != count:
        raise RuntimeError(f"{rows} samples were read, there are {count}")
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(folder, arguments.samples)
        reads: dict[str, tuple[str, Callable[[], int]]] = {PYARROW: ("out", partial(read_pyarrow, folder))}
        for workers in (1, 2):
            named = "1 worker" if workers == 1 else f"{workers} workers"
            reads[f"LatentDataset, {named}"] = ("out", partial(read_ours, folder, workers))
            reads[f"LatentDataset, {named}, means alone"] = ("out", partial(read_ours, folder, workers, False))
            reads[f"WebDataset of .npy, {named}"] = ("tars", partial(read_tars, folder, workers))
            reads[f".npz an image, {named}"] = ("npz", partial(read_npz, folder, workers))
        speeds: dict[str, dict[int, float]] = {}
        ways = {name: partial(timed, read, arguments.samples) for name, (_, read) in reads.items()}
        for turn, name, speed in in_turns(ways, arguments.rounds):
            speeds.setdefault(name, {})[turn] = speed
        sizes = {where: bytes_of(folder / where) / arguments.samples for where in ("out", "tars", "npz")}
        rows = [
            [name, f"{Spread.of(list(of.values()))}", f"{ratios(of, speeds[PYARROW])}", f"{sizes[reads[name][0]]:,.0f}"]
            for name, of in speeds.items()
        ]
        print(
            f"{arguments.samples} samples, {arguments.rounds} rounds, {os.cpu_count()} cores; medians (least to most)\n"
        )
        print(markdown(["reader", "samples/s", "of pyarrow's", "bytes a sample"], rows))


if __name__ == "__main__":
    main()
