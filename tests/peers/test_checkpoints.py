"""Checkpoints cross both ways between ours and diffusers'."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from asymvae.model import AsymmetricAutoencoderKL
from tests.model.small import CONFIGS, SMALL, randomise

FORMS: dict[str, dict[str, Any]] = {
    "whole": {},
    "shards": {"max_shard_size": "200KB"},
    "variant": {"variant": "fp16"},
    "shards of a variant": {"variant": "fp16", "max_shard_size": "200KB"},
}


@pytest.fixture(params=CONFIGS)
def peer(request: pytest.FixtureRequest) -> Any:
    made = diffusers.AsymmetricAutoencoderKL(**CONFIGS[request.param]).eval()
    randomise(made, 1)
    return made


def _same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return list(ours) == list(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)


def _variant(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key == "variant"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_diffusers_checkpoints_load_in_ours(peer: Any, tmp_path: Path, form: str, safe: bool) -> None:
    peer.save_pretrained(tmp_path, safe_serialization=safe, **FORMS[form])
    ours = AsymmetricAutoencoderKL.from_pretrained(tmp_path, **_variant(FORMS[form]))
    assert _same(ours, peer)
    for name, value in ours.config.items():
        theirs = peer.config[name]
        assert value == (tuple(theirs) if isinstance(theirs, list) else theirs), name


@pytest.mark.parametrize("form", FORMS)
def test_our_checkpoints_load_in_diffusers(peer: Any, tmp_path: Path, form: str) -> None:
    ours = AsymmetricAutoencoderKL(**{k: v for k, v in peer.config.items() if k in _arguments()})
    ours.load_state_dict(peer.state_dict())
    ours.save_pretrained(tmp_path, **FORMS[form])
    loaded = diffusers.AsymmetricAutoencoderKL.from_pretrained(tmp_path, **_variant(FORMS[form]))
    assert _same(loaded, peer)
    assert loaded.config.scaling_factor == peer.config.scaling_factor


def test_half_precision_weights_load_as_float32_in_both(tmp_path: Path) -> None:
    diffusers.AsymmetricAutoencoderKL(**SMALL).half().save_pretrained(tmp_path, variant="fp16")
    ours = AsymmetricAutoencoderKL.from_pretrained(tmp_path, variant="fp16")
    theirs = diffusers.AsymmetricAutoencoderKL.from_pretrained(tmp_path, variant="fp16")
    assert ours.dtype == theirs.dtype == torch.float32
    assert _same(ours, theirs)


def test_legacy_attention_names_load_as_in_diffusers(tmp_path: Path) -> None:
    peer = diffusers.AsymmetricAutoencoderKL(**SMALL)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    legacy = {}
    for key, tensor in peer.state_dict().items():
        for new, old in names.items():
            key = key.replace(f".{new}.", f".{old}.")
        legacy[key] = tensor
    peer.save_config(tmp_path)
    torch.save(legacy, tmp_path / "diffusion_pytorch_model.bin")
    theirs = diffusers.AsymmetricAutoencoderKL.from_pretrained(tmp_path, use_safetensors=False)
    assert _same(AsymmetricAutoencoderKL.from_pretrained(tmp_path), theirs)
    assert _same(theirs, peer)


def test_a_config_of_another_version_loads(tmp_path: Path) -> None:
    """Fields that came later are missing, fields that we don't know are there, and an unset one has its default."""
    peer = diffusers.AsymmetricAutoencoderKL(**SMALL)
    peer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for later in ("block_out_channels", "force_upcast", "scaling_factor"):
        del config[later]
    (tmp_path / "config.json").write_text(json.dumps(config | {"_diffusers_version": "0.23.0", "upcast": None}))
    ours = AsymmetricAutoencoderKL.from_pretrained(tmp_path)
    assert _same(ours, peer)
    assert (ours.config.scaling_factor, ours.config.force_upcast) == (0.18215, False)
    (tmp_path / "config.json").write_text(json.dumps(config | {"force_upcast": True}))
    assert AsymmetricAutoencoderKL.from_pretrained(tmp_path).config.force_upcast


def test_constructor_arguments_and_defaults_are_diffusers() -> None:
    theirs = inspect.signature(diffusers.AsymmetricAutoencoderKL.__init__).parameters
    ours = inspect.signature(AsymmetricAutoencoderKL.__init__).parameters
    assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]
    default, peer = AsymmetricAutoencoderKL(), diffusers.AsymmetricAutoencoderKL()
    assert {k: v.shape for k, v in default.state_dict().items()} == {k: v.shape for k, v in peer.state_dict().items()}
    assert dict(default.config) == {k: v for k, v in peer.config.items() if not k.startswith("_")}
    for method in ("encode", "decode", "forward"):
        mine = inspect.signature(getattr(AsymmetricAutoencoderKL, method)).parameters.values()
        other = inspect.signature(getattr(diffusers.AsymmetricAutoencoderKL, method)).parameters.values()
        # condition_index is ours, and by keyword alone
        assert [(p.name, p.default) for p in mine if p.kind != p.KEYWORD_ONLY] == [(p.name, p.default) for p in other]


def _arguments() -> set[str]:
    return set(inspect.signature(AsymmetricAutoencoderKL).parameters)
