"""The device's side of a shard: items in, decoded uint8 and metrics out. One a worker, shared by its shards."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Hashable
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
from asymvae.pipeline.capacity import BatchPlan, Run
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


class _Copies:
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


class _Refused:
    """One item that doesn't fit the device's memory, even alone."""

    def __init__(self, item: Item) -> None:
        self._item = item

    def result(self) -> list[Done]:
        height, width = self._item.image.shape[:2]
        nothing = np.zeros((0, 0, 3), np.uint8)
        return [Done(self._item, nothing, {}, Fault("out_of_memory", {"width": width, "height": height}))]


@dataclass(slots=True)
class Pending:
    """What was launched together. ``degraded``: it didn't fit the device's memory as it was planned, and was run
    otherwise, so its bytes may differ from another run's, by rounding."""

    parts: list[_Copies | _Refused]
    degraded: bool

    def result(self) -> list[Done]:
        """Wait for the copies; an entry an item, in order."""
        return [done for part in self.parts for done in part.result()]


def _to_pinned(tensor: Tensor) -> Tensor:
    out = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return out.copy_(tensor, non_blocking=True)


class Device:
    """Loads the model and what the inpainter needs beside it; runs batches through encode, inpaint, decode, measure.

    All of it on one thread of its own: shards share it without a lock, and OpenMP keeps one team. With a team in every
    thread that once called torch it counts more threads than cores and puts them to sleep between any two layers: 20%
    of a CPU's speed.

    What doesn't fit the device's memory is run in halves, a single sample in strips, and what then doesn't fit is a
    fault of that sample. The smaller run is kept for its shape as long as the worker lives.

    Args:
        load: makes the model, on its device and in its dtype.
        budget: bytes that a batch may take, see :class:`asymvae.pipeline.capacity.BatchPlan`.
    """

    def __init__(
        self,
        load: Callable[[], AsymmetricAutoencoderKL],
        inpainter: Inpainter,
        job: InpaintJob,
        budget: int | None = None,
    ) -> None:
        threads = job.workers.cpu_threads
        self._thread = ThreadPoolExecutor(1, "device", initializer=torch.set_num_threads, initargs=(threads,))
        self.model = self._thread.submit(load).result()
        parameter = next(self.model.parameters())
        self._thread.submit(inpainter.load, self.model, parameter.device, parameter.dtype).result()
        self.batches = BatchPlan(job, self.model.config, parameter.dtype, budget)
        self._smaller: dict[Hashable, Run] = {}  # by shape_key: what fitted where the plan didn't
        self._told = False
        self.stages = (Encode(self.model, inpainter), Inpaint(self.model, inpainter), Decode(self.model), Measure())

    def batch_size(self, item: Item) -> int:
        """How many of this item's shape are to be launched together: by the plan, never by what happened since."""
        return self.batches.of(*item.size).size

    def launch(self, items: list[Item]) -> tuple[Pending, float]:
        """Start items of one shape. Returns them and the seconds the device (on a GPU: its launching thread) was
        busy."""
        return self._thread.submit(self._launch, items).result()

    def _launch(self, items: list[Item]) -> tuple[Pending, float]:
        started = time.perf_counter()
        key = items[0].shape_key
        planned = self.batches.of(*items[0].size)
        pending = Pending([], False)
        waiting = items
        while waiting:
            run = self._smaller.get(key, planned)
            chunk, rest = waiting[: run.size], waiting[run.size :]
            size = padded_size(len(chunk), run.size)
            as_planned = len(chunk) == len(items) and size == padded_size(len(items), planned.size)
            pending.degraded |= not as_planned or run.in_strips != planned.in_strips
            part = self._attempt(chunk, size, run.in_strips)
            if part is None:
                pending.degraded = True
                smaller = self._less_than(size, run.in_strips, items[0])
                if smaller is not None:
                    self._smaller[key] = smaller
                    continue  # with the same items
            pending.parts.append(_Refused(chunk[0]) if part is None else part)
            waiting = rest
        return pending, time.perf_counter() - started

    def _less_than(self, size: int, in_strips: bool, item: Item) -> Run | None:
        """The next smaller run after one that ran out of memory; None where there is none."""
        if not self._told:
            self._told = True
            height, width = item.size
            print(
                f"out of memory with a batch of {size} of {width}x{height}: from here on this worker halves what "
                "doesn't fit, and marks its shards as degraded. A smaller workers.batch_size, or auto, avoids it",
                file=sys.stderr,
            )
        if size > 1:
            return Run(1 << (size - 1).bit_length() - 1, in_strips)
        return None if in_strips or self.batches.strips(*item.size) is None else Run(1, True)

    def _attempt(self, items: list[Item], size: int, in_strips: bool) -> _Copies | None:
        """None: the device has not the memory."""
        if in_strips:
            self.model.enable_tiling()
        else:
            self.model.disable_tiling()
        try:
            return self._run(items, size)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
        # Out of the handler, whose error's frames held the batch.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    @torch.inference_mode()
    def _run(self, items: list[Item], size: int) -> _Copies:
        parameter = next(self.model.parameters())
        batch = collate(items, size, parameter.device, parameter.dtype)
        for stage in self.stages:
            batch = stage(batch)
        assert batch.decoded is not None
        # Clamped, then rounded, as diffusers' image processor does (denormalize, then (x * 255).round()).
        pixels = batch.decoded.float().nan_to_num().add(1).mul(127.5).clamp(0, 255).round().to(torch.uint8)
        return _Copies(
            batch,
            pixels.permute(0, 2, 3, 1).contiguous(),
            torch.stack(list(batch.metrics.values())),
            torch.stack([bad for _, bad in batch.failed]),
        )


# What torch and CUDA's libraries say where they have no class for it.
_SAID_OUT_OF_MEMORY = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
)


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(said in str(error) for said in _SAID_OUT_OF_MEMORY)
