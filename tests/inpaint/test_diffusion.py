"""What ``inpaint.method: diffusion`` does and leaves undone. tests/peers/test_diffusion_parity.py has the numbers."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from asymvae.faults import Fault
from asymvae.inpaint.diffusion import DiffusionFill
from asymvae.inpaint.prompts import PromptEncoder
from asymvae.model import AsymmetricAutoencoderKL
from tests.peers.diffusion_batch import by_ours, items, largest, loaded
from tests.tiny import tiny_model
from tests.tiny_diffusion import tiny_text_encoder, tiny_tokenizer, write_tiny_diffusion

pytestmark = pytest.mark.usefixtures("one_thread")


@lru_cache(maxsize=1)
def _vae() -> AsymmetricAutoencoderKL:
    return tiny_model().requires_grad_(False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_diffusion(tmp_path_factory.mktemp("diffusion"))


@pytest.fixture(scope="module")
def four_channels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_diffusion(tmp_path_factory.mktemp("diffusion"), in_channels=4)


class _Calls:
    """Counts the rows that each call of a module is given."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.rows: list[int] = []
        module.register_forward_pre_hook(lambda _, inputs: self.rows.append(inputs[0].shape[0]))


def _unet(fill: DiffusionFill) -> Any:
    assert fill._denoise is not None
    return fill._denoise._unet


def _text_encoder(fill: DiffusionFill) -> Any:
    assert fill._embed is not None
    return fill._embed._encoder


def _with_other_hole(number: int) -> Any:
    sample = items(1, first=number)[0]
    noise = np.random.default_rng(number).integers(0, 256, sample.image.shape, dtype=np.uint8)
    return dataclasses.replace(sample, image=np.where(sample.mask[..., None], noise, sample.image))


def test_at_strength_1_nine_channels_see_nothing_of_the_hole_and_encode_once(folder: Path) -> None:
    fill = loaded(folder, _vae(), steps=2)
    assert fill.needs == {"masked_image"}
    calls = _Calls(_vae().encoder)
    samples = items(2)
    out = by_ours(fill, _vae(), samples)
    assert calls.rows == [2]
    assert torch.equal(by_ours(fill, _vae(), [_with_other_hole(0), _with_other_hole(1)]), out)


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_what_depends_on_the_hole_asks_for_the_image(folder: Path, four_channels: Path, strength: float) -> None:
    assert loaded(four_channels, _vae(), steps=2, strength=strength).needs == {"image"}
    nine = {"masked_image"} if strength == 1 else {"masked_image", "image"}
    assert loaded(folder, _vae(), steps=2, strength=strength).needs == nine


@pytest.mark.parametrize(("guidance", "rows"), [(1.0, 3), (2.0, 6)])
def test_without_guidance_the_unet_has_half_the_work(folder: Path, guidance: float, rows: int) -> None:
    fill = loaded(folder, _vae(), steps=2, scheduler="ddim", guidance_scale=guidance)
    calls = _Calls(_unet(fill))
    by_ours(fill, _vae(), items(3))
    assert calls.rows == [rows, rows]


def test_each_distinct_text_is_embedded_once_in_a_workers_life(folder: Path) -> None:
    fill = loaded(folder, _vae(), steps=1)
    calls = _Calls(_text_encoder(fill))
    samples = items(8)
    distinct = {sample.prompt for sample in samples} | {""}
    by_ours(fill, _vae(), samples)
    assert calls.rows == [1] * len(distinct)
    by_ours(fill, _vae(), samples[4:])
    by_ours(fill, _vae(), [dataclasses.replace(samples[0], negative_prompt="dog")])
    assert len(calls.rows) == len(distinct)
    by_ours(fill, _vae(), [dataclasses.replace(samples[0], negative_prompt="something new")])
    assert len(calls.rows) == len(distinct) + 1


def test_an_embedding_does_not_hang_on_who_asked_first(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    texts = ["a cat", "dog", "blue wood " * 30, ""]
    with torch.no_grad():
        first = PromptEncoder(tokenizer, tiny_text_encoder(tokenizer))(texts)
        second = PromptEncoder(tokenizer, tiny_text_encoder(tokenizer))
        alone = [second([text])[0] for text in reversed(texts)]
    for one, another in zip(first, reversed(alone), strict=True):
        assert torch.equal(one, another)


def test_embeddings_are_bounded_in_bytes_and_the_latest_stay(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path)
    encoder = tiny_text_encoder(tokenizer)
    with torch.no_grad():
        one = PromptEncoder(tokenizer, encoder)(["a"]).nbytes
        embed = PromptEncoder(tokenizer, encoder, kept_bytes=3 * one)
        calls = _Calls(encoder)
        for text in ("", "a", "", "b", "", "c", "", "d", ""):
            embed([text])
        assert len(calls.rows) == 5  # the empty one stayed all along
        embed(["a"])
        assert len(calls.rows) == 6
        assert embed(list("abcdefgh")).shape[0] == 8  # more in one batch than are kept: all are answered
        assert sum(kept.nbytes for kept in embed._kept.values()) == 3 * one


@pytest.mark.parametrize(
    ("template", "own", "from_json", "asked"),
    [
        ("{prompt}", "a {cat}", None, "a {cat}"),
        ("photo of {prompt}, {sharp}", "a cat", None, "photo of a cat, {sharp}"),
        ("background", None, None, "background"),
        ("background", "a cat", None, "background"),
        ("background", "a cat", "a dog", "a dog"),
        ("background", "a cat", "{prompt} and a dog", "a cat and a dog"),
        ("{prompt}", "", None, ""),
    ],
)
def test_a_prompt_comes_from_template_sample_and_json(
    template: str, own: str | None, from_json: str | None, asked: str
) -> None:
    fill = DiffusionFill("nowhere/at-all", prompt=template, negative_prompt="blurred")
    item = dataclasses.replace(items(1)[0], prompt=own, template=from_json)
    assert fill.check(item) is None
    assert fill.prompts_of(item) == (asked, "blurred")
    assert fill.prompts_of(dataclasses.replace(item, negative_prompt="")) == (asked, "")
    unguided = DiffusionFill("nowhere/at-all", prompt=template, guidance_scale=1)
    assert unguided.prompts_of(item) == (asked, None)


def test_a_missing_prompt_is_the_samples_fault() -> None:
    item = dataclasses.replace(items(1)[0], prompt=None)
    assert DiffusionFill("nowhere/at-all").check(item) == Fault("missing_prompt")
    assert DiffusionFill("nowhere/at-all", prompt="x").check(dataclasses.replace(item, template="{prompt}")) is not None


def test_prompt_and_seed_are_seen_in_the_result(folder: Path) -> None:
    fill = loaded(folder, _vae(), steps=4)
    sample = items(1)[0]
    out = by_ours(fill, _vae(), [sample])
    assert torch.equal(by_ours(fill, _vae(), [sample]), out)
    assert largest(by_ours(fill, _vae(), [dataclasses.replace(sample, prompt="dog")]), out) > 1e-2
    assert largest(by_ours(fill, _vae(), [dataclasses.replace(sample, seed=2**64 - 1)]), out) > 1e-2


def test_channels_last_is_the_same_to_rounding(folder: Path) -> None:
    plain = by_ours(loaded(folder, _vae(), steps=3), _vae(), items(2))
    fill = loaded(folder, _vae(), steps=3, channels_last=True)
    assert _unet(fill).conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert largest(by_ours(fill, _vae(), items(2)), plain) <= 1e-4


def test_bfloat16_networks_denoise_in_float32(folder: Path) -> None:
    vae = tiny_model().requires_grad_(False).to(torch.bfloat16)
    fill = loaded(folder, vae, steps=3)
    assert _unet(fill).dtype == _text_encoder(fill).dtype == torch.bfloat16
    exact = by_ours(loaded(folder, _vae(), steps=3), _vae(), items(2))
    assert (by_ours(fill, vae, items(2)) - exact).abs().mean() < 0.02


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scheduler": "eular"}, "scheduler 'eular' is none of .*euler"),
        ({"strength": 0.1, "steps": 9}, "strength 0.1 of 9 steps"),
        ({"guidance_scale": 0.5}, "guidance_scale is 0.5"),
    ],
)
def test_settings_that_can_not_be_meant_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionFill("nowhere/at-all", **settings)
