"""Parquet columns that are not there: said before anything runs, by the setting that names them; or rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from asymvae.pipeline.executor import LocalExecutor
from asymvae.pipeline.job import run_job
from asymvae.pipeline.plan import ConfigurationError, make_plan
from tests.corpus.case import hole, photo, png
from tests.tiny import job, rows_of

WHOLE = {"id": ["a", "b"], "picture": [png(photo())] * 2, "hole": [png(hole(None))] * 2}
NAMES = {"key": "id", "image": ["picture"], "mask": ["hole"]}


def write(folder: Path, **columns: dict[str, Any]) -> str:
    for name, content in columns.items():
        pq.write_table(pa.table(content), folder / f"{name}.parquet")
    return str(folder / "*.parquet")


@pytest.mark.parametrize(
    ("setting", "column", "wrong"),
    [
        ("input.image", "picture", {"image": ["pictrue"]}),
        ("input.mask", "hole", {"mask": ["masks", "m"]}),
        ("input.key", "id", {"key": "ID"}),
        ("input.image", "picture", {"image": []}),
    ],
)
def test_columns_that_no_file_has_are_refused_before_anything_runs(
    setting: str, column: str, wrong: dict[str, Any], tmp_path: Path, checkpoint: Path
) -> None:
    urls = write(tmp_path, a=WHOLE, b=WHOLE)
    out = tmp_path / "out"
    with pytest.raises(ConfigurationError) as refused:
        run_job(job(urls, out, checkpoint, input=NAMES | wrong), LocalExecutor())
    names = next(iter(wrong.values()))
    for word in (setting, column, *([names] if isinstance(names, str) else names)):
        assert word in str(refused.value)
    assert not out.exists()


def test_a_filled_images_column_is_asked_for_where_the_method_takes_it(tmp_path: Path, checkpoint: Path) -> None:
    urls = write(tmp_path, a=WHOLE)
    with pytest.raises(ConfigurationError, match=r"input\.given names given\.png, given\.jpg, given"):
        make_plan(job(urls, tmp_path / "out", checkpoint, input=NAMES, inpaint={"method": "given"}))


def test_a_file_that_lacks_what_others_have_is_rows_and_no_reason_to_stop(tmp_path: Path, checkpoint: Path) -> None:
    lacking = {name: WHOLE[name] for name in ("id", "picture")}
    urls = write(tmp_path, a=lacking, b=WHOLE, c={name: WHOLE[name] for name in ("id", "hole")})
    (tmp_path / "d.parquet").write_bytes(b"PAR1")
    result = run_job(job(urls, tmp_path / "out", checkpoint, input=NAMES, max_error_fraction=1), LocalExecutor())
    assert result.exit_code == 0
    assert result.audit is not None
    assert dict(result.audit.errors_by_code) == {"missing_mask": 2, "missing_image": 2, "parquet_unreadable": 1}
    assert [row["key"] for row in rows_of(tmp_path / "out", "results")] == ["a", "b"]


def test_files_that_can_not_be_read_refuse_nothing(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    (tmp_path / "b.parquet").write_bytes(b"no Parquet at all")
    assert len(make_plan(job(str(tmp_path / "*.parquet"), tmp_path / "out", checkpoint)).shards) == 2
