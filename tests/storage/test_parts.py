"""Parts: the same bytes for the same rows, bounded memory, and nothing that wasn't checked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asymvae.storage import schemas
from asymvae.storage.parts import PartWriter, hash_file
from tests.storage.rows import a_part, error, metric, result


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    rows = [result(index, image=bytes([index % 7]) * 1000) for index in range(25)]
    for schema, these in ((schemas.RESULTS, rows), (schemas.METRICS, [metric(row) for row in rows])):
        one, other = (a_part(tmp_path / name, schema, these) for name in ("one", "other"))
        assert one
        assert other
        assert one.sha256 == other.sha256
        assert (one.path.read_bytes()) == other.path.read_bytes()


def test_the_same_rows_give_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    part = a_part(tmp_path / "here", schemas.RESULTS, [result(index) for index in range(3)])
    assert part
    program = (
        "import sys, pathlib; from asymvae.storage import schemas; from tests.storage.rows import a_part, result;"
        "print(a_part(pathlib.Path(sys.argv[1]), schemas.RESULTS, [result(i) for i in range(3)]).sha256)"
    )
    there = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "there")],
        env={**os.environ, "PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert there.stdout.strip() == part.sha256


def test_row_groups_close_by_rows_or_by_bytes(tmp_path: Path) -> None:
    writer = PartWriter(tmp_path / "part", schemas.RESULTS, row_group_rows=4, row_group_bytes=10_000)
    for index, size in enumerate([1, 1, 1, 1, 1, 20_000, 6000, 6000, 1]):
        writer.write(result(index, image=bytes(size)))
    assert writer.close()
    metadata = pq.read_metadata(tmp_path / "part")
    assert [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)] == [4, 2, 2, 1]


def test_at_most_one_row_group_waits_in_memory(tmp_path: Path) -> None:
    writer = PartWriter(tmp_path / "part", schemas.RESULTS, row_group_rows=10**6, row_group_bytes=2**20)
    before = pa.total_allocated_bytes()
    for index in range(300):
        writer.write(result(index, image=os.urandom(100_000)))
        assert pa.total_allocated_bytes() - before < 4 * 2**20
        assert sum(len(row["image"]["bytes"]) for row in writer._pending) < 2**20 + 100_000
    part = writer.close()
    assert part
    assert part.rows == 300


def test_a_part_reads_back_as_it_was_written(tmp_path: Path) -> None:
    rows = [result(0), {**result(1), "crop": None, "work_width": None, "work_height": None}]
    part = a_part(tmp_path / "part", schemas.RESULTS, rows)
    assert part
    assert pq.read_table(part.path).to_pylist() == rows
    assert (part.kind, part.rows) == ("results", 2)
    assert (part.sha256, part.size) == hash_file(part.path)


def test_images_are_stored_as_they_are_and_other_columns_compressed(tmp_path: Path) -> None:
    part = a_part(tmp_path / "part", schemas.RESULTS, [result(0)])
    assert part
    group = pq.read_metadata(part.path).row_group(0)
    codecs = {group.column(n).path_in_schema: group.column(n).compression for n in range(group.num_columns)}
    assert codecs.pop("image.bytes") == "UNCOMPRESSED"
    assert set(codecs.values()) == {"ZSTD"}
    assert "crop.list.element" in codecs


def test_hugging_face_datasets_are_told_that_the_struct_is_an_image(tmp_path: Path) -> None:
    # datasets takes the types of this metadata only where each field is nullable and of just its type.
    part = a_part(tmp_path / "part", schemas.RESULTS, [result(0)])
    assert part
    schema = pq.read_schema(part.path)
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["crop"] == {"_type": "Sequence", "feature": {"_type": "Value", "dtype": "int32"}}
    assert features["seed"] == {"_type": "Value", "dtype": "uint64"}
    assert set(features) == set(schema.names)
    assert all(field.nullable for field in schema)
    assert schema.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def test_a_writer_without_rows_makes_no_file(tmp_path: Path) -> None:
    assert a_part(tmp_path / "part", schemas.ERRORS, []) is None
    assert not (tmp_path / "part").exists()


@pytest.mark.parametrize("rows", [0, 1, 25])
def test_discarding_leaves_no_file(tmp_path: Path, rows: int) -> None:
    writer = PartWriter(tmp_path / "part", schemas.ERRORS, row_group_rows=10, row_group_bytes=10**6)
    for index in range(rows):
        writer.write(error(index))
    writer.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_row_with_other_columns_is_refused(tmp_path: Path) -> None:
    writer = PartWriter(tmp_path / "part", schemas.ERRORS, row_group_rows=10, row_group_bytes=10**6)
    with pytest.raises(ValueError, match="missing or unknown: \\['code', 'colour'\\]"):
        writer.write({"colour": 1, **{k: v for k, v in error(0).items() if k != "code"}})
    with pytest.raises(ValueError, match="output_schema"):
        PartWriter(tmp_path / "part", pa.schema([("a", pa.int8())]), row_group_rows=1, row_group_bytes=1)


def test_a_file_that_lost_rows_is_not_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = PartWriter(tmp_path / "part", schemas.ERRORS, row_group_rows=1, row_group_bytes=10**6)
    writer.write(error(0))
    writer._rows += 1
    with pytest.raises(OSError, match="holds 1 rows where 2 were written"):
        writer.close()
