"""Inpainters that end their process with a real SIGKILL, or hang, at a chosen moment; a marker file proves it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from asymvae.batch import Batch
from asymvae.inpaint.diffusion import DiffusionFill
from asymvae.inpaint.harmonic import HarmonicFill
from asymvae.model.autoencoder import AsymmetricAutoencoderKL
from asymvae.storage import filesystem, ledger


def kill_once(marker: Path) -> None:
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


class KilledAtWork(HarmonicFill):
    """In the middle of a shard: at the batch that holds ``key``."""

    def __init__(self, marker: str, key: str) -> None:
        super().__init__()
        self.marker, self.key = Path(marker), key

    def fill(self, batch: Batch, vae: AsymmetricAutoencoderKL) -> Tensor:
        if any(item.key == self.key for item in batch.items):
            kill_once(self.marker)
        return super().fill(batch, vae)


class KilledAtPainting(DiffusionFill):
    """As :class:`KilledAtWork`, with diffusion's settings as options."""

    def __init__(self, marker: str, key: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.marker, self.key = Path(marker), key

    def fill(self, batch: Batch, vae: AsymmetricAutoencoderKL) -> Tensor:
        if any(item.key == self.key for item in batch.items):
            kill_once(self.marker)
        return super().fill(batch, vae)


class KilledInCommit(HarmonicFill):
    """Between a shard's parts: results are put, metrics are not."""

    def __init__(self, marker: str) -> None:
        super().__init__()
        put = filesystem.put_if_absent

        def put_or_die(url: str, source: Any) -> bool:
            if "/metrics/" in url:
                kill_once(Path(marker))
            return put(url, source)

        ledger.filesystem.put_if_absent = put_or_die


class AlwaysKilled(HarmonicFill):
    """A poison sample: whoever runs ``key`` dies, every time."""

    def __init__(self, key: str) -> None:
        super().__init__()
        self.key = key

    def fill(self, batch: Batch, vae: AsymmetricAutoencoderKL) -> Tensor:
        if any(item.key == self.key for item in batch.items):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().fill(batch, vae)


class HungOnce(HarmonicFill):
    """Makes no progress, once: at the batch that holds ``key``."""

    def __init__(self, marker: str, key: str) -> None:
        super().__init__()
        self.marker, self.key = Path(marker), key

    def fill(self, batch: Batch, vae: AsymmetricAutoencoderKL) -> Tensor:
        if any(item.key == self.key for item in batch.items):
            try:
                self.marker.touch(exist_ok=False)
                time.sleep(3600)
            except FileExistsError:
                pass
        return super().fill(batch, vae)
