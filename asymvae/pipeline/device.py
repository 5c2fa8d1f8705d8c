"""The device's side of a shard: items in, arrays out, as the kind of job has it. One a worker, shared by its shards."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asymvae.batch import padded_size
from asymvae.faults import Fault
from asymvae.model.autoencoder import AsymmetricAutoencoderKL
from asymvae.pipeline.capacity import BatchPlan, Run
from asymvae.pipeline.kinds.base import Done, Kind, Made, Work


class _Copies:
    """A batch whose copies back to the host are under way."""

    def __init__(self, items: list[Any], made: Made) -> None:
        self._items, self._names = items, list(made.arrays)
        self._faults = [fault for fault, _ in made.failed]
        tensors = [*made.arrays.values(), torch.stack([bad for _, bad in made.failed], dim=1)]
        self._event: torch.cuda.Event | None = None
        if tensors[0].is_cuda:
            tensors = [_to_pinned(tensor) for tensor in tensors]
            # Blocking: the thread that waits sleeps. By default it would spin, on a core that encoding could use.
            self._event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._event.record()
        self._tensors = tensors

    def result(self) -> list[Done]:
        """Wait for the copies; an entry an item, in order."""
        if self._event is not None:
            self._event.synchronize()
        *arrays, failed = [tensor.numpy() for tensor in self._tensors]
        done = []
        for row, item in enumerate(self._items):
            faults = [fault for fault, bad in zip(self._faults, failed[row], strict=True) if bad]
            of_item = {name: array[row] for name, array in zip(self._names, arrays, strict=True)}
            done.append(Done(item, of_item, faults[0] if faults else None))
        return done


class _Refused:
    """One item that doesn't fit the device's memory, even alone."""

    def __init__(self, item: Work) -> None:
        self._item = item

    def result(self) -> list[Done]:
        height, width = self._item.size
        return [Done(self._item, {}, Fault("out_of_memory", {"width": width, "height": height}))]


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
    """Loads the model and what the kind of job needs beside it; runs batches.

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
        kind: Kind[Any],
        budget: int | None = None,
    ) -> None:
        threads = kind.job.workers.cpu_threads
        self.kind = kind
        self._thread = ThreadPoolExecutor(1, "device", initializer=torch.set_num_threads, initargs=(threads,))
        self.model = self._thread.submit(load).result()
        parameter = next(self.model.parameters())
        self._thread.submit(kind.load, self.model, parameter.device, parameter.dtype).result()
        self.batches = BatchPlan(kind.job, self.model.config, parameter.dtype, budget, kind.passes)
        self._thread.submit(self._compile).result()
        self._smaller: dict[Hashable, Run] = {}  # by shape_key: what fitted where the plan didn't
        self._told = False
        # Since the worker began, for whoever watches: items that were run, their places in batches, and seconds.
        self.rows = self.places = 0
        self.busy_s = 0.0

    @torch.inference_mode()  # compiled code is kept for the mode that it was made in
    def _compile(self) -> None:
        for height, width in self.kind.job.model.compiled_sizes:
            run = self.batches.of(height, width)
            if not run.in_strips:
                self.model.compile_for(run.size, height, width, decode="decode" in self.kind.passes)

    def batch_size(self, item: Work) -> int:
        """How many of this item's shape are to be launched together: by the plan, never by what happened since."""
        return self.batches.of(*item.size).size

    def launch(self, items: list[Any]) -> tuple[Pending, float]:
        """Start items of one shape. Returns them and the seconds the device (on a GPU: its launching thread) was
        busy."""
        return self._thread.submit(self._launch, items).result()

    def _launch(self, items: list[Any]) -> tuple[Pending, float]:
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
            self.rows += len(chunk)
            self.places += size
            waiting = rest
        seconds = time.perf_counter() - started
        self.busy_s += seconds
        return pending, seconds

    def _less_than(self, size: int, in_strips: bool, item: Work) -> Run | None:
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

    def _attempt(self, items: list[Any], size: int, in_strips: bool) -> _Copies | None:
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
    def _run(self, items: list[Any], size: int) -> _Copies:
        return _Copies(items, self.kind.run(items, size))


# What torch and CUDA's libraries say where they have no class for it.
_SAID_OUT_OF_MEMORY = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
)


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(said in str(error) for said in _SAID_OUT_OF_MEMORY)
