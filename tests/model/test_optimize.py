"""What model.optimize() may and may not change."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from asymvae.model import AsymmetricAutoencoderKL, optimize
from tests.model.small import GELU, SMALL, holes, picture, randomise

# wide enough that Winograd's way pays, and small enough to run
WIDE = SMALL | {
    "down_block_out_channels": (8, 8, 128, 128),
    "up_block_out_channels": (32, 64, 128, 128),
    "layers_per_up_block": 1,
}


def _model(config: dict[str, object]) -> AsymmetricAutoencoderKL:
    model = AsymmetricAutoencoderKL(**config).eval().requires_grad_(False)  # type: ignore[arg-type]
    randomise(model, 1)
    return model


@torch.inference_mode()
def _run(model: AsymmetricAutoencoderKL, size: int = 128, batch: int = 2) -> tuple[Tensor, ...]:
    image, mask = picture(2, batch, size).to(model.dtype), holes(3, batch, size)
    moments = model.encode(image).latent_dist.parameters
    z = torch.randn(batch, 4, size // 8, size // 8, generator=torch.Generator().manual_seed(0)).to(model.dtype)
    if model.config.encoder_factor != 8:
        z = moments[:, : model.config.latent_channels]
    return moments, model.decode(z).sample, model.decode(z, image=image, mask=mask).sample


def _off(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    return max(float((a.double() - b.double()).abs().max() / b.abs().max()) for a, b in zip(got, expected, strict=True))


def test_float32_stays_within_rounding() -> None:
    model = _model(WIDE)
    exact = _run(copy.deepcopy(model).double())
    model.optimize()
    found = "\n".join(optimize.forms(model))
    assert {"WinogradConv", "WinogradDown", "WinogradUp", "folded"} <= set(found.replace("\n", " ").split(" "))
    assert _off(_run(model), exact) < 1e-5
    model.enable_tiling(32)
    assert _off(_run(model), exact) < 1e-5


@pytest.mark.parametrize("size", [8, 32, 64, 96])
def test_maps_too_small_for_a_form(size: int) -> None:
    """A layer whose form isn't meant for so few pixels runs plainly, also between layers that run by theirs."""
    model = _model(WIDE)
    exact = _run(copy.deepcopy(model).double(), size, 1)
    assert _off(_run(model.optimize(), size, 1), exact) < 1e-5
    model.enable_tiling(16)
    assert _off(_run(model, size, 1), exact) < 1e-5


def test_folding_is_exact_in_float64() -> None:
    model = _model(GELU).double()
    expected = _run(model, 32)
    assert _off(_run(model.optimize(), 32), expected) < 1e-13


def test_the_checkpoint_is_what_it_was(tmp_path: Path) -> None:
    model = _model(WIDE)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.optimize()
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    model.save_pretrained(tmp_path)
    again = AsymmetricAutoencoderKL.from_pretrained(tmp_path)
    assert not list(optimize.forms(again))
    assert torch.equal(_run(again.optimize())[2], _run(model)[2])


def test_forms_follow_the_weights() -> None:
    """Casting and loading make them anew: none is kept of other weights, or rounded twice."""
    model, other = _model(WIDE).optimize(), _model(WIDE)
    randomise(other, 2)
    model.load_state_dict(other.state_dict())
    other.optimize()
    assert torch.equal(_run(model)[2], _run(other)[2])
    model.to(torch.bfloat16)
    assert not [form for form in optimize.forms(model) if "Winograd" in form]  # too narrow for it in bfloat16
    assert "decoder.up_blocks.0.upsamplers.0: folded" in list(optimize.forms(model))
    model.to(torch.float32).optimize(rearrange=False)
    assert not list(optimize.forms(model))


def test_copies_and_pickles_are_optimized_too() -> None:
    model = _model(WIDE).optimize()
    expected = _run(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert list(optimize.forms(other)) == list(optimize.forms(model))
        assert all(torch.equal(a, b) for a, b in zip(_run(other), expected, strict=True))


def test_gradients_are_those_of_the_plain_layers() -> None:
    plain = _model(WIDE).double().requires_grad_(True)
    fast = copy.deepcopy(plain).optimize()
    image = picture(2, 1, 32).double()
    for model in (plain, fast):
        model(image).sample.square().mean().backward()
    conv = "decoder.up_blocks.3.resnets.0.conv1.weight"
    expected = plain.get_parameter(conv).grad
    assert expected is not None
    torch.testing.assert_close(fast.get_parameter(conv).grad, expected, rtol=1e-10, atol=1e-14)


def test_latents_that_share_an_image() -> None:
    model = _model(SMALL)
    image, mask = picture(2, 2, 64), holes(3, 2, 64)
    z, rows = torch.randn(5, 4, 8, 8), torch.tensor([0, 1, 1, 0, 1])
    expected = model.decode(z, image=image[rows], mask=mask[rows]).sample
    for switch in (lambda: None, model.enable_slicing, lambda: model.enable_tiling(16)):
        switch()
        out = model.decode(z, image=image, mask=mask, condition_index=rows).sample
        torch.testing.assert_close(out, expected, rtol=0, atol=2e-5)
    with pytest.raises(ValueError, match="condition_index"):
        model.decode(z, image=image, mask=mask, condition_index=rows[:4])
    with pytest.raises(ValueError, match="condition_index"):
        model.decode(z, condition_index=rows)


def test_compiled_shapes_are_whole_graphs_and_are_not_compiled_again() -> None:
    model = _model(GELU).optimize()
    expected = _run(model, 32)
    torch._dynamo.reset()
    counters.clear()
    with torch.inference_mode():
        model.compile_for(2, 32, 32)
    assert not counters["graph_break"]
    made = counters["stats"]["unique_graphs"]
    assert made == 2  # encoder and decoder
    assert _off(_run(model, 32), expected) < 1e-5
    plain = _run(model, 64)  # a shape that was not announced
    assert counters["stats"]["unique_graphs"] == made
    assert all(torch.equal(a, b) for a, b in zip(_run(_model(GELU).optimize(), 64), plain, strict=True))


def test_what_the_forms_take_is_known_beforehand() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = _model(WIDE).to(dtype)
        expected = optimize.form_bytes(model, "cpu")
        plain = sum(buffer.nbytes for buffer in model.buffers())
        model.optimize()
        kernels = [b for name, b in model.named_buffers() if name.endswith(("kernel", "folded"))]
        assert sum(buffer.nbytes for buffer in kernels) - plain == expected > 0
