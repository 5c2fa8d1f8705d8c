"""Which files a checkpoint is read from, and which are refused."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file, save_file

from asymvae.inpaint.diffusion import DiffusionFill
from asymvae.model import AsymmetricAutoencoderKL
from tests.peers.diffusion_batch import by_ours, items, loaded
from tests.tiny import tiny_model
from tests.tiny_diffusion import tiny_unet, write_tiny_diffusion

pytestmark = pytest.mark.usefixtures("one_thread")

UNET = "unet/diffusion_pytorch_model"
TEXT = "text_encoder/model"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_diffusion(tmp_path_factory.mktemp("diffusion"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "checkpoint"))


@pytest.fixture(scope="module")
def vae() -> AsymmetricAutoencoderKL:
    return tiny_model().requires_grad_(False)


def _edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def _as_bin(folder: Path) -> None:
    for name, made in ((UNET, f"{UNET}.bin"), (TEXT, "text_encoder/pytorch_model.bin")):
        torch.save(load_file(folder / f"{name}.safetensors"), folder / made)
        (folder / f"{name}.safetensors").unlink()


def _as_shards(folder: Path) -> None:
    tiny_unet().save_pretrained(folder / "unet", max_shard_size="50KB")
    (folder / f"{UNET}.safetensors").unlink()
    assert len(list(folder.glob(f"{UNET}-*"))) > 1


def _as_variant(folder: Path) -> None:
    (folder / f"{UNET}.safetensors").rename(folder / f"{UNET}.fp16.safetensors")
    (folder / f"{TEXT}.safetensors").rename(folder / f"{TEXT}.fp16.safetensors")


def _as_variant_of_the_unet(folder: Path) -> None:
    (folder / f"{UNET}.safetensors").rename(folder / f"{UNET}.fp16.safetensors")


@pytest.mark.parametrize("change", [_as_bin, _as_shards, _as_variant, _as_variant_of_the_unet])
def test_every_form_of_weights_gives_the_same(
    original: Path, folder: Path, vae: AsymmetricAutoencoderKL, change: Callable[[Path], None]
) -> None:
    change(folder)
    variant = "fp16" if "variant" in change.__name__ else None
    expected = by_ours(loaded(original, vae, steps=1), vae, items(1))
    assert torch.equal(by_ours(loaded(folder, vae, steps=1, variant=variant), vae, items(1)), expected)


def test_an_fsspec_url_is_the_same_checkpoint_and_its_folder_goes(original: Path, vae: AsymmetricAutoencoderKL) -> None:
    store = fsspec.filesystem("memory")
    for file in original.glob("*/*"):
        store.pipe_file(f"/models/tiny/{file.relative_to(original)}", file.read_bytes())
    fill = DiffusionFill("memory://models/tiny", steps=1)
    assert fill.digest() == DiffusionFill(str(original)).digest()
    fill.load(vae, vae.device, vae.dtype)
    assert torch.equal(by_ours(fill, vae, items(1)), by_ours(loaded(original, vae, steps=1), vae, items(1)))
    copy = fill.files.folder
    del fill
    assert not copy.exists()


def test_a_hub_id_is_asked_for_just_these_files(original: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, name: str, *, subfolder: str, revision: str | None) -> str:
        assert (repository, revision) == ("someone/inpainting", "v1")
        file = original / subfolder / name
        if not file.exists():
            raise EntryNotFoundError(name)
        asked.append(f"{subfolder}/{name}")
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert DiffusionFill("someone/inpainting", revision="v1").digest() == DiffusionFill(str(original)).digest()
    assert {name for name in asked if name.startswith("vae")} == {"vae/config.json"}
    assert not [name for name in asked if name.startswith(("safety", "feature", "model_index"))]


def test_the_digest_is_of_what_decides_bytes(folder: Path) -> None:
    def digest() -> str:
        return DiffusionFill(str(folder)).digest()

    first = digest()
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "pytorch_model.bin").write_bytes(b"x")
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    _edit(folder / "vae" / "config.json", _diffusers_version="0.1.0")
    assert digest() == first
    seen = {first}
    for name in (f"{UNET}.safetensors", f"{TEXT}.safetensors"):
        state = load_file(folder / name)
        first_key = sorted(state)[0]
        save_file(state | {first_key: state[first_key] + 1}, folder / name, metadata={"format": "pt"})
        seen.add(digest())
    _edit(folder / "scheduler" / "scheduler_config.json", beta_end=0.013)
    seen.add(digest())
    with (folder / "tokenizer" / "merges.txt").open("a") as merges:
        merges.write("d a\n")
    seen.add(digest())
    assert len(seen) == 5


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("unet/config.json", {"in_channels": 5}, "UNet of 5 input channels"),
        ("unet/config.json", {"addition_embed_type": "text_time"}, "addition_embed_type 'text_time'"),
        ("unet/config.json", {"_class_name": "FluxTransformer2DModel"}, "holds a FluxTransformer2DModel"),
        ("scheduler/scheduler_config.json", {"_class_name": "LCMScheduler"}, "own scheduler, LCMScheduler.*ddim"),
    ],
)
def test_what_the_pipeline_could_not_run_is_refused_before_anything_starts(
    folder: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    _edit(folder / file, **changes)
    with pytest.raises(ValueError, match=message):
        DiffusionFill(str(folder)).digest()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scaling_factor": 0.13025}, "scaling_factor is 0.13025, and model.path makes .* 0.18215"),
        ({"latent_channels": 16}, "latent_channels is 16, and .* is 4"),
        ({"block_out_channels": [4, 4, 4]}, "factor is 4, and .* is 8"),
    ],
)
def test_another_vaes_unet_is_refused(
    folder: Path, vae: AsymmetricAutoencoderKL, changes: dict[str, Any], message: str
) -> None:
    _edit(folder / "vae" / "config.json", **changes)
    for ask in (DiffusionFill.check_vae, lambda fill, vae: fill.load(vae, vae.device, vae.dtype)):
        with pytest.raises(ValueError, match=message):
            ask(DiffusionFill(str(folder)), vae)


def test_a_vae_configuration_older_than_the_scaling_factor_is_stable_diffusions(
    folder: Path, vae: AsymmetricAutoencoderKL
) -> None:
    file = folder / "vae" / "config.json"
    config = json.loads(file.read_text())
    del config["scaling_factor"]
    file.write_text(json.dumps(config))
    DiffusionFill(str(folder)).check_vae(vae)


@pytest.mark.parametrize(
    "name", ["unet/config.json", f"{UNET}.safetensors", f"{TEXT}.safetensors", "scheduler/scheduler_config.json"]
)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=Path(name).name):
        DiffusionFill(str(folder)).digest()


@pytest.mark.parametrize("name", [UNET, TEXT])
def test_weights_that_lack_a_tensor_are_refused_not_made_up(
    folder: Path, vae: AsymmetricAutoencoderKL, name: str
) -> None:
    state = load_file(folder / f"{name}.safetensors")
    lost = sorted(key for key in state if "conv_in.weight" in key or "final_layer_norm.weight" in key)[0]
    del state[lost]
    save_file(state, folder / f"{name}.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 missing: .*(conv_in|final_layer_norm)\.weight"):
        loaded(folder, vae)


def test_weights_of_another_shape_and_parts_that_do_not_fit_are_refused(
    folder: Path, vae: AsymmetricAutoencoderKL
) -> None:
    state = load_file(folder / f"{UNET}.safetensors")
    save_file(state | {"conv_in.weight": torch.zeros(8, 4, 3, 3)}, folder / f"{UNET}.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"unet of .* don't fit its configuration"):
        loaded(folder, vae)
    save_file(state, folder / f"{UNET}.safetensors", {"format": "pt"})
    _edit(folder / "text_encoder" / "config.json", hidden_size=8)
    with pytest.raises(ValueError, match="don't"):
        loaded(folder, vae)


class _Bomb:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize(
    ("component", "stem"), [("unet", "diffusion_pytorch_model"), ("text_encoder", "pytorch_model")]
)
def test_nothing_is_unpickled(
    folder: Path, vae: AsymmetricAutoencoderKL, tmp_path: Path, component: str, stem: str
) -> None:
    for file in (folder / component).glob("*.safetensors"):
        file.unlink()
    with (folder / component / f"{stem}.bin").open("wb") as out:
        pickle.dump({"weight": _Bomb(tmp_path / "exploded")}, out)
    with pytest.raises(ValueError, match=f"{stem}.bin of {component} .* never unpickled otherwise"):
        loaded(folder, vae)
    assert not (tmp_path / "exploded").exists()


def test_an_index_can_not_name_files_elsewhere(folder: Path) -> None:
    (folder / f"{UNET}.safetensors").rename(folder / "elsewhere.safetensors")
    index = folder / f"{UNET}.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "../elsewhere.safetensors"}}))
    with pytest.raises(ValueError, match="outside its folder"):
        DiffusionFill(str(folder)).digest()
