"""The files of an inpainting checkpoint in diffusers' layout, gathered in one folder here."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import weakref
from pathlib import Path
from typing import Any, Final

from asymvae.model.checkpoint import Checkpoint, weight_files

_TOKENIZER: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
# In the order of preference: safetensors; else what torch's restricted unpickler can read.
_WEIGHTS: Final = {
    "unet": (("diffusion_pytorch_model", "safetensors"), ("diffusion_pytorch_model", "bin")),
    "text_encoder": (("model", "safetensors"), ("pytorch_model", "bin")),
}
_CHUNK: Final = 1 << 20


class DiffusionFiles:
    """Of the checkpoint at ``path`` (hub id, folder or fsspec URL): UNet, text encoder, tokenizer, the scheduler's
    configuration and the VAE's, and nothing else: no weights of a VAE, no safety checker.

    Gathered once, when first asked for; the folder is removed with this object.

    Args:
        revision: of a hub id.
        variant: of the weights' files, such as fp16; the UNet must have it, the text encoder may.
    """

    def __init__(self, path: str, *, revision: str | None, variant: str | None) -> None:
        self.path, self._revision, self._variant = path, revision, variant
        self._open = contextlib.ExitStack()
        self._folder: Path | None = None
        weakref.finalize(self, self._open.close)

    @property
    def folder(self) -> Path:
        """Holds unet/, text_encoder/, tokenizer/, scheduler/ and vae/, their weights under the names without variant.

        Raises FileNotFoundError where one isn't there, ValueError where the checkpoint can't be one.
        """
        if self._folder is None:
            with contextlib.ExitStack() as opened:
                folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="asymvae-")))
                for component in ("unet", "text_encoder", "tokenizer", "scheduler", "vae"):
                    source = Checkpoint(self.path, subfolder=component, revision=self._revision)
                    (folder / component).mkdir()
                    for name, file in self._files_of(component, source).items():
                        (folder / component / name).symlink_to(Path(file).absolute())
                self._open.push(opened.pop_all())
            self._folder = folder
        return self._folder

    def config(self, component: str) -> dict[str, Any]:
        name = "scheduler_config.json" if component == "scheduler" else "config.json"
        config: dict[str, Any] = json.loads((self.folder / component / name).read_text(encoding="utf-8"))
        return config

    def digest(self) -> str:
        """sha256, in hex, over names and bytes of every file but the VAE's configuration, which decides nothing."""
        total = hashlib.sha256()
        for file in sorted(self.folder.glob("*/*")):
            if file.parent.name == "vae":
                continue
            one = hashlib.sha256()
            with file.open("rb") as opened:
                while chunk := opened.read(_CHUNK):
                    one.update(chunk)
            total.update(f"{file.parent.name}/{file.name}\0{one.hexdigest()}\n".encode())
        return total.hexdigest()

    def _files_of(self, component: str, source: Checkpoint) -> dict[str, str]:
        """Local paths by the names that diffusers and transformers look for."""
        if component == "tokenizer":
            found = {name: file for name in _TOKENIZER if (file := source.find(name)) is not None}
            if "tokenizer.json" not in found:
                found |= {name: self._required(component, source, name) for name in ("vocab.json", "merges.txt")}
            return found
        config = "scheduler_config.json" if component == "scheduler" else "config.json"
        found = {config: self._required(component, source, config)}
        if component not in _WEIGHTS:
            return found
        variants = [self._variant] if component == "unet" or self._variant is None else [self._variant, None]
        tried = []
        for variant in variants:
            for stem, extension in _WEIGHTS[component]:
                index, single = weight_files(extension, variant, stem)
                plain_index, plain = weight_files(extension, None, stem)
                if (file := source.find(single)) is not None:
                    return found | {plain: file}
                if (file := source.find(index)) is not None:
                    shards = self._shards(file)
                    return (
                        found | {plain_index: file} | {name: self._required(component, source, name) for name in shards}
                    )
                tried += [single, index]
        raise self._missing(component, " nor ".join(tried))

    def _shards(self, index: str) -> list[str]:
        names = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise ValueError(f"an index of shards in {self} names files outside its folder")
        return names

    def _required(self, component: str, source: Checkpoint, name: str) -> str:
        file = source.find(name)
        if file is None:
            raise self._missing(component, name)
        return file

    def _missing(self, component: str, names: str) -> FileNotFoundError:
        return FileNotFoundError(
            f"{self}/{component} holds no {names}; it must be an inpainting checkpoint in diffusers' layout: "
            "are inpaint.diffusion.path, revision and variant right?"
        )

    def __str__(self) -> str:
        return str(Checkpoint(self.path, subfolder=None, revision=self._revision))  # without credentials
