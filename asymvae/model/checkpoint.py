"""Checkpoints as diffusers lays them out, in a hub repository, a folder or below an fsspec URL.

A checkpoint is ``config.json`` and, with an optional variant, the weights:
``diffusion_pytorch_model[.variant].safetensors``, or shards of it with
``diffusion_pytorch_model.safetensors.index[.variant].json``; else the same with ``.bin``. A ``.bin`` is read by
torch's restricted unpickler (``weights_only=True``), which builds tensors and nothing else.

What reads and writes them is imported when it is called: the network itself runs where torch alone is installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from .local_copy import local_copy

if TYPE_CHECKING:
    from huggingface_hub.errors import LocalEntryNotFoundError

CLASS_NAME: Final = "AsymmetricAutoencoderKL"
CONFIG_FILE: Final = "config.json"
_STEM: Final = "diffusion_pytorch_model"
_HUB_ID: Final = re.compile(r"[\w.-]+(/[\w.-]+)?")

# names that diffusers gave the attention's parts before its version 0.15
_LEGACY_NAMES: Final = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_LEGACY: Final = re.compile(r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)")


class CheckpointError(ValueError):
    """The files are there but don't make up this model."""


class Checkpoint:
    """Where a checkpoint lies.

    ``path``: a folder, an fsspec URL, or a hub id (with ``revision``). Raises ValueError for a revision of anything
    but a hub id, FileNotFoundError for what can be neither.
    """

    def __init__(self, path: str | os.PathLike[str], *, subfolder: str | None, revision: str | None) -> None:
        self._path, self._subfolder, self._revision = os.fspath(path), subfolder, revision
        self._filesystem: Any = None
        self._unreachable: LocalEntryNotFoundError | None = None
        if "://" in self._path or os.path.isdir(self._path):
            import fsspec

            self._filesystem, self._root = fsspec.core.url_to_fs(self._path)
            if revision is not None:
                raise ValueError(f"revision={revision!r} was given, but {self} is no hub id; leave it out")
        elif not _HUB_ID.fullmatch(self._path):
            raise FileNotFoundError(f"{self._path} is no folder here, and no hub id (owner/name) either")

    def __str__(self) -> str:
        # no credentials, no signature of a signed URL
        return re.sub(r"://[^/@]*@", "://", self._path).split("?")[0]

    def read_config(self, *, also: Collection[str] = ()) -> dict[str, Any]:
        """The fields of ``config.json``, diffusers' own underscored ones included.

        Raises FileNotFoundError without one, CheckpointError where it describes another class, ``also`` apart.
        """
        file = self.find(CONFIG_FILE)
        if file is None:
            raise self._not_found(CONFIG_FILE)
        config: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
        name = config.get("_class_name", CLASS_NAME)
        if name != CLASS_NAME and name not in also:
            raise CheckpointError(f"{self} holds a {name}, not an {CLASS_NAME}")
        return config

    def read_weights(self, *, variant: str | None) -> dict[str, Tensor]:
        """Every tensor, in memory, as stored but for legacy attention names and shapes, which become today's.

        Raises FileNotFoundError where there is no weights file of this variant, CheckpointError where one holds
        anything else than tensors.
        """
        tried: list[str] = []
        for extension in ("safetensors", "bin"):
            index, single = weight_files(extension, variant)
            tried += [single, index]
            if (file := self.find(index)) is not None:
                shards = sorted(set(json.loads(Path(file).read_text(encoding="utf-8"))["weight_map"].values()))
            elif self.find(single) is not None:
                shards = [single]
            else:
                continue
            return modernise(dict(pair for shard in shards for pair in self._read_tensors(shard)))
        raise self._not_found(" nor ".join(tried))

    def _read_tensors(self, name: str) -> Iterator[tuple[str, Tensor]]:
        file = self.find(name)
        if file is None:
            raise self._not_found(name)
        if name.endswith(".safetensors"):
            import safetensors.torch

            # clones: the file may be written again, or its copy removed, while the model lives
            for key, tensor in safetensors.torch.load_file(file).items():
                yield key, tensor.clone()
            return
        load = partial(torch.load, file, map_location="cpu", weights_only=True)
        yield from only_tensors(load, f"{name} of {self}").items()

    def find(self, name: str) -> str | None:
        """A local path of the checkpoint's file ``name``; None where it has no such file."""
        if self._filesystem is None:
            return self._download(name)
        file = "/".join(part for part in (self._root.rstrip("/"), self._subfolder, name) if part)
        if not self._filesystem.isfile(file):
            return None
        if _is_local(self._filesystem):
            return file
        return local_copy(self._filesystem, file)

    def _download(self, name: str) -> str | None:
        import huggingface_hub
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            return str(
                huggingface_hub.hf_hub_download(self._path, name, subfolder=self._subfolder, revision=self._revision)
            )
        except LocalEntryNotFoundError as error:  # offline and not in the cache: another name may be
            self._unreachable = error
            return None
        except EntryNotFoundError:
            return None

    def _not_found(self, names: str) -> FileNotFoundError:
        if self._unreachable is not None:
            return self._unreachable
        where = f"{self}/{self._subfolder}" if self._subfolder else str(self)
        return FileNotFoundError(f"{where} holds no {names}; is the path, subfolder, revision or variant right?")


def weight_files(extension: str, variant: str | None, stem: str = _STEM) -> tuple[str, str]:
    """The names of the index of shards, and of the one file where there are no shards."""
    dotted = f".{variant}" if variant else ""
    return f"{stem}.{extension}.index{dotted}.json", f"{stem}{dotted}.{extension}"


def only_tensors(load: Callable[[], Any], where: str) -> Mapping[str, Tensor]:
    """What ``load`` reads of the file ``where``. Raises CheckpointError where that is anything else than tensors."""
    try:
        content = load()
    except Exception as error:
        raise CheckpointError(
            f"{where} can't be read as tensors alone, and is never unpickled otherwise: "
            "convert it to safetensors where you trust it"
        ) from error
    if not isinstance(content, Mapping) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise CheckpointError(f"{where} is no flat dictionary of tensors")
    return content


def modernise(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Attention weights by today's names, and as matrices where they were 1x1 convolutions."""
    modern = {}
    for name, tensor in state.items():
        if match := _LEGACY.fullmatch(name):
            name = f"{match[1]}.{_LEGACY_NAMES[match[2]]}.{match[3]}"
        if ".attentions." in name and name.endswith(".weight") and set(tensor.shape[2:]) == {1}:
            tensor = tensor.flatten(1)
        modern[name] = tensor
    return modern


def check_keys(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str, *, allow_unexpected: bool
) -> None:
    """Raises CheckpointError, listing every key that is missing, mis-shaped or (unless allowed) unexpected."""
    missing = sorted(expected.keys() - state.keys())
    unexpected = sorted(state.keys() - expected.keys())
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in sorted(expected.keys() & state.keys())
        if state[key].shape != expected[key].shape
    ]
    found = [("missing", missing), ("of another shape", shapes)]
    if not allow_unexpected:
        found.append(("unexpected (allow_unexpected=True leaves them out)", unexpected))
    lines = [f"{len(keys)} {what}: {', '.join(keys)}" for what, keys in found if keys]
    if lines:
        raise CheckpointError("\n".join([f"the weights of {where} don't fit its configuration", *lines]))


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """sha256, in hex, over the tensors in the order of their names: name, dtype, shape, bytes (little-endian).

    It depends on the tensors as stored (before any change of dtype), not on the file's format or its shards.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(f"{name}\0{dtype}\0{','.join(map(str, tensor.shape))}\0".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write(
    url: str | os.PathLike[str],
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    variant: str | None,
    max_shard_size: int | str,
) -> None:
    """Writes ``config.json`` and safetensors below a folder or fsspec URL; stale weights of the variant go.

    Each file appears whole or not at all, the index of shards last but for the configuration.
    """
    import fsspec
    import huggingface_hub
    import safetensors.torch

    filesystem, root = fsspec.core.url_to_fs(os.fspath(url))
    filesystem.makedirs(root, exist_ok=True)
    index, single = weight_files("safetensors", variant)
    split = huggingface_hub.split_torch_state_dict_into_shards(
        dict(state),
        filename_pattern=single.replace(".safetensors", "{suffix}.safetensors"),
        max_shard_size=max_shard_size,
    )
    with tempfile.TemporaryDirectory(dir=root if _is_local(filesystem) else None) as folder:
        names = []
        for name, keys in split.filename_to_tensors.items():
            tensors = {key: state[key].detach().cpu().contiguous() for key in keys}
            safetensors.torch.save_file(tensors, os.path.join(folder, name), metadata={"format": "pt"})
            names.append(name)
        if split.is_sharded:
            weight_map = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
            _write_json(os.path.join(folder, index), weight_map)
            names.append(index)
        _write_json(os.path.join(folder, CONFIG_FILE), config)
        for name in names:  # safetensors lets nobody but the owner read what it writes
            shutil.copymode(os.path.join(folder, CONFIG_FILE), os.path.join(folder, name))
        for name in [*names, CONFIG_FILE]:
            file = os.path.join(folder, name)
            if _is_local(filesystem):
                os.replace(file, os.path.join(root, name))
            else:
                filesystem.put_file(file, f"{root.rstrip('/')}/{name}")
    stem = re.escape(single.removesuffix(".safetensors"))
    ours = re.compile(rf"{stem}(-\d{{5}}-of-\d{{5}})?\.safetensors|{re.escape(index)}")
    for file in filesystem.ls(root, detail=False):
        name = str(file).rsplit("/", 1)[-1]
        if ours.fullmatch(name) and name not in names:
            filesystem.rm_file(file)


def _is_local(filesystem: Any) -> bool:
    from fsspec.implementations.local import LocalFileSystem

    return isinstance(filesystem, LocalFileSystem)


def _write_json(file: str, content: Any) -> None:
    Path(file).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
