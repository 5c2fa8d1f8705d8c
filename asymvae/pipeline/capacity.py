"""What fits a worker's device: its memory, the share of it that batches may take, and the batch of each shape."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import psutil
import torch

from asymvae.config import ShardJob
from asymvae.model.config import AutoencoderConfig
from asymvae.model.memory import decode_bytes, encode_bytes
from asymvae.model.tiling import Tiling

# Of what a worker may use: the rest is for the CUDA context, an inpainter's own network and workspaces, and for the
# allocator, whose blocks don't fit each other without loss. On a CPU the samples in flight live there too.
_SHARE = {"cuda": 0.8, "cpu": 0.5}
_STEP = 2**28  # budgets are whole multiples: a few bytes of a driver's make no other batches
# Where `auto` ends. A CPU gains nothing from large batches.
_MOST = {"cuda": 64, "cpu": 8}

# What a batch holds beside the network, and what measuring makes: bytes a pixel of the image, and numbers of the
# network's dtype. Measured with asymvae.stages, see tests/pipeline/test_capacity.py.
_HELD_BYTES, _HELD_NUMBERS = 8, 11
_STAGE_BYTES = 200

# What a batch goes through on the device; "condition" is the decoder's branch for image and mask.
Pass = Literal["encode", "decode", "condition", "measure"]
ALL_PASSES: frozenset[Pass] = frozenset({"encode", "decode", "condition", "measure"})

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes of one device, and those of them that nobody holds."""

    total: int
    free: int


def device_memory(job: ShardJob) -> DeviceMemory:
    """Of the device that a worker of ``job`` would have, were it this process."""
    if job.workers.gpus > 0:
        free, total = torch.cuda.mem_get_info()
        return DeviceMemory(total, free)
    total = min([psutil.virtual_memory().total, *_limits()])
    return DeviceMemory(total, total)  # what the page cache holds is free, too


def _limits() -> list[int]:
    """Bytes that this container may use, where it is limited."""
    found = (Path(name).read_text().strip() for name in _CGROUP_LIMITS if Path(name).is_file())
    return [int(text) for text in found if text.isdigit()]


def batch_budget(memory: DeviceMemory, job: ShardJob, weights: int) -> int:
    """Bytes that a worker's batches may take, beside the model's ``weights``. 0: not even they fit."""
    workers = job.workers
    if workers.gpus > 0:
        kind, part = "cuda", min(workers.gpus, 1.0)  # a worker's model is on one device, however many it has
    else:
        kind, part = "cpu", min(workers.cpu_threads / (os.cpu_count() or 1), 1.0)
    usable = int(min(memory.total * part, memory.free) * _SHARE[kind])
    return max(usable - weights, 0) // _STEP * _STEP


@dataclass(frozen=True, slots=True)
class Run:
    """How a shape is run: at most ``size`` samples at once, whole or ``in_strips``."""

    size: int
    in_strips: bool


class BatchPlan:
    """The run of each shape: a pure function of the settings, the model's configuration and the budget.

    Args:
        budget: bytes that a batch may take beside the weights; None: whatever it takes.
        passes: what of the pipeline a batch goes through.
    """

    def __init__(
        self,
        job: ShardJob,
        config: AutoencoderConfig,
        dtype: torch.dtype,
        budget: int | None,
        passes: frozenset[Pass] = ALL_PASSES,
    ) -> None:
        self._batch_size = job.workers.batch_size
        self._tiling = job.model.tiling
        self._config, self._dtype = config, dtype
        self._budget, self._passes = budget, passes
        kind = "cuda" if job.workers.gpus > 0 else "cpu"
        self.most = _MOST[kind] if self._batch_size == "auto" else self._batch_size
        self.of = lru_cache(maxsize=4096)(self._of)

    def strips(self, height: int, width: int) -> int | None:
        """Rows of a strip, where strips may be used and an image of that many pixels is cut at all."""
        return None if self._tiling is False else self._rows(height, width)

    def _rows(self, height: int, width: int) -> int | None:
        factor = max(self._config.encoder_factor, self._config.decoder_factor)
        cells = Tiling().cells((height // factor, width // factor), factor)
        return None if cells is None else cells * factor

    def _of(self, height: int, width: int) -> Run:
        """The run of images of ``height`` x ``width`` pixels."""
        rows = self.strips(height, width)
        fits_whole = self._budget is None or self.sample_bytes(height, width, None) <= self._budget
        in_strips = rows is not None and (self._tiling is True or not fits_whole)
        if self._batch_size != "auto" and (not in_strips or self._tiling is True):
            return Run(self._batch_size, in_strips)
        # A shape of which one sample is too large when whole takes the batch that fits, whatever batch_size says.
        a_sample = self.sample_bytes(height, width, rows if in_strips else None)
        size = 1
        while 2 * size <= self.most and (self._budget is None or 2 * size * a_sample <= self._budget):
            size *= 2
        return Run(size, in_strips)

    def sample_bytes(self, height: int, width: int, rows: int | None) -> int:
        """Peak of one sample on its way through all stages, in strips of ``rows`` or whole; a batch takes its size
        times as much."""
        area = height * width
        held = area * (_HELD_BYTES + _HELD_NUMBERS * self._dtype.itemsize)
        peaks = [0]
        if "encode" in self._passes:
            peaks.append(encode_bytes(self._config, height, width, self._dtype, rows=rows))
        if "decode" in self._passes:
            masked = "condition" in self._passes
            peaks.append(decode_bytes(self._config, height, width, self._dtype, masked=masked, rows=rows))
        if "measure" in self._passes:
            peaks.append(area * _STAGE_BYTES)
        return held + max(peaks)
