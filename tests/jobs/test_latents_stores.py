"""Every job over shards from s3:// to s3://: the bytes of a local run, and readers that find them there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import fsspec
import pytest
import torch

from asymvae.latents.dataset import LatentDataset
from asymvae.storage.filesystem import list_files, read_bytes
from jobs import audit, decode_latents, inpaint, precompute_latents, report
from tests.object_store import SECRET_KEY
from tests.tiny import box_mask, file_bytes, parts_of, picture, write_tar

SIZES = [(96, 96), (64, 128), (160, 150)]
Call = Callable[..., str]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Folder of two shards of images with masks, one of them cut off."""
    for shard in range(2):
        made = []
        for number, (height, width) in enumerate(SIZES):
            arrays = {"png": picture(height, width, number), "mask.png": box_mask(height, width, number)}
            fields = {name: file_bytes(array, "PNG") for name, array in arrays.items()}
            made.append((f"s{shard}-{number}", fields | {"txt": f"picture {number}".encode()}))
        made[shard][1]["png"] = made[shard][1]["png"][: 10_000 * shard + 300]
        write_tar(tmp_path / "in" / "sub" / f"{shard}.tar", made)
    return tmp_path / "in"


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """A job in this process; what it said to stdout."""

    def run(job: ModuleType, *arguments: str) -> str:
        capsys.readouterr()
        code = job.main(list(arguments))
        said = capsys.readouterr()
        assert code == 0, said.err
        assert SECRET_KEY not in said.out + said.err
        return said.out

    return run


def parts_at(url: str) -> dict[str, bytes]:
    names = list_files(url, recursive=True)
    return {name: read_bytes(f"{url}/{name}") for name in names if name.endswith(".parquet")}


def test_every_job_gives_the_same_bytes_in_a_store_and_in_a_folder(
    s3_url: str, shards: Path, tmp_path: Path, checkpoint: Path, call: Call
) -> None:
    fsspec.filesystem("s3").put(str(shards), f"{s3_url}/in", recursive=True)
    common = ["--executor=local", "--workers.gpus=0", f"--model.path={checkpoint}", "--max_error_fraction=1"]
    small = ["--crop.base=96", "--crop.step=32", "--crop.least=32", "--crop.hflip=both"]
    for place in (str(tmp_path), s3_url):
        urls = f"{place}/in/*/*.tar"
        call(inpaint, *common, f"--input.urls={urls}", f"--output.url={place}/inpainted")
        call(precompute_latents, *common, *small, f"--input.urls={urls}", f"--output.url={place}/latents")
        joined = [f"--originals.urls={urls}"]
        decode = [*common, f"--input.urls={place}/latents", f"--output.url={place}/decoded", *joined]
        call(decode_latents, *decode)
        assert "0 samples in" in call(decode_latents, *decode), "a second run has nothing to do"
    for job, kinds in (
        ("inpainted", {"results", "metrics", "errors"}),
        ("latents", {"latents", "errors"}),
        ("decoded", {"results", "metrics"}),
    ):
        local, stored = parts_of(tmp_path / job), parts_at(f"{s3_url}/{job}")
        assert stored == local
        assert {name.partition("/")[0] for name in local} == kinds
        assert "all is well" in call(audit, f"{s3_url}/{job}")
        assert "all is well" in call(audit, f"{s3_url}/{job}", "--deep")
        said, here = (json.loads(call(audit, f"{place}/{job}", "--deep", "--json")) for place in (s3_url, tmp_path))
        assert said == here
        assert said["results"] > 0

    call(report, f"{s3_url}/inpainted", "--out", str(tmp_path / "page"))
    assert 'alt="input"' in (tmp_path / "page" / "index.html").read_text()
    call(report, f"{s3_url}/decoded", "--out", f"{s3_url}/page")
    assert list(list_files(f"{s3_url}/page")) == ["contact_sheet.png", "index.html"]

    for settings in ({"shuffle": False}, {"seed": 3}):
        local_set, stored_set = (
            LatentDataset(f"{place}/latents", batch_size=2, columns=("key", "caption", "crop"), **settings)
            for place in (tmp_path, s3_url)
        )
        assert stored_set.samples == local_set.samples == 8
        for ours, theirs in zip(stored_set, local_set, strict=True):
            assert torch.equal(ours.pop("latents"), theirs.pop("latents"))
            assert str(ours) == str(theirs)


def test_inpainting_from_gs_to_gs_gives_the_bytes_of_a_local_run(
    gs_url: str, shards: Path, tmp_path: Path, checkpoint: Path, call: Call
) -> None:
    """Google's store, as far as fake-gcs-server is it; the checkpoint lies there too."""
    store = fsspec.filesystem("gs")
    store.put(str(shards), f"{gs_url}/in", recursive=True)
    store.put(str(checkpoint), f"{gs_url}/model", recursive=True)
    common = ["--executor=local", "--workers.gpus=0", "--max_error_fraction=1"]
    call(
        inpaint,
        *common,
        f"--model.path={checkpoint}",
        f"--input.urls={shards}/*/*.tar",
        f"--output.url={tmp_path}/out",
    )
    flags = [*common, f"--model.path={gs_url}/model", f"--input.urls={gs_url}/in/*/*.tar", f"--output.url={gs_url}/out"]
    call(inpaint, *flags)
    assert parts_at(f"{gs_url}/out") == parts_of(tmp_path / "out")
    assert "0 samples in" in call(inpaint, *flags)
    assert "all is well" in call(audit, f"{gs_url}/out", "--deep", "--clean", "--older-than=0h")
