"""Every column of every output, once.

All fields are nullable for Arrow, also those that are never null: Hugging Face datasets take the types that
the metadata names only where the field is exactly theirs, which is nullable.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import pyarrow as pa

FORMAT_VERSION: Final = 2  # of the output: part of the fingerprint
IMAGE: Final = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # an encoded file, and its name
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
