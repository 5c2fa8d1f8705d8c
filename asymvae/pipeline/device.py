"""The device's side of a shard: items in, decoded uint8 and metrics out. One a worker, shared by its shards."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asymvae.batch import Batch, Item, collate, padded_size
from asymvae.config import InpaintJob
from asymvae.faults import Fault
from asymvae.inpaint.base import Inpainter
from asymvae.model.autoencoder import AsymmetricAutoencoderKL
from asymvae.stages.decode import Decode
from asymvae.stages.encode import Encode
from asymvae.stages.inpaint import Inpaint
from asymvae.stages.measure import Measure


@dataclass(slots=True)
class Done:
    """One item after the device: its pixels (H, W, 3) uint8 and metrics (None where undefined), or its fault."""

    item: Item
    pixels: NDArray[np.uint8]
    metrics: dict[str, float | None]
    fault: Fault | None


class Pending:
    """A batch whose copies back to the host are under way."""

    def __init__(self, batch: Batch, pixels: Tensor, metrics: Tensor, failed: Tensor) -> None:
        self._batch, self._pixels, self._metrics, self._failed = batch, pixels, metrics, failed
        self._event: torch.cuda.Event | None = None
        if pixels.is_cuda:
            self._pixels, self._metrics, self._failed = (_to_pinned(t) for t in (pixels, metrics, failed))
            # Blocking: the thread that waits sleeps. By default it would spin, on a core that encoding could use.
            self._event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._event.record()

    def result(self) -> list[Done]:
        """Wait for the copies; an entry an item, in order."""
        if self._event is not None:
            self._event.synchronize()
        pixels, metrics, failed = self._pixels.numpy(), self._metrics.numpy(), self._failed.numpy()
        done = []
        for row, item in enumerate(self._batch.items):
            values = {
                name: None if np.isnan(value) else float(value)
                for name, value in zip(self._batch.metrics, metrics[:, row], strict=True)
            }
            faults = [fault for (fault, _), bad in zip(self._batch.failed, failed[:, row], strict=True) if bad]
            done.append(Done(item, pixels[row], values, faults[0] if faults else None))
        return done


def _to_pinned(tensor: Tensor) -> Tensor:
    out = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return out.copy_(tensor, non_blocking=True)


class Device:
    """Loads the model and what the inpainter needs beside it, and runs batches through encode, inpaint, decode and measure.

    All of it on one thread of its own: shards share it without a lock, and OpenMP keeps one team. With a team in every
    thread that once called torch it counts more threads than cores and puts them to sleep between any two layers: 20%
    of a CPU's speed.

    Args:
        load: makes the model, on its device and in its dtype.
    """

    def __init__(self, load: Callable[[], AsymmetricAutoencoderKL], inpainter: Inpainter, job: InpaintJob) -> None:
        threads = job.workers.cpu_threads
        self._thread = ThreadPoolExecutor(1, "device", initializer=torch.set_num_threads, initargs=(threads,))
        self.model = self._thread.submit(load).result()
        parameter = next(self.model.parameters())
        self._thread.submit(inpainter.load, self.model, parameter.device, parameter.dtype).result()
        self.batch_size = job.workers.batch_size
        self.stages = (Encode(self.model, inpainter), Inpaint(self.model, inpainter), Decode(self.model), Measure())

    def launch(self, items: list[Item]) -> tuple[Pending, float]:
        """Start one batch. Returns it and the seconds the device (on a GPU: its launching thread) was busy."""
        return self._thread.submit(self._run, items).result()

    @torch.inference_mode()
    def _run(self, items: list[Item]) -> tuple[Pending, float]:
        started = time.perf_counter()
        parameter = next(self.model.parameters())
        batch = collate(items, padded_size(len(items), self.batch_size), parameter.device, parameter.dtype)
        for stage in self.stages:
            batch = stage(batch)
        assert batch.decoded is not None
        # Clamped, then rounded, as diffusers' image processor does (denormalize, then (x * 255).round()).
        pixels = batch.decoded.float().nan_to_num().add(1).mul(127.5).clamp(0, 255).round().to(torch.uint8)
        pending = Pending(
            batch,
            pixels.permute(0, 2, 3, 1).contiguous(),
            torch.stack(list(batch.metrics.values())),
            torch.stack([bad for _, bad in batch.failed]),
        )
        return pending, time.perf_counter() - started
