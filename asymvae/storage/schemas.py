"""Every column of every output, once.

All fields are nullable for Arrow, also those that are never null: Hugging Face datasets take the types that
the metadata names only where the field is exactly theirs, which is nullable. But the numbers within a latent are not:
without a level for each of 16,384 numbers a row is read in two thirds of the time, and datasets take that too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, Literal

import pyarrow as pa

FORMAT_VERSION: Final = 3  # of the output: part of the fingerprint
IMAGE: Final = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # an encoded file, and its name
LatentDtype = Literal["float16", "bfloat16", "float32"]
# Parquet and Arrow have no bfloat16: its bit patterns are kept in 16-bit integers, exactly.
LATENT_TYPES: Final[dict[LatentDtype, pa.DataType]] = {
    "float16": pa.float16(),
    "bfloat16": pa.uint16(),
    "float32": pa.float32(),
}
_DTYPES: Final = {"float": "float32", "double": "float64", "halffloat": "float16"}  # where Arrow's name differs


def output_schema(kind: str, fields: list[pa.Field]) -> pa.Schema:
    """A schema that says what it is: ``kind`` ("results"), the format's version, and the columns' types for
    Hugging Face datasets, so that a struct of ``{bytes, path}`` opens as an image."""
    features = {field.name: _feature(field.type) for field in fields}
    return pa.schema(
        fields,
        metadata={
            "asymvae.kind": kind,
            "asymvae.format_version": str(FORMAT_VERSION),
            "huggingface": json.dumps({"info": {"features": features}}, sort_keys=True),
        },
    )


def kind_of(schema: pa.Schema) -> str:
    """The kind that a schema of ours says it is. ValueError for another's."""
    metadata: Mapping[bytes, bytes] = schema.metadata or {}
    if b"asymvae.kind" not in metadata:
        raise ValueError("the schema has no kind; make it with asymvae.storage.schemas.output_schema")
    return metadata[b"asymvae.kind"].decode()


def _feature(column: pa.DataType) -> dict[str, Any]:
    if column == IMAGE:
        return {"_type": "Image"}
    if pa.types.is_list(column):
        return {"_type": "Sequence", "feature": _feature(column.value_type)}
    return {"_type": "Value", "dtype": _DTYPES.get(str(column), str(column))}


RESULTS: Final = output_schema(
    "results",
    [
        pa.field("key", pa.string()),
        pa.field("variant", pa.int32()),
        pa.field("index", pa.int64()),  # of the sample in its shard, from 0
        pa.field("image", IMAGE),  # path: <key>.<png|jpg|webp>
        pa.field("width", pa.int32()),  # of the result, which is the original's
        pa.field("height", pa.int32()),
        pa.field("seed", pa.uint64()),  # of this row's random numbers
        pa.field("prompt", pa.string()),  # that the hole was filled with; null: the method takes none
        pa.field("negative_prompt", pa.string()),
        pa.field("crop", pa.list_(pa.int32())),  # top, left, bottom, right: what the network saw of the original
        pa.field("work_width", pa.int32()),  # of the work image, without padding; else the original's
        pa.field("work_height", pa.int32()),
        pa.field("passed_through", pa.bool_()),  # no hole: the original's pixels
        pa.field("bit_depth_reduced", pa.bool_()),  # the input had more than 8 bits
    ],
)

METRICS: Final = output_schema(
    "metrics",
    [
        pa.field("key", pa.string()),
        pa.field("variant", pa.int32()),
        pa.field("index", pa.int64()),
        pa.field("hole_fraction", pa.float32()),  # of the original's pixels, 0 to 1
        # of the decoder's output before compositing, over the known pixels of the work image, on [-1, 1]
        pa.field("mae_known", pa.float32()),
        pa.field("mse_known", pa.float32()),
        pa.field("psnr_known", pa.float32()),  # dB; null where infinite
        pa.field("ssim_known", pa.float32()),
        pa.field("max_abs_known", pa.int16()),  # 8-bit levels, after compositing
        pa.field("seam", pa.float32()),
        pa.field("latent_mean", pa.float32()),
        pa.field("latent_std", pa.float32()),
    ],
)

ERRORS: Final = output_schema(
    "errors",
    [
        pa.field("key", pa.string()),  # null where it can't be known
        pa.field("variant", pa.int32()),  # null: a fault of the shard
        pa.field("index", pa.int64()),  # null: a fault of the shard, in no sample's place
        pa.field("stage", pa.string()),
        pa.field("code", pa.string()),  # asymvae.faults
        pa.field("message", pa.string()),
    ],
)


def latents_schema(
    dtype: LatentDtype, *, scaling_factor: float = 1.0, model: str = "", weights_sha256: str = ""
) -> pa.Schema:
    """Of a part of ``latents/bucket=HxW/``: one posterior a row, unscaled, in ``dtype`` (bfloat16 as uint16).

    Metadata, beside :func:`output_schema`'s: ``asymvae.scaling_factor`` (what a mean is multiplied by for training, as
    the float's repr), ``asymvae.model`` (its path, as it was given), ``asymvae.weights_sha256``,
    ``asymvae.latent_dtype``.
    """
    values = pa.list_(pa.field("item", LATENT_TYPES[dtype], nullable=False))
    pixels = pa.list_(pa.int32())
    schema = output_schema(
        "latents",
        [
            pa.field("key", pa.string()),
            pa.field("variant", pa.int32()),
            pa.field("index", pa.int64()),  # of the sample in its shard, from 0
            pa.field("mean", values),  # C * h * w numbers, C-ordered
            pa.field("logvar", values),  # clamped to -30 .. 20
            pa.field("shape", pixels),  # C, h, w
            pa.field("original_height", pa.int32()),
            pa.field("original_width", pa.int32()),
            pa.field("resized_height", pa.int32()),  # of the original when it had been resized, before the crop
            pa.field("resized_width", pa.int32()),
            pa.field("crop", pixels),  # top, left, bottom, right in the resized image: what was encoded
            pa.field("hflip", pa.bool_()),  # mirrored left to right, after the crop
            pa.field("caption", pa.string()),
            pa.field("json", pa.string()),  # an object of the chosen fields; null: none were chosen
            pa.field("source_sha256", pa.string()),  # of the image file's bytes, in hex
        ],
    )
    return schema.with_metadata(
        {
            **schema.metadata,
            "asymvae.scaling_factor": repr(scaling_factor),
            "asymvae.model": model,
            "asymvae.weights_sha256": weights_sha256,
            "asymvae.latent_dtype": dtype,
        }
    )


def latent_dtype_of(schema: pa.Schema) -> LatentDtype:
    """What the ``mean`` of a latents part is, whatever Arrow calls it. ValueError for a part of another kind."""
    said = (schema.metadata or {}).get(b"asymvae.latent_dtype", b"").decode()
    for dtype in LATENT_TYPES:
        if said == dtype:
            return dtype
    raise ValueError(f"the schema says no asymvae.latent_dtype of {sorted(LATENT_TYPES)}")


def columns_of(kind: str, schema: pa.Schema) -> pa.Schema | None:
    """The columns that a part of ``kind`` (``results``, ``latents/bucket=512x512``) must have; None: it is no kind of
    ours. ``schema`` is the part's own, which says the latents' dtype."""
    name = kind.partition("/")[0]
    if name == "latents":
        return latents_schema(latent_dtype_of(schema))
    return {"results": RESULTS, "metrics": METRICS, "errors": ERRORS}.get(name)
