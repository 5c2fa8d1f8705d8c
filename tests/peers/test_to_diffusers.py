"""``pipe.vae = model.to_diffusers()``: our network inside diffusers' pipeline."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from asymvae.model import AsymmetricAutoencoderKL
from tests.model.small import SMALL, holes, picture, randomise
from tests.peers.diffusion_batch import by_pipeline, items, largest, peer_of, pipeline_of
from tests.tiny_diffusion import write_tiny_diffusion

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model() -> AsymmetricAutoencoderKL:
    made = AsymmetricAutoencoderKL(**SMALL, sample_size=64, scaling_factor=0.18215).eval().requires_grad_(False)
    randomise(made, 1)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_diffusion(tmp_path_factory.mktemp("diffusion"))


def _outputs(vae: Any) -> list[torch.Tensor]:
    """Everything a pipeline may ask of a VAE, in every form of answer."""
    image, mask = picture(2, 2, 32).to(vae.dtype), holes(3, 2, 32).to(vae.dtype)
    z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(4)).to(vae.dtype)
    seeded = [torch.Generator().manual_seed(5), torch.Generator().manual_seed(6)]
    with torch.no_grad():
        return [
            vae.encode(image).latent_dist.mode(),
            vae.encode(image, return_dict=False)[0].sample(seeded),
            vae.decode(z).sample,
            vae.decode(z, return_dict=False, generator=seeded, image=image, mask=mask)[0],
            vae(image).sample,
            vae(image, mask, True, generator=torch.Generator().manual_seed(7)).sample,
            vae(image, mask, return_dict=False)[0],
        ]


def _same(vae: Any, other: Any, tolerance: float = 0.0) -> None:
    for one, another in zip(_outputs(vae), _outputs(other), strict=True):
        torch.testing.assert_close(one, another, rtol=0, atol=tolerance)


def test_it_is_diffusers_class_and_answers_as_it_does(model: AsymmetricAutoencoderKL) -> None:
    vae = model.to_diffusers()
    assert isinstance(vae, diffusers.AsymmetricAutoencoderKL)
    assert isinstance(vae, diffusers.ModelMixin)
    peer = peer_of(model)
    _same(vae, peer, 2e-5)
    assert list(vae.state_dict()) == list(peer.state_dict())
    theirs = {name: value for name, value in peer.config.items() if not name.startswith("_")}
    assert {name: list(v) if isinstance(v, tuple) else v for name, v in vae.config.items() if name[0] != "_"} == {
        name: list(v) if isinstance(v, tuple) else v for name, v in theirs.items()
    }
    assert not vae.training


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_the_pipeline_takes_the_conditional_decode_and_gives_diffusers_image(
    model: AsymmetricAutoencoderKL, folder: Path, strength: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[bool] = []
    decode = AsymmetricAutoencoderKL.decode

    def watched(self: Any, z: Any, generator: Any = None, image: Any = None, mask: Any = None) -> Any:
        given.append(image is not None and mask is not None)
        return decode(self, z, image=image, mask=mask)

    monkeypatch.setattr(AsymmetricAutoencoderKL, "decode", watched)
    options = {"num_inference_steps": 3, "strength": strength}
    pipe = pipeline_of(folder, peer_of(model))
    theirs = by_pipeline(pipe, items(2), **options)
    assert given == []
    pipe.vae = model.to_diffusers()
    ours = by_pipeline(pipe, items(2), **options)
    assert given == [True]
    assert largest(ours, theirs) <= 1e-4
    assert theirs.std() > 0.1


def _pickled(vae: Any, folder: Path) -> Any:
    return pickle.loads(pickle.dumps(vae))


def _torch_saved(vae: Any, folder: Path) -> Any:
    file = io.BytesIO()
    torch.save(vae, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


def _deep_copied(vae: Any, folder: Path) -> Any:
    return copy.deepcopy(vae)


def _from_its_own_class(vae: Any, folder: Path) -> Any:
    vae.save_pretrained(folder)
    return type(vae).from_pretrained(folder, low_cpu_mem_usage=False)


def _from_diffusers(vae: Any, folder: Path) -> Any:
    vae.save_pretrained(folder)
    return diffusers.AsymmetricAutoencoderKL.from_pretrained(folder, low_cpu_mem_usage=False)


def _from_ours(vae: Any, folder: Path) -> Any:
    vae.save_pretrained(folder)
    return AsymmetricAutoencoderKL.from_pretrained(folder).to_diffusers()


def _from_state(vae: Any, folder: Path) -> Any:
    made = AsymmetricAutoencoderKL(**SMALL).eval().to_diffusers()
    made.load_state_dict(vae.state_dict())
    return made


@pytest.mark.parametrize(
    "carried", [_pickled, _torch_saved, _deep_copied, _from_its_own_class, _from_diffusers, _from_ours, _from_state]
)
def test_a_copy_gives_the_same_and_is_nobody_elses(
    model: AsymmetricAutoencoderKL, tmp_path: Path, carried: Callable[[Any, Path], Any]
) -> None:
    vae = model.to_diffusers()
    before = _outputs(vae)
    other = carried(vae, tmp_path)
    assert isinstance(other, diffusers.AsymmetricAutoencoderKL)
    _same(other, vae, 2e-5)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert not _outputs(other)[3].any()  # what runs is what was zeroed
    for one, another in zip(_outputs(vae), before, strict=True):
        assert torch.equal(one, another)


def test_a_saved_pipeline_comes_back_with_it(model: AsymmetricAutoencoderKL, folder: Path, tmp_path: Path) -> None:
    pipe = pipeline_of(folder, model.to_diffusers())
    pipe.save_pretrained(tmp_path)
    loaded = diffusers.StableDiffusionInpaintPipeline.from_pretrained(
        tmp_path, requires_safety_checker=False, low_cpu_mem_usage=False
    )
    assert type(loaded.vae) is type(pipe.vae)
    _same(loaded.vae, pipe.vae)


def test_dtype_training_and_weights_are_one_with_the_models(model: AsymmetricAutoencoderKL) -> None:
    vae = model.to_diffusers()
    assert vae.to(torch.float64) is vae
    assert vae.dtype == model.dtype == torch.float64
    assert _outputs(vae)[3].dtype == torch.float64
    vae.train()
    assert model.training
    assert model.decoder.training
    vae.eval()
    assert not model.training
    vae.requires_grad_(True)
    vae.decode(torch.randn(1, 4, 2, 2, dtype=torch.float64)).sample.sum().backward()
    assert all(p.grad is not None for p in model.decoder.conv_in.parameters())


def test_tiling_and_slicing_are_passed_on(model: AsymmetricAutoencoderKL, folder: Path) -> None:
    vae = model.to_diffusers()
    whole = _outputs(vae)
    pipe = pipeline_of(folder, vae)
    pipe.vae.enable_tiling(8)
    pipe.vae.enable_slicing()
    assert model.use_tiling
    assert model.use_slicing
    assert vae.use_tiling
    assert vae.use_slicing
    for one, another in zip(_outputs(vae), whole, strict=True):
        torch.testing.assert_close(one, another, rtol=0, atol=2e-5)
    pipe.vae.disable_tiling()
    pipe.vae.disable_slicing()
    assert not any((model.use_tiling, model.use_slicing, vae.use_tiling, vae.use_slicing))


_WITHOUT = """
import sys
sys.modules["diffusers"] = sys.modules["transformers"] = None
import asymvae.model, asymvae.inpaint.base, asymvae.inpaint.diffusion, asymvae.pipeline.plan
from asymvae.config import InpaintSettings
from asymvae.inpaint.base import load_inpainter
model = asymvae.model.AsymmetricAutoencoderKL()
for call in (model.to_diffusers, lambda: load_inpainter(InpaintSettings(method="diffusion"))):
    try:
        call()
    except ValueError as error:
        assert "pip install asymvae[diffusion]" in str(error), error
    else:
        raise AssertionError("not refused")
"""


def test_all_but_diffusion_works_without_the_extra() -> None:
    subprocess.run([sys.executable, "-c", _WITHOUT], check=True)
