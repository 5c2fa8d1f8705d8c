"""Fixtures for every room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.object_store import ObjectStore, start_fake_gcs, start_moto, start_object_store


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """A real S3 server for the whole session; the environment points s3fs, boto and child processes to it."""
    import s3fs

    store = start_object_store(tmp_path_factory.mktemp("object-store"))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in store.env.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield store
    s3fs.S3FileSystem.clear_instance_cache()
    store.stop()


@pytest.fixture(scope="session")
def _moto_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    store = start_moto(tmp_path_factory.mktemp("moto"))
    yield store
    store.stop()


@pytest.fixture(scope="session")
def _gcs_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    store = start_fake_gcs(tmp_path_factory.mktemp("fake-gcs"))
    yield store
    store.stop()


@pytest.fixture
def moto_url(_moto_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An s3:// folder of this test's own on the second S3 server, which the environment points to meanwhile."""
    import s3fs

    for name, value in _moto_store.env.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # they keep to the server that they first met
    yield _moto_store.new_url()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def gs_url(_gcs_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> str:
    """A gs:// folder of this test's own on a server that stands for Google's."""
    for name, value in _gcs_store.env.items():
        monkeypatch.setenv(name, value)
    return _gcs_store.new_url()


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Copies of remote checkpoints go where the session's other files go."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ASYMVAE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny checkpoint with random weights."""
    from tests.tiny import tiny_model

    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_model().save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def diffusion_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny inpainting checkpoint with random weights: a 9-channel UNet, PNDM."""
    from tests.tiny_diffusion import write_tiny_diffusion

    return write_tiny_diffusion(tmp_path_factory.mktemp("diffusion"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch on one thread, for this test."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def s3_url(object_store: ObjectStore) -> str:
    """An s3:// folder of this test's own, with nothing in it."""
    return object_store.new_url()


@pytest.fixture(params=["local", "s3"])
def out_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An OUT with nothing in it: a local folder, then one in a real object store."""
    return str(tmp_path / "out") if request.param == "local" else request.getfixturevalue("s3_url")


STORES = {"seaweedfs": "s3_url", "moto": "moto_url", "gcs": "gs_url"}


@pytest.fixture(params=["local", *STORES])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder with nothing in it: local, then on each of the servers."""
    name = request.param
    return str(tmp_path / "store") if name == "local" else request.getfixturevalue(STORES[name])
