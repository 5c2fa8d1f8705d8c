"""Files of remote checkpoints: fetched once a machine, and whole."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from asymvae.model.local_copy import cache_folder, local_copy


class _Store(MemoryFileSystem):  # type: ignore[misc]
    protocol = "counted-memory"
    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.fetched, self.broken = 0, False

    def get_file(self, rpath: str, lpath: str, **_: Any) -> None:
        self.fetched += 1
        Path(lpath).write_bytes(b"hal")
        time.sleep(0.1)
        if self.broken:
            raise ConnectionError("cut")
        Path(lpath).write_bytes(self.cat_file(rpath))


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Store]:
    monkeypatch.setenv("ASYMVAE_CACHE", str(tmp_path / "cache"))
    made = _Store()
    made.pipe_file("/local-copy/model.safetensors", b"whole")
    yield made
    made.rm("/local-copy", recursive=True)


def test_of_many_that_ask_at_once_one_fetches_it(store: _Store) -> None:
    ready = threading.Barrier(8)

    def ask(_: int) -> str:
        ready.wait()
        return local_copy(store, "/local-copy/model.safetensors")

    with ThreadPoolExecutor(8) as pool:
        (path,) = set(pool.map(ask, range(8)))
    assert Path(path).read_bytes() == b"whole"
    assert Path(path).name == "model.safetensors"
    assert store.fetched == 1


def test_what_is_replaced_in_the_store_is_fetched_anew(store: _Store) -> None:
    first = local_copy(store, "/local-copy/model.safetensors")
    store.pipe_file("/local-copy/model.safetensors", b"other")
    assert Path(local_copy(store, "/local-copy/model.safetensors")).read_bytes() == b"other"
    assert Path(first).read_bytes() == b"whole"  # whoever reads it still can


def test_what_was_cut_off_is_not_taken_for_the_file(store: _Store) -> None:
    store.broken = True
    with pytest.raises(ConnectionError):
        local_copy(store, "/local-copy/model.safetensors")
    assert [file.name for file in cache_folder().glob("*/*") if file.name != ".lock"] == []
    store.broken = False
    assert Path(local_copy(store, "/local-copy/model.safetensors")).read_bytes() == b"whole"
