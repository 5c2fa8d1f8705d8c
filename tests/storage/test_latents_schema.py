"""The schema of a latents part: what it holds in each dtype, and what the audit makes of a part that isn't so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asymvae.storage.parts import PartWriter
from asymvae.storage.schemas import RESULTS, LatentDtype, columns_of, kind_of, latent_dtype_of, latents_schema

ARRAYS = {"float16": np.float16, "bfloat16": np.uint16, "float32": np.float32}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_row_of_arrays_is_written_and_read_back_exactly(dtype: LatentDtype, tmp_path: Path) -> None:
    schema = latents_schema(dtype, scaling_factor=0.18215, model="some/model", weights_sha256="ab")
    values = (np.arange(2 * 3 * 4) * 7).astype(ARRAYS[dtype])
    row = dict.fromkeys(schema.names) | {"key": "k", "mean": values, "logvar": values[::-1], "shape": [2, 3, 4]}
    kind = "latents/bucket=24x32"
    writer = PartWriter(tmp_path / "p.parquet", schema, kind=kind, row_group_rows=10, row_group_bytes=2**20)
    writer.write(row)
    part = writer.close()
    assert part is not None
    assert part.kind == kind
    table = pq.read_table(part.path)
    np.testing.assert_array_equal(table["mean"].combine_chunks().values.to_numpy(zero_copy_only=False), values)
    assert table.schema.metadata[b"asymvae.scaling_factor"] == b"0.18215"
    assert table.schema.metadata[b"asymvae.model"] == b"some/model"
    assert table.schema.metadata[b"asymvae.weights_sha256"] == b"ab"
    assert (kind_of(table.schema), latent_dtype_of(table.schema)) == ("latents", dtype)
    columns = columns_of(kind, table.schema)
    assert columns is not None
    assert table.schema.equals(columns)


def test_arrays_count_by_their_bytes_when_a_row_group_is_closed(tmp_path: Path) -> None:
    schema = latents_schema("float32")
    row = dict.fromkeys(schema.names) | {"mean": np.zeros(1000, np.float32)}
    writer = PartWriter(tmp_path / "p.parquet", schema, row_group_rows=100, row_group_bytes=10_000)
    for _ in range(9):
        writer.write(row)
    writer.close()
    groups = pq.read_metadata(tmp_path / "p.parquet")
    assert [groups.row_group(number).num_rows for number in range(groups.num_row_groups)] == [3, 3, 3]


def test_a_schema_without_a_latent_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match=r"asymvae\.latent_dtype"):
        latent_dtype_of(RESULTS)
    assert columns_of("elsewhere", pa.schema([])) is None
