"""What a job that precomputes latents made: its buckets, each channel's numbers, and pictures of a few latents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from asymvae.report.digest import LatentsPart, Progress, ShardRecord
from asymvae.report.distribution import Distribution
from asymvae.report.metrics import Metric, Row, Summary, spread
from asymvae.report.pictures import Pictures, Thumbnail
from asymvae.storage import filesystem
from asymvae.storage.schemas import latent_dtype_of

_MOST_PARTS: Final = 64  # that are opened, spread evenly over all
_MOST_ROWS: Final = 64  # read of each, from its beginning
_COLUMNS: Final = (
    "key",
    "index",
    "variant",
    "mean",
    "logvar",
    "shape",
    "resized_height",
    "resized_width",
    "crop",
    "hflip",
)
_WIDEST: Final = 2.5  # a channel's range in a picture: so many standard deviations each way


@dataclass(frozen=True, slots=True)
class Channel:
    """One channel over the rows read, all times ``scaling_factor``: the means' average and standard deviation, and the
    posterior's own standard deviation, on average."""

    name: str
    mean: float
    std: float
    posterior_std: float


@dataclass(frozen=True, slots=True)
class Picked:
    """One row to show. ``window``: what was encoded, as shares of the picture's sides: top, left, bottom, right."""

    row: Row
    bucket: str
    mean: NDArray[np.float32]  # (C, h, w), scaled
    window: tuple[float, float, float, float]
    hflip: bool


@dataclass(slots=True)
class Latents:
    """``buckets``: (name, rows, bytes), most rows first. ``channels`` end with all of them together. ``rows_read`` of
    ``parts_read`` parts is what they are of."""

    buckets: list[tuple[str, int, int]] = field(default_factory=list)
    scaling_factor: float = 1.0
    dtype: str = ""
    rows_read: int = 0
    parts_read: int = 0
    channels: list[Channel] = field(default_factory=list)
    summaries: list[Summary] = field(default_factory=list)
    picked: list[Picked] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def read_latents(
    out_url: str, shards: Sequence[ShardRecord], *, picks: int, progress: Progress | None = None
) -> Latents:
    """Add up the buckets of all commits, and read the beginnings of some parts, spread evenly over all.

    Args:
        picks: rows to pick for pictures, spread over the parts that are read.
    """
    parts = [(shard, part) for shard in shards for part in shard.latents]
    rows, sizes = Counter[str](), Counter[str]()
    for _, part in parts:
        rows[part.bucket] += part.rows
        sizes[part.bucket] += part.size
    made = Latents([(bucket, count, sizes[bucket]) for bucket, count in rows.most_common()])
    read = min(len(parts), _MOST_PARTS)
    chosen = [parts[number * len(parts) // read] for number in range(read)]
    places = spread([min(part.rows, _MOST_ROWS) for _, part in chosen], picks)
    sums = _Sums()
    for number, (shard, part) in enumerate(chosen):
        try:
            _read(out_url, shard, part, places[number], made, sums)
        except (OSError, ValueError, pa.ArrowException) as error:
            made.unreadable.append(f"{part.name}: {type(error).__name__}")
        if progress:
            progress("latents", number + 1, read)
    made.channels, made.summaries = sums.channels(), sums.summaries
    return made


def _read(
    out_url: str, shard: ShardRecord, part: LatentsPart, places: Sequence[int], made: Latents, sums: _Sums
) -> None:
    with filesystem.open_stream(filesystem.join(out_url, part.name)) as stream:
        file = pq.ParquetFile(stream)
        schema = file.schema_arrow
        batch = next(file.iter_batches(_MOST_ROWS, row_groups=[0], columns=list(_COLUMNS)))
    made.dtype = latent_dtype_of(schema)
    made.scaling_factor = float(schema.metadata[b"asymvae.scaling_factor"])
    shape = batch["shape"][0].as_py()
    mean, logvar = (
        _floats(batch[name].flatten(), made.dtype).reshape(-1, shape[0], shape[1] * shape[2])
        for name in ("mean", "logvar")
    )
    mean = mean * np.float32(made.scaling_factor)
    sums.add(mean, np.exp(0.5 * logvar) * np.float32(made.scaling_factor))
    made.rows_read += batch.num_rows
    made.parts_read += 1
    for place in places:
        cells = {name: batch[name][place].as_py() for name in _COLUMNS if name not in ("mean", "logvar")}
        tall, wide = cells["resized_height"], cells["resized_width"]
        top, left, bottom, right = cells["crop"]
        made.picked.append(
            Picked(
                Row(shard, cells["index"], cells["variant"], cells["key"], {}),
                part.bucket,
                mean[place].reshape(shape),
                (top / tall, left / wide, bottom / tall, right / wide),
                cells["hflip"],
            )
        )


def _floats(values: pa.Array, dtype: str) -> NDArray[np.float32]:
    numbers = values.to_numpy(zero_copy_only=False)
    if dtype == "bfloat16":
        return np.asarray((numbers.astype(np.uint32) << 16).view(np.float32))
    return np.asarray(numbers, np.float32)


class _Sums:
    """Of (N, C, n) arrays, by channel."""

    def __init__(self) -> None:
        self.summaries: list[Summary] = []
        self._count = 0
        self._sums = np.zeros((3, 0))  # of means, of their squares, of the posterior's deviations

    def add(self, mean: NDArray[np.float32], std: NDArray[np.float32]) -> None:
        """Raises ValueError where another part has other channels."""
        wide = mean.astype(np.float64)
        of_part = np.stack([wide.sum((0, 2)), (wide**2).sum((0, 2)), std.sum((0, 2), dtype=np.float64)])
        if not self._count:
            self._sums = np.zeros_like(of_part)
            about = "of the posteriors' means, times scaling_factor"
            self.summaries = [
                Summary(Metric(f"channel {number}", None, about), Distribution()) for number in range(mean.shape[1])
            ]
        if of_part.shape != self._sums.shape:
            raise ValueError("parts of other channels")
        self._sums += of_part
        self._count += mean.shape[0] * mean.shape[2]
        for number, summary in enumerate(self.summaries):
            summary.distribution.add(wide[:, number].reshape(-1))

    def channels(self) -> list[Channel]:
        if not self._count:
            return []
        each = self._sums / self._count
        columns = [(f"{number}", each[:, number]) for number in range(each.shape[1])]
        columns.append(("all", each.mean(axis=1)))
        return [
            Channel(name, float(of[0]), float(max(of[1] - of[0] ** 2, 0.0) ** 0.5), float(of[2]))
            for name, of in columns
        ]


def pictures_of(picked: Picked, shown: Pictures, side: int) -> tuple[Thumbnail | None, Thumbnail]:
    """(what was encoded, cut from the input's thumbnail, if there is one; the latent's channels in grey, side by side),
    no side longer than ``side``."""
    return _encoded(picked, shown.input), _channels(picked.mean, side)


def _encoded(picked: Picked, picture: Thumbnail | None) -> Thumbnail | None:
    if picture is None:
        return None
    height, width = picture.shape[:2]
    top, left, bottom, right = picked.window
    rows = slice(int(top * height), max(int(top * height) + 1, round(bottom * height)))
    columns = slice(int(left * width), max(int(left * width) + 1, round(right * width)))
    cut = picture[rows, columns]
    return np.ascontiguousarray(cut[:, ::-1] if picked.hflip else cut)


def _channels(mean: NDArray[np.float32], side: int) -> Thumbnail:
    """A mosaic, as square as can be, of each channel about its own middle."""
    count, height, width = mean.shape
    across = int(np.ceil(np.sqrt(count)))
    down = -(-count // across)
    centred = mean - mean.mean(axis=(1, 2), keepdims=True)
    spread_of = np.maximum(centred.std(axis=(1, 2), keepdims=True), 1e-6)
    grey = ((centred / (_WIDEST * spread_of) + 1) * 127.5).clip(0, 255).astype(np.uint8)
    mosaic = np.full((down * (height + 1) - 1, across * (width + 1) - 1), 255, np.uint8)
    for number, each in enumerate(grey):
        top, left = number // across * (height + 1), number % across * (width + 1)
        mosaic[top : top + height, left : left + width] = each
    scale = side / max(mosaic.shape)
    size = (max(1, round(mosaic.shape[1] * scale)), max(1, round(mosaic.shape[0] * scale)))
    drawn = PIL.Image.fromarray(mosaic).resize(size, PIL.Image.Resampling.NEAREST)
    return np.asarray(drawn.convert("RGB"))


def caption_of(picked: Picked) -> str:
    mirrored = ", mirrored" if picked.hflip else ""
    return f"{picked.bucket}{mirrored}  ·  mean {picked.mean.mean():.2f}  ·  std {picked.mean.std():.2f}"
