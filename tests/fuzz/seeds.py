"""The files that mutation begins with: real ones and small ones of every kind, by door and name."""

from __future__ import annotations

import functools
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import ImageCms

from asymvae.storage.schemas import latents_schema
from tests.media.files import chunk, exif, photo, png16, save, tiff, tiff16

SAMPLES = Path(__file__).parents[2] / "configs" / "samples"
_SMALL = photo(20, 28)
_PICTURE = PIL.Image.fromarray(_SMALL)


def seeds(door: str, *, real: bool = True) -> dict[str, bytes]:
    """By name. ``real``: the sample photographs too, which take longer."""
    return {"image": _images, "mask": _masks, "tar": _tars, "parquet": _parquets, "latents": _latents}[door](real)


def real_samples() -> Iterator[tuple[str, bytes]]:
    """(name, content) of every member of the sample shards."""
    for path in sorted(SAMPLES.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                content = archive.extractfile(member)
                if content is not None:
                    yield member.name, content.read()


def _images(real: bool) -> dict[str, bytes]:
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    alpha = PIL.Image.fromarray(np.dstack([_SMALL, _SMALL[..., 0]]))
    frames = [PIL.Image.fromarray(np.roll(_SMALL, shift, axis=1)) for shift in (0, 5, 9)]
    palette, grey, wide = _PICTURE.quantize(16), PIL.Image.fromarray(_SMALL[..., 0]), _SMALL.astype(np.uint16) * 257
    animated: dict[str, Any] = {"save_all": True, "append_images": frames[1:]}
    found = {
        "jpeg": save(_SMALL, "JPEG"),
        "jpeg icc exif": save(_SMALL, "JPEG", icc_profile=icc, exif=exif(6)),
        "jpeg lab profile": save(_SMALL, "JPEG", icc_profile=lab),
        "jpeg progressive": save(_SMALL, "JPEG", progressive=True),
        "jpeg restarts": save(_SMALL, "JPEG", restart_marker_rows=1),
        "jpeg cmyk": save(_PICTURE.convert("CMYK"), "JPEG"),
        "jpeg grey": save(grey, "JPEG"),
        "jpeg 411": save(photo(), "JPEG", subsampling=2, quality=40),
        "png": save(_SMALL, "PNG"),
        "png icc exif": save(_SMALL, "PNG", icc_profile=icc, exif=exif(3)),
        "png alpha": save(alpha, "PNG"),
        "png grey": save(grey, "PNG"),
        "png 1 bit": save(_PICTURE.convert("1"), "PNG"),
        "png key": save(grey, "PNG", transparency=100),
        "png palette": save(palette, "PNG"),
        "png palette key": save(palette, "PNG", transparency=bytes(range(0, 160, 10))),
        "png animated": save(frames[0], "PNG", **animated),
        "png 16 bits": png16(wide, before=chunk(b"gAMA", b"\0\0\xb1\x8f")),
        "png 16 bits alpha": png16(np.dstack([wide, wide[..., 0]])),
        "webp": save(_SMALL, "WEBP", icc_profile=icc, exif=exif(8)),
        "webp lossless": save(_SMALL, "WEBP", lossless=True),
        "webp alpha": save(alpha, "WEBP"),
        "webp animated": save(frames[0], "WEBP", **animated),
        "gif": save(_SMALL, "GIF"),
        "gif key": save(palette, "GIF", transparency=3),
        "gif animated": save(frames[0], "GIF", **animated),
        "bmp": save(_SMALL, "BMP"),
        "bmp palette": save(palette, "BMP"),
        "bmp 1 bit": save(_PICTURE.convert("1"), "BMP"),
        "bmp alpha": save(alpha, "BMP"),
        "bmp rle": _bmp_rle(),
        "avif": save(_SMALL, "AVIF", icc_profile=icc, exif=exif(6)),
        "avif alpha": save(alpha, "AVIF"),
        "avif animated": save(frames[0], "AVIF", **animated),
        "tiff": save(_SMALL, "TIFF", exif=exif(7), icc_profile=icc),
        "tiff directory first": tiff(_SMALL.tobytes(), 20, 28, bits=8, channels=3),
        "tiff planes": tiff(np.moveaxis(_SMALL, 2, 0).tobytes(), 20, 28, bits=8, channels=3, tags={284: 2}),
        "tiff tiles": tiff(bytes(32 * 32 * 3), 20, 28, bits=8, channels=3, tags={322: 32, 323: 32, 324: 8, 325: 3072}),
        "tiff cmyk": save(_PICTURE.convert("CMYK"), "TIFF"),
        "tiff palette": save(palette, "TIFF"),
        "tiff alpha": save(alpha, "TIFF", compression="packbits"),
        "tiff big": save(_SMALL, "TIFF", big_tiff=True),
        "tiff group 4": save(_PICTURE.convert("1"), "TIFF", compression="group4"),
        "tiff deflate": save(_SMALL, "TIFF", compression="tiff_adobe_deflate"),
        "tiff lzw": save(_SMALL, "TIFF", compression="tiff_lzw"),
        "tiff jpeg": save(_SMALL, "TIFF", compression="jpeg"),
        "tiff 16 bits": tiff16(wide),
        "tiff 16 bits grey": tiff16(np.ascontiguousarray(wide[..., 0])),
        "tiff float": save(PIL.Image.fromarray(_SMALL[..., 0].astype(np.float32)), "TIFF"),
    }
    if real:
        found |= {f"sample {name}": data for name, data in real_samples() if name.endswith(".jpg")}
    return found


def _bmp_rle() -> bytes:
    """Of 8 bits, run lengths: what Pillow reads and doesn't write."""
    rows = b"".join(bytes((28, row % 16)) + b"\0\0" for row in range(20)) + b"\0\1"
    table = b"".join(bytes((i, 255 - i, i // 2, 0)) for i in range(256))
    offset = 14 + 40 + len(table)
    header = b"".join(n.to_bytes(4, "little") for n in (40, 28, 20, 1 | 8 << 16, 1, len(rows), 0, 0, 256, 0))
    return b"BM" + b"".join(n.to_bytes(4, "little") for n in (offset + len(rows), 0, offset)) + header + table + rows


def _mask() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    mask = np.zeros((20, 28), np.uint8)
    mask[4:11, 6:19] = 255
    mask[15, 25] = 130
    return mask


def _masks(real: bool) -> dict[str, bytes]:
    mask = PIL.Image.fromarray(_mask())
    colours = PIL.Image.merge("RGB", [mask] * 3)
    found = {
        "png": save(mask, "PNG"),
        "png 1 bit": save(mask.convert("1"), "PNG"),
        "png colours": save(colours, "PNG"),
        "png alpha": save(PIL.Image.merge("RGBA", [mask] * 4), "PNG"),
        "png grey alpha": save(PIL.Image.merge("LA", [mask] * 2), "PNG"),
        "png palette": save(mask.convert("P"), "PNG"),
        "png 16 bits": png16(_mask().astype(np.uint16)[..., None] * 257),
        "jpeg": save(mask, "JPEG", exif=exif(6)),
        "webp": save(colours, "WEBP", lossless=True),
        "gif": save(mask, "GIF"),
        "bmp": save(mask.convert("1"), "BMP"),
        "tiff": save(mask.convert("1"), "TIFF", compression="group4"),
        "tiff deflate": save(mask, "TIFF", compression="tiff_adobe_deflate"),
        "avif": save(colours, "AVIF"),
    }
    if real:
        found |= {f"sample {name}": data for name, data in real_samples() if name.endswith(".mask.png")}
    return found


def pair(number: int) -> dict[str, bytes]:
    """A small sample: its fields by a tar's names."""
    mask = np.roll(_mask(), 3 * number, axis=1)
    image = save(np.roll(_SMALL, number, axis=0), ("JPEG", "PNG", "WEBP")[number % 3])
    return {
        ("jpg", "png", "webp")[number % 3]: image,
        "mask.png": save(PIL.Image.fromarray(mask), "PNG"),
        "txt": f"picture {number}".encode(),
        "json": b'{"asymvae": {"seed": %d}, "source": "a book"}' % number,
    }


def _archive(format: int, name: str = "s{}") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format, encoding="utf-8") as archive:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for number in range(4):
            for field, content in pair(number).items():
                member = tarfile.TarInfo(f"{name.format(number)}.{field}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("s9.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return out.getvalue()


def _tars(real: bool) -> dict[str, bytes]:
    """Gzipped ones come of these when they have been mutated; see :func:`tests.fuzz.mutate.compressed`."""
    found = {
        "ustar": _archive(tarfile.USTAR_FORMAT),
        "gnu": _archive(tarfile.GNU_FORMAT),
        "gnu long names": _archive(tarfile.GNU_FORMAT, "a/" * 70 + "s{}"),
        "pax": _archive(tarfile.PAX_FORMAT, "Bücher/" * 20 + "s{}"),
        "one key": _archive(tarfile.USTAR_FORMAT, "s"),
    }
    if real:
        found |= {path.name: path.read_bytes() for path in sorted(SAMPLES.glob("*.tar"))}
    return found


def _table(table: pa.Table, **options: Any) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, **options)
    return out.getvalue()


def _parquets(real: bool) -> dict[str, bytes]:
    pairs = [pair(number) for number in range(6)]
    images = [next(content for name, content in fields.items() if name in ("jpg", "png", "webp")) for fields in pairs]
    masks = [fields["mask.png"] for fields in pairs]
    columns: dict[str, Any] = {
        "key": [f"k{number}" for number in range(6)],
        "image": images,
        "mask": masks,
        "txt": [f"picture {number}" for number in range(6)],
        "json": [b'{"asymvae": {"seed": %d}}' % number for number in range(6)],
    }
    plain = pa.table(columns)
    structs = columns | {
        "image": pa.array([{"bytes": image, "path": "nowhere.png"} for image in images]),
        "json": pa.array([{"asymvae": {"seed": number}, "tags": ["a", None]} for number in range(6)]),
    }
    others = columns | {
        "key": pa.array(range(6), pa.int16()),
        "image": pa.array(images, pa.large_binary()),
        "mask": pa.array(masks).dictionary_encode(),
        "txt": pa.array(["a", None, "b", "", None, "ü"], pa.large_string()),
        "score": [0.5, None, float("nan"), 1.0, 2.0, 3.0],
        "box": [[1, 2], [], None, [3], [4, 5, 6], [0]],
    }
    found = {
        "plain": _table(plain, compression="none", row_group_size=2, write_page_checksum=True),
        "no checksums": _table(plain, compression="none", row_group_size=3),
        "snappy": _table(plain, compression="snappy", data_page_version="2.0"),
        "zstd": _table(plain, compression="zstd", row_group_size=2, write_page_checksum=True),
        "gzip": _table(plain, compression="gzip", use_dictionary=False),
        "brotli": _table(plain, compression="brotli"),
        "lz4": _table(plain, compression="lz4", data_page_version="2.0", write_page_checksum=True),
        "structs": _table(pa.table(structs), compression="none", row_group_size=3),
        "others": _table(pa.table(others), compression="none", row_group_size=4),
        "delta": _table(
            plain,
            compression="none",
            use_dictionary=False,
            column_encoding={"txt": "DELTA_BYTE_ARRAY", "key": "DELTA_LENGTH_BYTE_ARRAY"},
        ),
        "paths": _table(pa.table({"key": ["a", "b"], "image": ["a.png", "b.png"], "mask": ["m.png", None]})),
    }
    if real:
        rows = [(name, data) for name, data in real_samples()]
        table = pa.table(
            {
                "key": [name.removesuffix(".jpg") for name, _ in rows if name.endswith(".jpg")][:6],
                "image": [data for name, data in rows if name.endswith(".jpg")][:6],
                "mask": [data for name, data in rows if name.endswith(".mask.png")][:6],
            }
        )
        found["samples"] = _table(table, row_group_size=2, write_page_checksum=True)
    return found


@functools.cache
def originals() -> bytes:
    """The tar that the latents below were made of."""
    return _archive(tarfile.USTAR_FORMAT, "k{}")


def _latents(real: bool) -> dict[str, bytes]:
    found = {}
    for dtype, values in (("float16", np.float16), ("bfloat16", np.uint16), ("float32", np.float32)):
        schema = latents_schema(dtype, scaling_factor=0.18215)  # type: ignore[arg-type]
        rng = np.random.default_rng(0)
        rows = [
            dict.fromkeys(schema.names)
            | {
                "key": f"k{number}", "variant": 0, "index": number, "shape": [4, 2, 3], "caption": f"picture {number}",
                "mean": rng.normal(size=24).astype(values), "logvar": rng.normal(size=24).astype(values),
                "original_height": 20, "original_width": 28, "resized_height": 18, "resized_width": 25,
                "crop": [1, 0, 17, 24], "hflip": number % 2 == 1, "json": "{}", "source_sha256": "00",
            }
            for number in range(4)
        ]  # fmt: skip
        table = pa.Table.from_pylist(rows, schema=schema)
        found[dtype] = _table(table, compression="zstd", row_group_size=3, write_page_checksum=True)
        found[f"{dtype} plain"] = _table(table, compression="none", use_dictionary=False)
    return found
