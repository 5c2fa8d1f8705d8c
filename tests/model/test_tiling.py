from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import group_norm

from asymvae.model import PUBLISHED, AsymmetricAutoencoderKL, tiling
from asymvae.model.blocks import GroupNorm
from asymvae.model.strips import Moments
from tests.model.live_bytes import LiveBytes
from tests.model.small import CONFIGS, SMALL, holes, picture, randomise

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def _model(config: dict[str, Any], dtype: torch.dtype = torch.float32) -> AsymmetricAutoencoderKL:
    model = AsymmetricAutoencoderKL(**config).eval().requires_grad_(False)
    randomise(model, 0)
    return model.to(dtype)


MODELS = {name: _model(config, torch.float64) for name, config in CONFIGS.items()}


def _run(model: Any, image: Tensor, mask: Tensor) -> list[Tensor]:
    """encode, decode, decode(image, mask): of a latent that hangs on no result of ours."""
    shape = [size >> (len(model.config["up_block_types"]) - 1) for size in image.shape[-2:]]
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(image.shape[0], model.config.latent_channels, *shape, generator=generator).to(image)
    return [
        model.encode(image).latent_dist.parameters,
        model.decode(z).sample,
        model.decode(z, image=image, mask=mask).sample,
    ]


def _off(outs: list[Tensor], references: list[Tensor]) -> float:
    return max(
        ((out.double() - reference.double()).abs().max() / reference.abs().max()).item()
        for out, reference in zip(outs, references, strict=True)
    )


@pytest.fixture(scope="module")
def model() -> AsymmetricAutoencoderKL:
    return _model(SMALL)


@settings(max_examples=20, deadline=None)
@given(
    config=st.sampled_from(sorted(CONFIGS)),
    height=st.integers(2, 7),
    width=st.integers(1, 5),
    rows=st.integers(1, 6),
    more=st.integers(0, 3),
    batch=st.integers(1, 2),
    layout=st.sampled_from(sorted(LAYOUTS)),
    soft=st.booleans(),
)
def test_strips_of_any_height_give_the_untiled_result(
    config: str, height: int, width: int, rows: int, more: int, batch: int, layout: str, soft: bool
) -> None:
    """Sizes in latent cells; ``more``: rows of the image that make no whole cell."""
    model = MODELS[config].to(memory_format=LAYOUTS[layout])
    factor = model.config.decoder_factor
    image = picture(1, batch, 56)[:, :, : height * factor, : width * factor].double()
    image = image.contiguous(memory_format=LAYOUTS[layout])
    mask = holes(2, batch, 56)[:, :, : height * factor, : width * factor].double() * (0.7 if soft else 1)
    model.disable_tiling()
    expected = _run(model, image, mask)
    model.enable_tiling(rows * factor + more % factor)
    outs = _run(model, image, mask)
    assert _off(outs, expected) < 1e-12
    assert all(out.shape == reference.shape for out, reference in zip(outs, expected, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_float32_is_diffusers_result(layout: str, offset: float) -> None:
    peer = diffusers.AsymmetricAutoencoderKL(**SMALL).eval().requires_grad_(False)
    randomise(peer, 1)
    model = AsymmetricAutoencoderKL(**SMALL).eval().requires_grad_(False)
    model.load_state_dict(peer.state_dict())
    image, mask = (picture(2, 1, 128) + offset) / (1 + offset), holes(3, 1, 128)
    expected = _run(peer, image, mask)
    model.to(memory_format=LAYOUTS[layout]).enable_tiling(40)
    place = {"memory_format": LAYOUTS[layout]}
    outs = _run(model, image.contiguous(**place), mask.contiguous(**place))
    assert _off(outs, expected) < 2e-5
    assert all(out.is_contiguous(**place) for out in outs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_further_off_than_untiled(dtype: torch.dtype) -> None:
    image, mask = picture(2, 1, 48), holes(3, 1, 48) * 0.7
    exact = _model(SMALL, dtype).double()  # the same weights, rounded
    expected = _run(exact, image.to(dtype).double(), mask.to(dtype).double())
    model = _model(SMALL, dtype)
    untiled = _run(model, image.to(dtype), mask.to(dtype))
    model.enable_tiling(16)
    tiled = _run(model, image.to(dtype), mask.to(dtype))
    assert all(out.dtype == dtype for out in tiled)
    for out, plain, reference in zip(tiled, untiled, expected, strict=True):
        assert (out.double() - reference).square().mean() < 1.3 * (plain.double() - reference).square().mean()


@pytest.mark.parametrize("offset", [0.0, 50.0])
def test_statistics_of_strips_are_those_of_the_whole(offset: float) -> None:
    torch.manual_seed(0)
    norm = GroupNorm(4, 8).requires_grad_(False)
    norm.weight.uniform_(0.5, 1.5)
    norm.bias.normal_()
    x = torch.randn(2, 8, 61, 40) * torch.rand(2, 8, 1, 1) + offset + torch.arange(61.0)[:, None] / 20
    moments = Moments(4)
    for strip in torch.split(x, 7, dim=2):
        moments.add(strip)
    scale, shift = moments.affine(norm)
    exact = group_norm(x.double(), 4, norm.weight.double(), norm.bias.double(), norm.eps)
    assert ((x * scale + shift - exact).abs().max() / exact.abs().max()) < (5e-7 if offset == 0 else 1e-5)


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(lambda image, mask: (image, mask.bool()), id="bool"),
        pytest.param(lambda image, mask: (image, mask[:, 0].to(torch.uint8)), id="bytes, no channel"),
        pytest.param(lambda image, mask: (image, mask.expand(-1, 3, -1, -1)), id="three channels"),
        pytest.param(lambda image, mask: (image.double(), mask.double()), id="another dtype"),
        pytest.param(lambda image, mask: (image[:1], mask[:1]), id="one for all"),
        pytest.param(lambda image, mask: (image[:1], mask), id="one image"),
    ],
)
def test_image_and_mask_come_in_every_form(
    model: AsymmetricAutoencoderKL, form: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> None:
    z = torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(5))
    image = picture(1, 1, 40)[..., :24].repeat(2, 1, 1, 1)
    mask = holes(2, 1, 40)[..., :24].repeat(2, 1, 1, 1)
    model.disable_tiling()
    expected = model.decode(z, image=image, mask=mask).sample
    image, mask = form(image, mask)
    for switch in (lambda: model.enable_tiling(16), model.enable_slicing, model.disable_tiling, model.disable_slicing):
        switch()
        assert _off([model.decode(z, image=image, mask=mask).sample], [expected]) < 2e-5


def test_inputs_are_left_as_they_were(model: AsymmetricAutoencoderKL) -> None:
    image, mask = picture(2, 1, 64), holes(3, 1, 64)
    before = image.clone(), mask.clone()
    model.enable_tiling(8)
    first = _run(model, image, mask)
    assert all(torch.equal(a, b) for a, b in zip(_run(model, image, mask), first, strict=True))
    model.disable_tiling()
    assert torch.equal(image, before[0])
    assert torch.equal(mask, before[1])


def test_what_fits_one_strip_is_run_whole_and_so_is_all_once_disabled(model: AsymmetricAutoencoderKL) -> None:
    image, mask = picture(2, 2, 64), holes(3, 2, 64)
    model.disable_tiling()
    expected = _run(model, image, mask)
    keys = list(model.state_dict())
    model.enable_tiling(64)
    assert all(torch.equal(a, b) for a, b in zip(_run(model, image, mask), expected, strict=True))
    model.enable_tiling()
    assert all(torch.equal(a, b) for a, b in zip(_run(model, image, mask), expected, strict=True))
    model.enable_tiling(56)
    assert not all(torch.equal(a, b) for a, b in zip(_run(model, image, mask), expected, strict=True))
    model.disable_tiling()
    assert all(torch.equal(a, b) for a, b in zip(_run(model, image, mask), expected, strict=True))
    assert list(model.state_dict()) == keys


def test_slices_are_the_samples_alone(model: AsymmetricAutoencoderKL) -> None:
    image, mask = picture(2, 3, 64), holes(3, 3, 64)
    z = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    alone = [
        (model.encode(image[i : i + 1]), model.decode(z[i : i + 1], image=image[i : i + 1], mask=mask[i : i + 1]))
        for i in range(3)
    ]
    with LiveBytes() as whole:
        model.decode(z, image=image, mask=mask)
    model.enable_slicing()
    encoded = model.encode(image).latent_dist.parameters
    with LiveBytes() as sliced:
        decoded = model.decode(z, image=image, mask=mask).sample
    model.disable_slicing()
    assert torch.equal(encoded, torch.cat([e.latent_dist.parameters for e, _ in alone]))
    assert torch.equal(decoded, torch.cat([d.sample for _, d in alone]))
    assert sliced.peak < 0.4 * whole.peak


def test_memory_falls_to_the_maps_that_must_be_whole(model: AsymmetricAutoencoderKL) -> None:
    """16 channels at full size: a resnet's input and its middle are 2 * 16 * 4 bytes a pixel."""
    image, mask = picture(2, 1, 256), holes(3, 1, 256).bool()
    z = torch.randn(1, 4, 32, 32)
    peaks = []
    for switch in (model.disable_tiling, lambda: model.enable_tiling(16)):
        switch()
        with LiveBytes() as live:
            model.decode(z, image=image, mask=mask)
        peaks.append(live.peak / 256**2)
    model.disable_tiling()
    untiled, tiled = peaks
    assert untiled > 450
    assert tiled < 2 * 16 * 4 * (1 + 6 / 16) + 20  # 6 strips at work; image, mask and result


def test_memory_of_a_published_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The formula of tiling.py. Counted, not run: tensors of the meta device have a size and no content."""
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda *_: 1)  # as where there is a kernel
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", lambda query, key, value: value.clone())
    with torch.device("meta"):
        model = AsymmetricAutoencoderKL(**PUBLISHED["x-1-5"]).requires_grad_(False).bfloat16()
        z, image = torch.empty(1, 4, 32, 32), torch.empty(1, 3, 256, 256)
        mask = torch.empty(1, 1, 256, 256, dtype=torch.bool)
    model.enable_tiling(64)
    with LiveBytes() as live:
        model.decode(z, image=image, mask=mask)
    assert live.peak / 256**2 == pytest.approx(768 + 2400 / 4, rel=0.05)


def test_attention_without_a_fused_kernel_makes_no_square_of_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    attention: Any = MODELS["tied"].decoder.mid_block.attentions[0]
    x = torch.randn(2, 8, 40, 41, dtype=torch.float64)
    square = 2 * (40 * 41) ** 2 * 8  # bytes
    with sdpa_kernel(SDPBackend.MATH), LiveBytes() as live:
        expected = attention(x)
    assert live.peak > square
    monkeypatch.setattr(tiling, "_SCORE_BYTES", square // 100)
    with sdpa_kernel(SDPBackend.MATH), LiveBytes() as live:
        out = tiling._attend(attention, x)
    assert _off([out], [expected]) < 1e-12
    assert live.peak < square / 10


def test_gradients_are_refused_rather_than_wrong() -> None:
    model = _model(SMALL)
    model.enable_tiling(16)
    image = picture(2, 1, 32)
    model.encode(image)  # nothing asks for gradients
    with pytest.raises(RuntimeError, match=r"no_grad\(\).*disable_tiling"):
        model.encode(image.requires_grad_())
    model.requires_grad_(True)
    with pytest.raises(RuntimeError, match="backward pass"):
        model.decode(torch.zeros(1, 4, 4, 4))
    with torch.inference_mode():
        assert model.decode(torch.zeros(1, 4, 4, 4)).sample.shape == (1, 3, 32, 32)


def test_autocast(model: AsymmetricAutoencoderKL) -> None:
    image, mask = picture(2, 1, 64), holes(3, 1, 64)
    with torch.autocast("cpu", torch.bfloat16):
        model.disable_tiling()
        expected = _run(model, image, mask)
        model.enable_tiling(16)
        outs = _run(model, image, mask)
    model.disable_tiling()
    assert {out.dtype for out in outs} == {torch.bfloat16}
    assert _off(outs, expected) < 0.05


def test_offload_changes_no_value(model: AsymmetricAutoencoderKL) -> None:
    image, mask = picture(2, 1, 64), holes(3, 1, 64)
    model.enable_tiling(16)
    expected = _run(model, image, mask)
    model.enable_tiling(16, offload=True)
    assert all(torch.equal(a, b) for a, b in zip(_run(model, image, mask), expected, strict=True))
    model.disable_tiling()


def test_what_cannot_be_tiled_says_so(model: AsymmetricAutoencoderKL) -> None:
    with pytest.raises(ValueError, match="tile_sample_min_height is 7; the least is 8"):
        model.enable_tiling(7)
    uneven = AsymmetricAutoencoderKL(**(SMALL | {"up_block_out_channels": (16, 24, 64, 64)})).requires_grad_(False)
    uneven.enable_tiling(8)
    latent = torch.zeros(1, 4, 3, 2)
    assert uneven.decode(latent).sample.shape == (1, 3, 24, 16)
    with pytest.raises(ValueError, match="24 channels at 1/1 of the size"):
        uneven.decode(latent, image=torch.zeros(1, 3, 24, 16), mask=torch.zeros(1, 1, 24, 16))
