"""What each door owes to any bytes: a value within its limits or a declared fault, and the same when asked again.

A law takes the bytes, a number that chooses the options, and a folder for files, and returns the outcome in a word.
AssertionError is a broken law; any other exception is one that the door doesn't declare.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from asymvae.faults import FAULTS, Fault
from asymvae.media.image import Image, decode_image, encode_image, probe_shown, probe_size
from asymvae.media.mask import blend_mask, decode_mask, hole_box, resize_mask
from asymvae.storage.samples import BadSample, FieldNames, Sample, read_shard
from asymvae.storage.shards import Shard

MAX_PIXELS = 10**6
MOST_ROWS = 5000  # a damaged count may promise any number of rows, all of them null

_IMAGE_FAULTS = {f"image_{what}" for what in ("empty", "undecodable", "truncated", "too_large", "unsupported")}
_MASK_FAULTS = {code.replace("image_", "mask_") for code in _IMAGE_FAULTS}
_SHARD_FAULTS = {
    "tar": {"shard_empty", "tar_truncated", "tar_corrupt", "tar_trailing_data", "gzip_corrupt"},
    "parquet": {"shard_empty", "parquet_unreadable", "parquet_corrupt"},
    "latents": {"parquet_unreadable", "parquet_corrupt", "latents_column", "latents_unscaled"},
}
_FIELDS = FieldNames(("jpg", "png", "webp", "image"), ("mask.png", "mask"), ("txt",), (), ("json",))
_KEYED = FieldNames(_FIELDS.image, _FIELDS.mask, _FIELDS.prompt, (), _FIELDS.json, "key")

Law = Callable[[bytes, int, Path], str]


def image(data: bytes, number: int, folder: Path) -> str:
    """decode_image, probe_size and probe_shown agree; what was decoded is encoded and comes back."""
    times = (1, 1, 2, 4, 8)[number % 5]
    size, shown = probe_size(data), probe_shown(data)
    decoded = decode_image(data, max_pixels=MAX_PIXELS, times=times)
    for probed in (size, shown):
        if isinstance(probed, Fault):
            _declared(probed, _IMAGE_FAULTS)
    if isinstance(decoded, Fault):
        return _declared(decoded, _IMAGE_FAULTS)
    height, width = decoded.pixels.shape[:2]
    _check_image(decoded)
    assert decoded.size[0] * decoded.size[1] <= MAX_PIXELS, decoded.size
    # the memory that a sample may take is reserved by what was probed
    assert isinstance(size, tuple), f"decoded, but probed as {size}"
    assert sorted(size) == sorted(decoded.size), (size, decoded.size)
    assert isinstance(shown, tuple), f"decoded, but probed as {shown}"
    if shown[1]:
        assert shown[0] == decoded.size, (shown, decoded.size)
    if decoded.reduced == 1:
        assert decoded.whole is None
    else:
        assert (height, width) == tuple(-(-side // times) for side in decoded.size), (decoded.size, times, height)
    again = decode_image(data, max_pixels=MAX_PIXELS, times=times)
    assert isinstance(again, Image)
    assert np.array_equal(decoded.pixels, again.pixels), "the second time other pixels"
    assert (decoded.alpha is None) == (again.alpha is None)
    if decoded.alpha is not None:
        assert np.array_equal(decoded.alpha, np.asarray(again.alpha)), "the second time another alpha"
    if number % 8 == 0:
        kept = encode_image(decoded.pixels, decoded.alpha, image_format="png" if number % 16 else "webp")
        if not isinstance(kept, Fault):
            back = decode_image(kept, max_pixels=MAX_PIXELS)
            assert isinstance(back, Image), back
            assert np.array_equal(back.pixels, decoded.pixels), "not lossless"
    return "decoded"


def _check_image(decoded: Image) -> None:
    height, width = decoded.pixels.shape[:2]
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.shape == (height, width, 3)
    assert height * width > 0
    if decoded.alpha is not None:
        assert decoded.alpha.dtype == np.uint8
        assert decoded.alpha.shape == (height, width)


def mask(data: bytes, number: int, folder: Path) -> str:
    """decode_mask: in [0, 1], the same the second time, and its polarity turns it round; then what is made of it."""
    decoded = decode_mask(data, max_pixels=MAX_PIXELS, polarity="white_is_hole")
    turned = decode_mask(data, max_pixels=MAX_PIXELS, polarity="black_is_hole")
    if isinstance(decoded, Fault):
        assert turned == decoded
        return _declared(decoded, _MASK_FAULTS)
    assert not isinstance(turned, Fault)
    assert decoded.dtype == turned.dtype == np.float32
    assert decoded.ndim == 2
    assert 0 < decoded.size <= MAX_PIXELS
    assert 0 <= decoded.min() <= decoded.max() <= 1  # NaN is neither
    assert np.allclose(turned, 1 - decoded, rtol=0, atol=1e-7), "the second time another mask"
    height, width = decoded.shape
    resized = resize_mask(decoded, *((20, 28), (height, width), (height * 2, width * 2))[number % 3])
    if isinstance(resized, Fault):
        return _declared(resized, {"mask_aspect"})
    blend = blend_mask(resized, dilate=number % 4, feather=number % 3)
    assert bool((blend[resized >= 0.5] == resized[resized >= 0.5]).all()) or number % 4 + number % 3 > 0
    assert (hole_box(resized >= 0.5) is None) <= (hole_box(blend >= 0.5) is None)
    return "decoded"


def tar(data: bytes, number: int, folder: Path) -> str:
    """Each planned row once, as a result or an error; a fault of the archive comes last, once."""
    return _shard(data, folder / "shard.tar", "tar", _FIELDS, number)


def parquet(data: bytes, number: int, folder: Path) -> str:
    """Each planned row once, in order; faults of row groups in between."""
    return _shard(data, folder / "shard.parquet", "parquet", _KEYED if number % 2 else _FIELDS, number)


def _shard(data: bytes, path: Path, door: str, fields: FieldNames, number: int) -> str:
    path.write_bytes(data)
    shard = Shard(str(path), "shard", "webdataset" if door == "tar" else "parquet", len(data), "")
    inpainting = _inpainting()
    last, faults, rows, keys = -1, [], 0, set()
    for row in _some(read_shard(shard, fields)):
        if row.index is None:
            assert isinstance(row, BadSample)
            faults.append(_declared(row.fault, _SHARD_FAULTS[door]))
            continue
        assert row.index > last, (row.index, last)
        assert door == "parquet" or row.index == last + 1, (row.index, last)
        assert door == "parquet" or not faults, "a row after the archive's own fault"
        last, rows = row.index, rows + 1
        if row.key is not None:
            row.key.encode()  # what a part's column of strings takes
        if isinstance(row, BadSample):
            _declared(row.fault, set(FAULTS))
            assert (row.key in keys) == (row.fault.code == "duplicate_key")  # None never is
        else:
            assert row.key not in keys, "a key for a second time"
            inpainting(row, number)
        if row.key is not None:
            keys.add(row.key)
    assert door == "parquet" or len(faults) <= 1, faults
    return Counter(faults).most_common(1)[0][0] if faults else "whole" if rows else "nothing in it"


def _some(rows: Iterator[Any]) -> Iterator[Any]:
    for count, row in enumerate(rows):
        if count == MOST_ROWS:
            return
        yield row


class _Inpainting:
    """The steps of the inpainting job around a network that makes noise."""

    def __init__(self) -> None:
        # late: torch takes seconds, and the other doors do without
        from asymvae.config import InpaintJob
        from asymvae.pipeline.kinds.inpaint import DEVICE_METRICS, InpaintKind
        from asymvae.stages.prepare import Prepare

        self.kinds = []
        for mode in ("crop_to_hole", "whole", "fit", "buckets"):
            job = InpaintJob(
                input={"urls": "in/*.tar", "max_pixels": MAX_PIXELS},  # type: ignore[arg-type]
                output={"url": "out"},  # type: ignore[arg-type]
                inpaint={"method": "none", "variants": 2},  # type: ignore[arg-type]
                geometry={"mode": mode, "max": 256},  # type: ignore[arg-type]
            )
            kind = InpaintKind(job, "noise")
            kind._prepare = Prepare(job, kind.inpainter, 8)
            self.kinds.append(kind)
        self.metrics = np.zeros(len(DEVICE_METRICS), np.float32)

    def __call__(self, row: Sample, number: int) -> None:
        from asymvae.pipeline.kinds.base import Done

        kind = self.kinds[number % len(self.kinds)]
        cost = kind.cost(row)
        assert cost >= 0
        planned = kind.prepare(row)
        if isinstance(planned, Fault):
            _declared(planned, set(FAULTS))
            return
        assert planned.prepared.original.pixels.size * 8 <= cost, "costs more than was reserved"
        made = {item.variant: item for item in planned.items}
        assert set(made) in (set(), {0, 1})
        for variant in kind.numbers(row):
            done = None
            if made:
                noise = np.random.default_rng(variant).integers(0, 256, made[variant].image.shape, np.uint8)
                done = Done(made[variant], {"pixels": noise, "metrics": self.metrics}, None)
            rows = kind.finish(planned, variant, done)
            if isinstance(rows, Fault):
                _declared(rows, {"image_format_limit"})
                continue
            assert rows["metrics"]["max_abs_known"] in (0, None), "a known pixel has changed"
            back = decode_image(rows["results"]["image"]["bytes"], max_pixels=MAX_PIXELS)
            assert isinstance(back, Image), back
            known = planned.prepared.blend == 0
            assert np.array_equal(back.pixels[known], planned.prepared.original.pixels[known]), "in the file"


_made: list[_Inpainting] = []


def _inpainting() -> _Inpainting:
    if not _made:
        _made.append(_Inpainting())
    return _made[0]


def latents(data: bytes, number: int, folder: Path) -> str:
    """Rows in order, each once, joined with originals in two of three cases."""
    from asymvae.config_latents import DecodeJob
    from asymvae.stages.prepare_decode import PrepareDecode
    from asymvae.storage.latents import LatentColumns, LatentRow, read_latents
    from tests.fuzz.seeds import originals

    path, beside = folder / "latents.parquet", folder / "originals.tar"
    path.write_bytes(data)
    beside.write_bytes(originals())
    joined = number % 3 > 0
    shard = Shard(str(path), "latents", "parquet", len(data), "", beside=str(beside) if joined else None)
    columns = LatentColumns("mean", "key", None, (None, 0.5)[number % 2])
    names = FieldNames(("jpg", "png", "webp"), ("mask.png",), (), (), ())
    job = DecodeJob(
        input={"urls": "in/*.parquet"},  # type: ignore[arg-type]
        output={"url": "out"},  # type: ignore[arg-type]
        originals={"urls": "of/*.tar", "max_pixels": MAX_PIXELS} if joined else {},  # type: ignore[arg-type]
    )
    prepare = PrepareDecode(job, 8, 4)
    last, faults, rows, seen = -1, [], 0, set()
    for row in _some(read_latents(shard, columns, ("webdataset", names) if joined else None, folder)):
        if row.index is None:
            assert isinstance(row, BadSample)
            faults.append(_declared(row.fault, _SHARD_FAULTS["latents"]))
            continue
        assert row.index > last, (row.index, last)
        last, rows = row.index, rows + 1
        row.key.encode()
        assert isinstance(row, LatentRow)
        assert isinstance(row.variant, int)
        assert -(2**31) <= row.variant < 2**31, "no variant that a part can hold"
        if row.fault is not None:
            _declared(row.fault, set(FAULTS))
            continue
        assert (row.key, row.variant) not in seen
        seen.add((row.key, row.variant))
        assert row.values.dtype == np.float32
        assert row.values.ndim == 3
        assert row.values.size > 0
        planned = prepare(row.index, row.key, row.variant, row.values, row.placed, row.caption, row.fields)
        if isinstance(planned, Fault):
            _declared(planned, set(FAULTS))
            continue
        assert len(planned.crop) == 4, planned.crop
        assert all(0 <= side < 2**31 for side in planned.crop), planned.crop
        for item in planned.items:
            if item.shown is not None:
                assert item.shown.pixels.shape == (*item.size, 3)
                assert item.shown.mask.shape == item.shown.blend.shape == item.size
    return Counter(faults).most_common(1)[0][0] if faults else "whole" if rows else "nothing in it"


def _declared(fault: Fault, codes: set[str]) -> str:
    assert fault.code in codes, f"undeclared here: {fault}"
    assert fault.message
    return fault.code


LAWS: dict[str, Law] = {"image": image, "mask": mask, "tar": tar, "parquet": parquet, "latents": latents}
