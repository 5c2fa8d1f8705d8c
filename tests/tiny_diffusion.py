"""A small inpainting checkpoint with random weights, written by diffusers and transformers in their own layout."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionInpaintPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tests.model.small import randomise

# of Stable Diffusion 1.5
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
TOKENS = 77
_TEXT_WIDTH = 16


def tiny_tokenizer(folder: Path) -> CLIPTokenizer:
    """One token a character, and a few merges; read from ``vocab.json`` and ``merges.txt``, as published ones are."""
    characters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    merges = ["c a", "ca t</w>", "d o", "do g</w>"]
    words = [*characters, *(f"{character}</w>" for character in characters), *(m.replace(" ", "") for m in merges)]
    vocabulary = {word: number for number, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS, "pad_token": "<|endoftext|>"})
    )
    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder)
    return tokenizer


def tiny_unet(in_channels: int = 9, seed: int = 0) -> UNet2DConditionModel:
    """``in_channels``: 9 (latent, mask, masked image's latent) or 4 (latent alone)."""
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=_TEXT_WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()
    randomise(unet, seed)
    with torch.no_grad():  # a smoother function than random layers make: steps would multiply rounding by a hundred
        unet.conv_out.weight.mul_(0.3)
    return unet


def tiny_text_encoder(tokenizer: CLIPTokenizer, seed: int = 0) -> CLIPTextModel:
    end = tokenizer.eos_token_id
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=_TEXT_WIDTH,
            intermediate_size=2 * _TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=end,
            pad_token_id=end,
        )
    ).eval()
    randomise(encoder, seed)
    with torch.no_grad():  # so that words outweigh the padding, and a prompt is seen in the result
        encoder.get_input_embeddings().weight.mul_(8)
    return encoder


def tiny_vae(scaling_factor: float = 0.18215, latent_channels: int = 4) -> AutoencoderKL:
    """The checkpoint's own VAE, whose place the asymmetric one takes. Factor 8, as :func:`tests.tiny.tiny_model`."""
    return AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
        latent_channels=latent_channels,
        scaling_factor=scaling_factor,
    ).eval()


def write_tiny_diffusion(folder: Path, *, in_channels: int = 9, seed: int = 0, **vae: Any) -> Path:
    """Writes ``folder`` (model_index.json, unet/, text_encoder/, tokenizer/, scheduler/, vae/) and returns it.

    The scheduler is PNDM. ``vae``: arguments of :func:`tiny_vae`.
    """
    tokenizer = tiny_tokenizer(folder / "tokenizer")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet, encoder, own_vae = tiny_unet(in_channels, seed), tiny_text_encoder(tokenizer, seed), tiny_vae(**vae)
    return write_diffusion(folder, tokenizer, unet, encoder, own_vae)


def write_diffusion(
    folder: Path, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel, encoder: CLIPTextModel, vae: AutoencoderKL
) -> Path:
    """The same of given networks."""
    pipeline = StableDiffusionInpaintPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=PNDMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder
