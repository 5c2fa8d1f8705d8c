"""The networks of an inpainting checkpoint, built by diffusers and transformers from local files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from asymvae.inpaint.diffusion_files import DiffusionFiles
from asymvae.model.checkpoint import CheckpointError, only_tensors


@dataclass(frozen=True, slots=True)
class Modules:
    """diffusers' UNet2DConditionModel, transformers' CLIPTextModel (both in eval mode) and CLIPTokenizer."""

    unet: Any
    text_encoder: Any
    tokenizer: Any


def load_modules(files: DiffusionFiles, device: torch.device, dtype: torch.dtype) -> Modules:
    """Raises CheckpointError (a ValueError) where weights are missing, don't fit, or are no tensors."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    built = {}
    with _without_progress_bars():
        # low_cpu_mem_usage would want accelerate, and says so at every start.
        for name, kind, options in (
            ("unet", UNet2DConditionModel, {"torch_dtype": dtype, "low_cpu_mem_usage": False}),
            ("text_encoder", CLIPTextModel, {"dtype": dtype}),
        ):
            folder, where = files.folder / name, f"{name} of {files}"
            safe = not _has_bin(folder, where)
            try:
                module, found = kind.from_pretrained(
                    folder, use_safetensors=safe, output_loading_info=True, local_files_only=True, **options
                )
            except RuntimeError as error:  # of torch: the shapes of its layers
                raise CheckpointError(
                    f"the weights of {name} of {files} don't fit its configuration: {error}"
                ) from error
            _refuse_gaps(found, f"{name} of {files}")
            built[name] = module.eval().requires_grad_(False).to(device)
        tokenizer = CLIPTokenizer.from_pretrained(files.folder / "tokenizer", local_files_only=True)
    width = built["text_encoder"].config.hidden_size
    if width != built["unet"].config.cross_attention_dim:
        raise CheckpointError(
            f"{files} has a text encoder of width {width} and a UNet that attends to "
            f"{built['unet'].config.cross_attention_dim}: its parts don't belong together"
        )
    return Modules(built["unet"], built["text_encoder"], tokenizer)


def _has_bin(folder: Path, where: str) -> bool:
    """Whether the weights are .bin files. Reads each with torch's restricted unpickler first, for a clear refusal."""
    files = sorted(folder.glob("*.bin"))
    for file in files:
        only_tensors(partial(torch.load, file, map_location="cpu", weights_only=True), f"{file.name} of {where}")
    return bool(files)


def _refuse_gaps(found: Mapping[str, Any], where: str) -> None:
    """Both libraries fill what is missing with random numbers, and say so in the log."""
    lines = []
    for key, what in (("missing_keys", "missing"), ("mismatched_keys", "of another shape")):
        names = sorted(name if isinstance(name, str) else name[0] for name in found.get(key, ()))
        if names:
            lines.append(f"{len(names)} {what}: {', '.join(names)}")
    if lines:
        raise CheckpointError("\n".join([f"the weights of {where} don't fit its configuration", *lines]))


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    """A worker's log is no terminal."""
    from transformers.utils import logging

    were_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_shown:
            logging.enable_progress_bar()
