"""Fixtures for every room."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.object_store import BUCKET, ObjectStore, start_object_store


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
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(params=["local", "s3"])
def out_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An OUT with nothing in it: a local folder, then one in a real object store."""
    return str(tmp_path / "out") if request.param == "local" else request.getfixturevalue("s3_url")
