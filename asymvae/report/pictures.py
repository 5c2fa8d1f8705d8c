"""The pictures of a few chosen rows: input, hole and result, read again from the input's shards and the results."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from asymvae.faults import Fault
from asymvae.media.image import decode_image
from asymvae.media.mask import blend_mask, decode_mask, resize_mask
from asymvae.report.digest import Digest, Progress, ShardRecord
from asymvae.report.metrics import Row
from asymvae.storage import filesystem
from asymvae.storage.samples import FieldNames, Sample, read_shard
from asymvae.storage.shards import list_shards

Thumbnail = NDArray[np.uint8]  # (h, w, 3), no side longer than asked for
Id = tuple[str, int, int]  # shard's name, index, variant

_TINT: Final = np.array([236, 0, 140], np.float32)  # rare in photographs
_TINTED: Final = 0.62  # of the hole's colour; the rest shows what was there
_ROWS: Final = 16  # results are read so many at a time


@dataclass(slots=True)
class Pictures:
    """Thumbnails of one row, of one size; None where it can't be shown, and ``note`` says why."""

    input: Thumbnail | None = None
    hole: Thumbnail | None = None
    result: Thumbnail | None = None
    note: str = ""


def row_id(row: Row) -> Id:
    return row.shard.name, row.index, row.variant


def read_pictures(
    out_url: str, digest: Digest, rows: Iterable[Row], *, side: int, progress: Progress | None = None
) -> dict[Id, Pictures]:
    """Thumbnails of ``rows``, at most ``side`` px long, never enlarged.

    Shard by shard: one full-size sample is in memory at a time. A shard is streamed up to the last chosen sample.
    An input that is gone, or no longer what it was when the job ran, is a note.
    """
    by_shard: dict[str, list[Row]] = defaultdict(list)
    for row in {row_id(row): row for row in rows}.values():
        by_shard[row.shard.name].append(row)
    pictures: dict[Id, Pictures] = {}
    for number, chosen in enumerate(by_shard.values(), 1):
        pictures.update((row_id(row), Pictures()) for row in chosen)
        _add_inputs(digest.job, chosen, pictures, side)
        _add_results(out_url, digest.job, chosen, pictures, side)
        if progress:
            progress("pictures", number, len(by_shard))
    return pictures


def _add_inputs(job: Mapping[str, Any], rows: list[Row], pictures: Mapping[Id, Pictures], side: int) -> None:
    wanted: dict[int, list[Pictures]] = defaultdict(list)
    for row in rows:
        wanted[row.index].append(pictures[row_id(row)])

    def note(text: str) -> None:
        for every in wanted.values():
            for picture in every:
                picture.note = text

    settings = job["settings"]["input"]
    names = FieldNames(_names(settings, "image"), _names(settings, "mask"), (), (), (), settings.get("key"))
    record: ShardRecord = rows[0].shard
    try:
        shard = list_shards(record.input_url, root=job["input"]["root"], format=settings["format"])[0]
        if shard.version != record.input_version:
            note("the input has changed since")
            return
        for sample in read_shard(shard, names):
            if isinstance(sample, Sample) and sample.index in wanted:
                image, hole, why = _show(sample, job, side)
                for picture in wanted.pop(sample.index):
                    picture.input, picture.hole, picture.note = image, hole, why
                if not wanted:
                    return
        note("the sample is not in the input any more")
    except (OSError, ValueError):  # also what its credentials, which no record keeps, would open
        note("the input can't be read")


def _names(settings: Mapping[str, Any], role: str) -> tuple[str, ...]:
    return tuple(settings.get(role) or ())


def _show(sample: Sample, job: Mapping[str, Any], side: int) -> tuple[Thumbnail | None, Thumbnail | None, str]:
    """(input, hole, why one is missing) of one sample."""
    settings = job["settings"]
    limit = settings["input"].get("max_pixels", 64_000_000)
    image = decode_image(sample.fields.get("image", b""), max_pixels=limit)
    if isinstance(image, Fault):
        return None, None, image.message
    shown = _on_white(image.pixels, image.alpha)
    picture = _reduce(shown, side)
    mask = decode_mask(
        sample.fields.get("mask", b""),
        max_pixels=limit,
        polarity=settings["input"].get("mask_polarity", "white_is_hole"),
    )
    if not isinstance(mask, Fault):
        mask = resize_mask(mask, *shown.shape[:2])
    if isinstance(mask, Fault):
        return picture, None, mask.message
    grown = settings.get("mask", {})
    blend = blend_mask(mask, dilate=grown.get("dilate", 0), feather=grown.get("feather", 0))
    return picture, tinted(picture, _reduce((blend * 255).astype(np.uint8), side) / 255), ""


def tinted(picture: Thumbnail, hole: NDArray[np.floating[Any]]) -> Thumbnail:
    """The picture with its hole, (h, w) in [0, 1], in a colour that lets through what was there."""
    weight = (hole[..., None] * _TINTED).astype(np.float32)
    return np.asarray((picture * (1 - weight) + _TINT * weight).round(), np.uint8)


def _add_results(
    out_url: str, job: Mapping[str, Any], rows: list[Row], pictures: Mapping[Id, Pictures], side: int
) -> None:
    wanted = {(row.index, row.variant): pictures[row_id(row)] for row in rows}
    part = rows[0].shard.results_part
    if part is None:
        return
    limit = job["settings"]["input"].get("max_pixels", 64_000_000)
    try:
        with filesystem.open_stream(filesystem.join(out_url, part)) as stream:
            file = pq.ParquetFile(stream)
            for group in range(file.num_row_groups):
                ids = file.read_row_group(group, columns=["index", "variant"]).to_pydict()
                places = {id_: place for place, id_ in enumerate(zip(ids["index"], ids["variant"], strict=True))}
                here = {places[id_]: picture for id_, picture in wanted.items() if id_ in places}
                begin = 0
                for batch in file.iter_batches(batch_size=_ROWS, row_groups=[group], columns=["image.bytes"]):
                    for place in [place for place in here if begin <= place < begin + batch.num_rows]:
                        picture = here.pop(place)
                        result = decode_image(batch["image"][place - begin]["bytes"].as_py(), max_pixels=limit)
                        if isinstance(result, Fault):
                            picture.note = f"the result can't be shown: {result.message}"
                        else:
                            picture.result = _reduce(_on_white(result.pixels, result.alpha), side)
                    begin += batch.num_rows
                    if not here:
                        break
    except (OSError, pa.ArrowException):
        for picture in wanted.values():
            picture.note = picture.note or "the results part can't be read; jobs.audit says more"


def _on_white(pixels: Thumbnail, alpha: NDArray[np.uint8] | None) -> Thumbnail:
    """What is transparent has colours that nobody was to see."""
    if alpha is None:
        return pixels
    weight = alpha[..., None].astype(np.uint16)
    return ((pixels * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)


def _reduce(array: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    height, width = array.shape[:2]
    scale = min(1.0, side / max(height, width))
    if scale == 1:
        return array
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(PIL.Image.fromarray(array).resize(size, PIL.Image.Resampling.LANCZOS))
