"""diffusers' own tests of this model, asked of ours (written anew).

Upstream: ``tests/models/autoencoders/test_models_asymmetric_autoencoder_kl.py`` and the mixins that it takes from
``tests/models/testing_utils`` and ``tests/models/autoencoders/testing_utils.py``. Each test, and where it is:

Here, with upstream's configuration, input and tolerance:
  test_from_save_pretrained, test_from_save_pretrained_variant, test_from_save_pretrained_dtype[fp32, fp16, bf16],
  test_determinism, test_output, test_outputs_equivalence, test_sharded_checkpoints,
  test_sharded_checkpoints_with_variant, test_training, test_training_with_ema, test_forward_with_norm_groups
  (upstream marks it unsupported, for it sets a field that this model doesn't have), test_getattr_is_correct (what of
  it is about attributes).
Here though upstream wants an accelerator for it: test_from_save_pretrained_dtype_inference (its float16 and bfloat16
  run on a CPU as well), test_mixed_precision_training (bfloat16 autocast).
Covered elsewhere: test_stable_diffusion*, the slow tests of the published checkpoint, compare slices of its output
  with numbers; ``tests/peers/parity.py`` compares the whole output of that configuration with diffusers' own.
Left out, since they test diffusers' ModelMixin and not this model:
  test_sharded_checkpoints_with_parallel_loading (its loader's threads), test_keep_in_fp32_modules,
  test_to_keep_in_fp32_modules_warns (upstream skips both: the model has no such modules), test_model_parallelism
  (upstream skips it: no _no_split_modules), the deprecation warning of test_getattr_is_correct for ``model.field``
  instead of ``model.config.field``, test_gradient_checkpointing, test_gradient_checkpointing_is_applied and
  test_gradient_checkpointing_equivalence (upstream skips them: not supported), test_cpu_offload,
  test_disk_offload_with_safetensors, test_disk_offload_without_safetensors, test_group_offloading,
  test_group_offloading_with_layerwise_casting, test_group_offloading_with_disk, test_layerwise_casting_memory,
  test_layerwise_casting_training, test_stable_diffusion_decode_xformers_vs_2_0.
Here though upstream skips them, for its model can do neither: test_enable_disable_tiling, test_enable_disable_slicing
  (upstream allows other models differences of 0.5; ours are rounding).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.training_utils import EMAModel
from torch import Tensor

from asymvae.model import AsymmetricAutoencoderKL

CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "down_block_out_channels": [2, 4],
    "layers_per_down_block": 1,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "up_block_out_channels": [2, 4],
    "layers_per_up_block": 1,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 2,
    "sample_size": 32,
    "scaling_factor": 0.18215,
}


def _inputs() -> dict[str, Tensor]:
    image = torch.randn(4, 3, 32, 32, generator=torch.Generator("cpu").manual_seed(0))
    return {"sample": image, "mask": torch.ones(4, 1, 32, 32)}


def _model() -> AsymmetricAutoencoderKL:
    torch.manual_seed(0)
    return AsymmetricAutoencoderKL(**CONFIG).eval()


@torch.no_grad()
def _run(model: AsymmetricAutoencoderKL, dtype: torch.dtype = torch.float32) -> Tensor:
    return model(**{name: tensor.to(dtype) for name, tensor in _inputs().items()}, return_dict=False)[0]


@pytest.mark.parametrize("options", [{}, {"variant": "fp16"}], ids=["plain", "variant"])
def test_from_save_pretrained(tmp_path: Path, options: dict[str, str]) -> None:
    model = _model()
    model.save_pretrained(tmp_path, **options)
    loaded = AsymmetricAutoencoderKL.from_pretrained(tmp_path, **options)
    shapes = {name: tensor.shape for name, tensor in loaded.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in model.state_dict().items()}
    torch.testing.assert_close(_run(loaded), _run(model), atol=5e-5, rtol=0)
    if options:
        with pytest.raises(OSError, match=r"diffusion_pytorch_model\.bin"):
            AsymmetricAutoencoderKL.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_from_save_pretrained_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    model = _model().to(dtype)
    model.save_pretrained(tmp_path)
    loaded = AsymmetricAutoencoderKL.from_pretrained(tmp_path, torch_dtype=dtype)
    assert loaded.dtype == dtype
    torch.testing.assert_close(_run(loaded, dtype), _run(model, dtype), atol=1e-4, rtol=0)


def test_determinism() -> None:
    model = _model()
    torch.testing.assert_close(_run(model), _run(model), atol=1e-5, rtol=0)


def test_output() -> None:
    assert _run(_model()).shape == (4, 3, 32, 32)


def test_outputs_equivalence() -> None:
    model = _model()
    with torch.no_grad():
        named = model(**_inputs())
    assert len(named) == 1
    torch.testing.assert_close(named.sample, _run(model), atol=1e-5, rtol=0)


def test_getattr_is_correct() -> None:
    model = _model()
    model.dummy_attribute = 5  # type: ignore[assignment]
    assert model.dummy_attribute == 5
    assert model.save_pretrained == getattr(model, "save_pretrained")  # noqa: B009
    with pytest.raises(AttributeError, match="object has no attribute 'does_not_exist'"):
        model.does_not_exist  # noqa: B018


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_sharded_checkpoints(tmp_path: Path, variant: str | None) -> None:
    model = _model()
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    model.save_pretrained(tmp_path, max_shard_size=f"{int(size * 0.75 / 2**10)}KB", variant=variant)
    files = os.listdir(tmp_path)
    dotted = f".{variant}" if variant else ""
    assert f"diffusion_pytorch_model.safetensors.index{dotted}.json" in files
    shards = [name for name in files if name.endswith(".safetensors")]
    assert all(name.endswith(f"-of-{len(shards):05d}.safetensors") for name in shards)
    loaded = AsymmetricAutoencoderKL.from_pretrained(tmp_path, variant=variant)
    torch.testing.assert_close(_run(loaded), _run(model), atol=1e-5, rtol=0)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "mixed precision"])
def test_training(autocast: bool) -> None:
    model = _model().train()
    average = EMAModel(model.parameters())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(**_inputs(), return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(output, torch.randn(output.shape))
    loss.backward()
    average.step(model.parameters())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert model.encoder.conv_in.weight.grad is not None


def test_forward_with_norm_groups() -> None:
    wider = {"norm_num_groups": 16, "down_block_out_channels": (16, 32), "up_block_out_channels": (16, 32)}
    assert _run(AsymmetricAutoencoderKL(**(CONFIG | wider)).eval()).shape == (4, 3, 32, 32)


@pytest.mark.parametrize("what", ["tiling", "slicing"])
def test_enable_disable(what: str) -> None:
    model = _model()
    before = _run(model)
    getattr(model, f"enable_{what}")(**({"tile_sample_min_height": 8} if what == "tiling" else {}))
    torch.testing.assert_close(_run(model), before, atol=1e-5, rtol=0)
    getattr(model, f"disable_{what}")()
    assert torch.equal(_run(model), before)
