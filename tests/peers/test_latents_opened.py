"""Latents open in other tools, by the README's own lines; and its training loop runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from tests.latents.small_out import SCALING, SmallOut

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> SmallOut:
    """At out/latents of a folder: two shards, two buckets, float16."""
    folder = tmp_path_factory.mktemp("root")
    out = SmallOut(str(folder / "out/latents"), folder / "spool")
    out.shard("a", {"16x24": 3, "32x16": 6})
    out.shard("b", {"16x24": 4})
    return out


@pytest.fixture
def root(out: SmallOut, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = Path(out.url).parents[1]
    monkeypatch.chdir(root)
    return root


def run(holds: str) -> dict[str, Any]:
    """The names that the README's example leaves behind."""
    (block,) = [block for block in re.findall(r"^```python\n(.*?)^```$", README, flags=re.M | re.S) if holds in block]
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(block, f"README.md ({holds})", "exec"), names)
    return names


def assert_the_means(out: SmallOut, means: dict[str, Any]) -> None:
    """Exactly: float16 is kept, or grows into a wider float."""
    assert means.keys() == out.rows.keys()
    for key, row in out.rows.items():
        np.testing.assert_array_equal(np.asarray(means[key], np.float32).reshape(-1), row["mean"].astype(np.float32))


def test_pyarrow(out: SmallOut, root: Path) -> None:
    names = run("import pyarrow.dataset")
    rows = names["table"].to_pylist()
    assert_the_means(out, {row["key"]: row["mean"] for row in rows})
    assert {row["bucket"] for row in rows} == {"16x24", "32x16"}
    assert all(row["shape"] == out.rows[row["key"]]["shape"] for row in rows)
    assert (names["mean"].dtype, list(names["mean"].shape)) == (np.float16, rows[0]["shape"])
    assert names["scaling_factor"] == SCALING


def test_duckdb(out: SmallOut, root: Path) -> None:
    names = run("import duckdb")
    assert_the_means(out, names["means"])
    for key, bucket, shape, _ in names["rows"]:
        assert list(shape) == out.rows[key]["shape"]
        assert bucket == f"{shape[1] * 8}x{shape[2] * 8}"


def test_hugging_face_datasets(out: SmallOut, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "cache")
    names = run("import load_dataset")
    assert_the_means(out, names["means"])
    rows = names["rows"]
    assert rows.features["mean"] == datasets.List(datasets.Value("float16"))
    assert all(row["shape"] == out.rows[row["key"]]["shape"] for row in rows)


@pytest.fixture
def small_ray() -> Iterator[None]:
    ray.init("local", num_cpus=1, include_dashboard=False, logging_level="error", object_store_memory=100 * 2**20)
    yield
    ray.shutdown()


def test_ray_data(out: SmallOut, root: Path, small_ray: None) -> None:
    names = run("ray.data.read_parquet")
    assert_the_means(out, names["means"])
    assert {row["bucket"] for row in names["rows"]} == {"16x24", "32x16"}
    assert all(list(row["shape"]) == out.rows[row["key"]]["shape"] for row in names["rows"])


def test_the_training_loop(out: SmallOut, root: Path) -> None:
    names = run("StatefulDataLoader(")
    assert names["z"].shape[:2] == (4, 2)
    assert names["step"] + 1 == len(names["latents"])
    assert names["checkpoint"]["epoch"] == 1
    assert names["loss"].item() > 0
