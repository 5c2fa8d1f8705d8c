"""Small things for tests of whole shards: a checkpoint, photographs-like images, masks, tars, jobs."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image

from asymvae.config import InpaintJob
from asymvae.model.autoencoder import AsymmetricAutoencoderKL

SIZES = ((64, 64), (80, 120), (57, 41))


def tiny_model(seed: int = 0) -> AsymmetricAutoencoderKL:
    torch.manual_seed(seed)
    return AsymmetricAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        down_block_out_channels=(8, 8, 8, 8),
        layers_per_down_block=1,
        up_block_types=("UpDecoderBlock2D",) * 4,
        up_block_out_channels=(8, 16, 32, 32),
        layers_per_up_block=1,
        norm_num_groups=4,
        sample_size=64,
    ).eval()


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth colours with some texture, (height, width, 3)."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    return (smooth + rng.integers(-8, 9, (height, width, 3))).clip(0, 255).astype(np.uint8)


def box_mask(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """White where the hole is: a box of a quarter of the area or so."""
    rng = np.random.default_rng(seed)
    top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
    mask = np.zeros((height, width), np.uint8)
    mask[top : top + height // 2, left : left + width // 2] = 255
    return mask


def file_bytes(array: NDArray[np.uint8], image_format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, image_format, **options)
    return out.getvalue()


def sample(number: int, size: tuple[int, int] | None = None) -> dict[str, bytes]:
    height, width = size or SIZES[number % len(SIZES)]
    return {
        "png": file_bytes(picture(height, width, number), "PNG"),
        "mask.png": file_bytes(box_mask(height, width, number), "PNG"),
    }


def write_tar(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, fields in samples:
            for name, content in fields.items():
                member = tarfile.TarInfo(f"{key}.{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def write_shards(folder: Path, shards: int, samples: int) -> str:
    """Shards of several image sizes, each with one image that is cut off; the URL of all."""
    for shard in range(shards):
        made = [(f"s{shard}-{number:04d}", sample(number + 100 * shard)) for number in range(samples)]
        made[samples // 2][1]["png"] = made[samples // 2][1]["png"][:200]
        write_tar(folder / f"{shard:05d}.tar", made)
    return str(folder / "*.tar")


def job(urls: str, out: Path | str, checkpoint: Path | str, **settings: Any) -> InpaintJob:
    """A CPU job; ``settings`` by section, such as ``mask={"feather": 0}``."""
    workers = {"gpus": 0, "cpu_threads": 1, "batch_size": 4} | settings.pop("workers", {})
    values = {
        "input": {"urls": urls} | settings.pop("input", {}),
        "output": {"url": str(out)} | settings.pop("output", {}),
        "model": {"path": str(checkpoint)} | settings.pop("model", {}),
        "workers": workers,
        "max_error_fraction": 0.5,
    }
    return InpaintJob(**(values | settings))


def parts_of(out: Path | str) -> dict[str, bytes]:
    """Every part below a local OUT, by its path."""
    root = Path(out)
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.glob("*/**/*.parquet"))}


def rows_of(out: Path | str, kind: str) -> list[dict[str, Any]]:
    """Every row of a local OUT's parts of one kind, in the order of the shards' names."""
    return [row for path in sorted(Path(out, kind).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def pixels_of(row: dict[str, Any]) -> NDArray[np.uint8]:
    """The image of a row of results."""
    return np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
