"""OUT of a training run: plain files that one can list, each whole or not there.

_train.json                       the settings that decide the result
block_transform.safetensors       the linear start, where there is one
state/<stage>.pt                  what a resumed run goes on from; the newest only
losses/<stage>-<step>.parquet     a row a step, up to that step
pictures/<stage>-<step>.jpg       a few crops as they went in and came out
autoencoder/                      diffusers checkpoint of the first stage
checkpoint/                       diffusers checkpoint of the last: the result
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from asymvae.fingerprint import settings_that
from asymvae.media.image import encode_image
from asymvae.model.autoencoder import AsymmetricAutoencoderKL
from asymvae.model.checkpoint import CONFIG_FILE
from asymvae.storage.filesystem import (
    TEMPORARY,
    info,
    join,
    list_files,
    put_if_absent,
    read_bytes,
    redact,
    remove,
    replace,
)
from asymvae.training.config import TrainJob
from asymvae.training.linear import FILE, BlockTransform

AUTOENCODER: Final = "autoencoder"
CHECKPOINT: Final = "checkpoint"
_JOB: Final = "_train.json"
_URLS: Final = ("input.urls", "network.encoder", "decoder.lpips_weights")  # no credentials go into a record

# One schema for all stages, so that the losses open as one data set; what a stage doesn't have is null.
_NAMES: Final = ("loss", "l1", "kl", "l1_known", "lpips", "adversarial", "discriminator")
SCHEMA: Final = pa.schema(
    [("stage", pa.string()), ("step", pa.int64())]
    + [(name, pa.float64()) for name in _NAMES]
    + [("learning_rate", pa.float64()), ("seconds", pa.float64())]
)


class OtherRunError(ValueError):
    """The folder holds a run of other settings. The message names those that differ."""


class RunFolder:
    def __init__(self, url: str) -> None:
        self.url = url

    def open(self, job: TrainJob) -> None:
        """Create it for ``job``, or find it as that job left it. Raises OtherRunError where it holds what another
        job trained; one that came to nothing, such as a misspelt one, gives way.
        """
        ours = settings_that(job, "yes")
        for name in _URLS:
            value = ours[name]
            ours[name] = [redact(url) for url in value] if isinstance(value, list) else value and redact(value)
        if put_if_absent(self._at(_JOB), (json.dumps(ours, indent=2) + "\n").encode()):
            return
        theirs = json.loads(read_bytes(self._at(_JOB)))
        differ = [
            f"  {name}: was {json.dumps(theirs.get(name))}, is {json.dumps(ours.get(name))}"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        ]
        if not differ:
            return
        # without the state, which someone may remove to save space, a checkpoint would be taken for this job's own
        if list_files(self._at("state")) or self.has_checkpoint(AUTOENCODER) or self.has_checkpoint(CHECKPOINT):
            raise OtherRunError(
                "\n".join([f"{redact(self.url)} holds a run of other settings; take another output.url", *differ])
            )
        remove(self._at(FILE))  # fitted under those settings
        replace(self._at(_JOB), (json.dumps(ours, indent=2) + "\n").encode())

    def save_state(self, stage: str, state: Mapping[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        replace(self._at("state", f"{stage}.pt"), buffer.getvalue())

    def load_state(self, stage: str) -> dict[str, Any] | None:
        try:
            content = read_bytes(self._at("state", f"{stage}.pt"))
        except FileNotFoundError:
            return None
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return state

    def drop_after(self, stage: str, step: int) -> None:
        """Losses and pictures of later steps than the state's go: a crash left them, and their steps come again,
        perhaps under other names. So do unfinished files, of which a state's is as large as a state.
        """
        for kind in ("state", "losses", "pictures"):
            for name in filter(TEMPORARY.match, list_files(self._at(kind), prefix=f".{stage}")):
                remove(self._at(kind, name))
        for kind in ("losses", "pictures"):
            for name in list_files(self._at(kind), prefix=f"{stage}-"):
                if int(name.removeprefix(f"{stage}-").partition(".")[0]) > step:
                    remove(self._at(kind, name))

    def write_losses(self, stage: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), buffer)
        replace(self._at("losses", f"{stage}-{step:08d}.parquet"), buffer.getvalue())

    def write_picture(self, stage: str, step: int, rows: Sequence[Tensor], *, columns: int = 8) -> None:
        """``rows``: (N, 3, H, W) in [-1, 1] each, drawn below one another, the first ``columns`` samples of each."""
        sheet = torch.cat([torch.cat(list(row[:columns].float().cpu()), dim=2) for row in rows], dim=1)
        pixels: NDArray[np.uint8] = ((sheet.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        data = encode_image(np.ascontiguousarray(pixels), image_format="jpeg", quality=90)
        assert isinstance(data, bytes)
        replace(self._at("pictures", f"{stage}-{step:08d}.jpg"), data)

    def write_checkpoint(self, name: str, model: AsymmetricAutoencoderKL) -> str:
        """Returns where it is. Its config.json comes last: with it the checkpoint is whole."""
        model.save_pretrained(self._at(name))
        return self._at(name)

    def has_checkpoint(self, name: str) -> bool:
        return self._exists(name, CONFIG_FILE)

    def load_checkpoint(self, name: str) -> AsymmetricAutoencoderKL:
        return AsymmetricAutoencoderKL.from_pretrained(self._at(name))

    def write_transform(self, transform: BlockTransform, *below: str) -> None:
        transform.save(self._at(*below, FILE))

    def read_transform(self) -> BlockTransform | None:
        return BlockTransform.load(self._at(FILE)) if self._exists(FILE) else None

    def _exists(self, *names: str) -> bool:
        try:
            info(self._at(*names))
        except FileNotFoundError:
            return False
        return True

    def _at(self, *names: str) -> str:
        return join(self.url, *names)
