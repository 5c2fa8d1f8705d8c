from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import huggingface_hub
import pytest
import safetensors.torch
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from torch import Tensor

from asymvae.model import AsymmetricAutoencoderKL, CheckpointError
from tests.model.small import SMALL, picture, randomise

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model() -> AsymmetricAutoencoderKL:
    made = AsymmetricAutoencoderKL(**SMALL).eval()
    randomise(made, 0)
    return made


@pytest.fixture
def folder(model: AsymmetricAutoencoderKL, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def _same(a: AsymmetricAutoencoderKL, b: AsymmetricAutoencoderKL) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def _as_bin(folder: Path, state: dict[str, Tensor] | None = None) -> None:
    state = safetensors.torch.load_file(folder / WEIGHTS) if state is None else state
    (folder / WEIGHTS).unlink()
    torch.save(state, folder / "diffusion_pytorch_model.bin")


def test_a_saved_model_loads_in_eval_mode_and_trainable(model: AsymmetricAutoencoderKL, folder: Path) -> None:
    loaded = AsymmetricAutoencoderKL.from_pretrained(folder)
    assert _same(loaded, model)
    assert loaded.config == model.config
    assert not loaded.training
    assert all(p.requires_grad for p in loaded.parameters())
    assert sorted(os.listdir(folder)) == ["config.json", WEIGHTS]


def test_loading_initialises_nothing(folder: Path) -> None:
    before = torch.get_rng_state()
    AsymmetricAutoencoderKL.from_pretrained(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_saving_over_the_folder_a_model_came_from(folder: Path) -> None:
    loaded = AsymmetricAutoencoderKL.from_pretrained(folder)
    expected = {key: tensor.clone() for key, tensor in loaded.state_dict().items()}
    randomised = AsymmetricAutoencoderKL(**SMALL)
    randomised.save_pretrained(folder)
    assert all(torch.equal(expected[key], tensor) for key, tensor in loaded.state_dict().items())
    loaded.save_pretrained(folder)
    assert _same(AsymmetricAutoencoderKL.from_pretrained(folder), loaded)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_and_device_are_those_asked_for(folder: Path, dtype: torch.dtype) -> None:
    loaded = AsymmetricAutoencoderKL.from_pretrained(folder, torch_dtype=dtype, device="cpu")
    assert {tensor.dtype for tensor in loaded.state_dict().values()} == {dtype}
    assert AsymmetricAutoencoderKL.from_pretrained(folder, device="meta").device.type == "meta"


def test_shards_and_a_variant_load_and_leave_nothing_stale(model: AsymmetricAutoencoderKL, tmp_path: Path) -> None:
    half = AsymmetricAutoencoderKL(**SMALL).eval().half()
    half.save_pretrained(tmp_path, variant="fp16", max_shard_size="200KB")
    files = sorted(os.listdir(tmp_path))
    assert "diffusion_pytorch_model.safetensors.index.fp16.json" in files
    assert sum(name.startswith("diffusion_pytorch_model.fp16-0") for name in files) > 1
    loaded = AsymmetricAutoencoderKL.from_pretrained(tmp_path, variant="fp16")
    assert loaded.dtype == torch.float32
    assert _same(loaded.half(), half)
    with pytest.raises(FileNotFoundError, match=r"holds no diffusion_pytorch_model\.safetensors"):
        AsymmetricAutoencoderKL.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    half.save_pretrained(tmp_path, variant="fp16")
    assert sorted(os.listdir(tmp_path)) == ["config.json", "diffusion_pytorch_model.fp16.safetensors", WEIGHTS]


def test_the_hash_is_of_the_tensors_not_of_the_files(model: AsymmetricAutoencoderKL, tmp_path: Path) -> None:
    assert model.weights_sha256 is None
    hashes = {}
    for name in ("whole", "shards", "bin", "legacy"):
        model.save_pretrained(tmp_path / name, max_shard_size="200KB" if name == "shards" else "10GB")
    _as_bin(tmp_path / "bin")
    _as_bin(tmp_path / "legacy", _legacy(model.state_dict()))
    for name in ("whole", "shards", "bin", "legacy"):
        loaded = AsymmetricAutoencoderKL.from_pretrained(tmp_path / name, torch_dtype=torch.bfloat16)
        hashes[name] = loaded.weights_sha256
    assert len(set(hashes.values())) == 1
    assert len(hashes["whole"] or "") == 64
    other = AsymmetricAutoencoderKL(**SMALL)
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        other.quant_conv.bias[0] += 1
    other.save_pretrained(tmp_path / "other")
    assert AsymmetricAutoencoderKL.from_pretrained(tmp_path / "other").weights_sha256 != hashes["whole"]


def _legacy(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    legacy = {}
    for key, tensor in state.items():
        for new, old in names.items():
            if new in key:
                tensor = tensor[:, :, None, None] if key.endswith("weight") and old != ".key." else tensor
                key = key.replace(new, old)
        legacy[key] = tensor.clone()
    return legacy


def test_legacy_attention_names_and_shapes_load(model: AsymmetricAutoencoderKL, folder: Path) -> None:
    legacy = _legacy(model.state_dict())
    assert "encoder.mid_block.attentions.0.proj_attn.bias" in legacy
    safetensors.torch.save_file(legacy, folder / WEIGHTS)
    assert _same(AsymmetricAutoencoderKL.from_pretrained(folder), model)


def test_safetensors_come_before_bin(model: AsymmetricAutoencoderKL, folder: Path) -> None:
    torch.save({"never": torch.zeros(1)}, folder / "diffusion_pytorch_model.bin")
    assert _same(AsymmetricAutoencoderKL.from_pretrained(folder), model)


def test_a_sharded_bin_loads(model: AsymmetricAutoencoderKL, folder: Path) -> None:
    state = safetensors.torch.load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(state)
    halves = {
        "diffusion_pytorch_model-00001-of-00002.bin": names[::2],
        "diffusion_pytorch_model-00002-of-00002.bin": names[1::2],
    }
    for file, keys in halves.items():
        torch.save({key: state[key] for key in keys}, folder / file)
    index = {"metadata": {}, "weight_map": {key: file for file, keys in halves.items() for key in keys}}
    (folder / "diffusion_pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert _same(AsymmetricAutoencoderKL.from_pretrained(folder), model)
    (folder / "diffusion_pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"diffusion_pytorch_model-00002-of-00002\.bin"):
        AsymmetricAutoencoderKL.from_pretrained(folder)


class _Touch:
    """Pickles to a call that makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.file),))


@pytest.mark.parametrize("plain", [True, False], ids=["plain pickle", "torch archive"])
def test_a_bin_that_would_run_code_is_refused_and_not_run(folder: Path, tmp_path: Path, plain: bool) -> None:
    trap = tmp_path / "executed"
    _as_bin(folder)
    content = {"quant_conv.weight": torch.zeros(1), "trap": _Touch(trap)}
    if plain:
        (folder / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, folder / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="never unpickled"):
        AsymmetricAutoencoderKL.from_pretrained(folder)
    assert not trap.exists()


def test_a_bin_of_anything_but_named_tensors_is_refused(folder: Path) -> None:
    _as_bin(folder, {"state_dict": {"a": torch.zeros(1)}})  # type: ignore[dict-item]
    with pytest.raises(CheckpointError, match="no flat dictionary of tensors"):
        AsymmetricAutoencoderKL.from_pretrained(folder)


def test_keys_that_do_not_fit_are_all_listed(folder: Path) -> None:
    state = safetensors.torch.load_file(folder / WEIGHTS)
    del state["quant_conv.bias"], state["encoder.conv_in.weight"]
    state["post_quant_conv.bias"] = torch.zeros(5)
    state["one.more"] = state["another.one"] = torch.zeros(1)
    safetensors.torch.save_file({k: v.clone() for k, v in state.items()}, folder / WEIGHTS)
    with pytest.raises(CheckpointError) as caught:
        AsymmetricAutoencoderKL.from_pretrained(folder)
    message = str(caught.value)
    assert "2 missing: encoder.conv_in.weight, quant_conv.bias" in message
    assert "1 of another shape: post_quant_conv.bias (5,) instead of (4,)" in message
    assert "2 unexpected (allow_unexpected=True leaves them out): another.one, one.more" in message


def test_unexpected_keys_are_left_out_when_allowed(model: AsymmetricAutoencoderKL, folder: Path) -> None:
    plain = AsymmetricAutoencoderKL.from_pretrained(folder).weights_sha256
    state = safetensors.torch.load_file(folder / WEIGHTS) | {"loss.logvar": torch.zeros(1)}
    safetensors.torch.save_file(state, folder / WEIGHTS)
    loaded = AsymmetricAutoencoderKL.from_pretrained(folder, allow_unexpected=True)
    assert _same(loaded, model)
    assert loaded.weights_sha256 == plain


def test_a_config_of_another_class_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"_class_name": "AutoencoderKL"}))
    with pytest.raises(CheckpointError, match="holds a AutoencoderKL, not an AsymmetricAutoencoderKL"):
        AsymmetricAutoencoderKL.from_pretrained(folder)


def test_paths_that_lead_nowhere_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder here, and no hub id"):
        AsymmetricAutoencoderKL.from_pretrained(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match=r"model/vae holds no config.json"):
        AsymmetricAutoencoderKL.from_pretrained(folder, subfolder="vae")
    with pytest.raises(ValueError, match=r"revision='v2' was given, but .* is no hub id"):
        AsymmetricAutoencoderKL.from_pretrained(folder, revision="v2")
    with pytest.raises(FileNotFoundError) as caught:
        AsymmetricAutoencoderKL.from_pretrained("memory://user:secret@nowhere/model?signature=secret")
    assert "secret" not in str(caught.value)


def test_a_subfolder_is_looked_into(model: AsymmetricAutoencoderKL, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "vae")
    assert _same(AsymmetricAutoencoderKL.from_pretrained(tmp_path, subfolder="vae"), model)


def test_an_fsspec_url_is_written_and_read(model: AsymmetricAutoencoderKL) -> None:
    url = "memory://test-checkpoint/model"
    try:
        model.save_pretrained(url, max_shard_size="200KB")
        assert _same(AsymmetricAutoencoderKL.from_pretrained(url), model)
        model.save_pretrained(url)
        assert _same(AsymmetricAutoencoderKL.from_pretrained("memory://test-checkpoint", subfolder="model"), model)
        names = [
            file.rsplit("/", 1)[-1] for file in fsspec.filesystem("memory").ls("/test-checkpoint/model", detail=False)
        ]
        assert sorted(names) == ["config.json", WEIGHTS]
    finally:
        fsspec.filesystem("memory").rm("/test-checkpoint", recursive=True)


def test_a_file_url_is_a_folder(model: AsymmetricAutoencoderKL, folder: Path) -> None:
    assert _same(AsymmetricAutoencoderKL.from_pretrained(folder.as_uri()), model)


class _Hub:
    """In place of hf_hub_download: a folder that is the repository."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls, self.offline = folder, list[dict[str, Any]](), False

    def __call__(self, repo_id: str, filename: str, **options: Any) -> str:
        self.calls.append({"repo_id": repo_id, "filename": filename, **options})
        file = self.folder / (options["subfolder"] or "") / filename
        if not file.exists():
            raise LocalEntryNotFoundError("no connection") if self.offline else EntryNotFoundError("404")
        return str(file)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: AsymmetricAutoencoderKL) -> _Hub:
    model.save_pretrained(tmp_path / "repository" / "vae")
    made = _Hub(tmp_path / "repository")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", made)
    return made


def test_a_hub_id_is_downloaded_at_its_revision(hub: _Hub, model: AsymmetricAutoencoderKL) -> None:
    loaded = AsymmetricAutoencoderKL.from_pretrained("owner/name", revision="v2", subfolder="vae")
    assert _same(loaded, model)
    assert {call["filename"] for call in hub.calls} >= {"config.json", WEIGHTS}
    for call in hub.calls:
        assert (call["repo_id"], call["revision"], call["subfolder"]) == ("owner/name", "v2", "vae")


def test_a_hub_repository_of_bin_alone_loads(hub: _Hub, model: AsymmetricAutoencoderKL) -> None:
    _as_bin(hub.folder / "vae")
    assert _same(AsymmetricAutoencoderKL.from_pretrained("owner/name", subfolder="vae"), model)


def test_offline_what_the_cache_holds_is_enough(hub: _Hub, model: AsymmetricAutoencoderKL) -> None:
    hub.offline = True
    assert _same(AsymmetricAutoencoderKL.from_pretrained("owner/name", subfolder="vae"), model)
    with pytest.raises(LocalEntryNotFoundError, match="no connection"):
        AsymmetricAutoencoderKL.from_pretrained("owner/name", subfolder="vae", variant="fp16")


def test_the_loaded_model_computes_what_the_saved_one_does(model: AsymmetricAutoencoderKL, folder: Path) -> None:
    image = picture(1, 1, 32)
    with torch.no_grad():
        expected = model(image).sample
        assert torch.equal(AsymmetricAutoencoderKL.from_pretrained(folder)(image).sample, expected)


def test_the_network_runs_where_torch_alone_is_installed() -> None:
    """And triton, which its CUDA builds bring. Only reading and writing checkpoints needs more."""
    code = """
import sys
ours = ("fsspec", "huggingface_hub", "safetensors", "pydantic", "pydantic_settings", "yaml", "numpy", "diffusers")
for name in ours:
    sys.modules[name] = None
import torch
from asymvae.model import AsymmetricAutoencoderKL
model = AsymmetricAutoencoderKL(up_block_out_channels=(8,), down_block_out_channels=(8,), norm_num_groups=4).optimize()
with torch.inference_mode():
    image = torch.zeros(1, 3, 16, 16)
    print(tuple(model(image, mask=image[:, :1]).sample.shape))
"""
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "(1, 3, 16, 16)", ran.stderr
