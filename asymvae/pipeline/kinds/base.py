"""The contract of a kind of job: what differs between inpainting, precomputing latents and decoding them.

What they share is the pipeline's: shards, threads, batches, memory, commits. A kind says how a shard is read, what of
a row goes to the device, what the device makes of it, and which rows come of that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from asymvae.config import ShardJob
from asymvae.faults import Fault
from asymvae.model.autoencoder import AsymmetricAutoencoderKL
from asymvae.pipeline.capacity import ALL_PASSES, Pass
from asymvae.pipeline.rows import Rows
from asymvae.storage.samples import BadSample
from asymvae.storage.shards import Shard

Job = TypeVar("Job", bound=ShardJob)


class Work(Protocol):
    """One planned row on its way to the device."""

    variant: int
    owner: Any  # the pipeline's own mark

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels of the image that it is, or becomes."""
        ...

    @property
    def shape_key(self) -> Hashable:
        """Rows share a batch only where this is equal."""
        ...


class Entry(Protocol):
    """One row of a shard as it was read. ``index`` counts them from 0."""

    @property
    def index(self) -> int: ...
    @property
    def key(self) -> str: ...


class Planned(Protocol):
    """What became of a row of a shard: what the device is to do for it; nothing, where it passes through."""

    @property
    def items(self) -> Sequence[Work]: ...


@dataclass(slots=True)
class Made:
    """What a batch made, on the device: ``arrays`` and ``failed`` have N rows each, of which the first are the
    items', in order. ``failed``: (N,) bool, the items that are error rows of that fault."""

    arrays: dict[str, Tensor]
    failed: list[tuple[Fault, Tensor]]


@dataclass(slots=True)
class Done:
    """One item after the device: its row of every array, or its fault."""

    item: Any
    arrays: dict[str, NDArray[Any]]
    fault: Fault | None

    def numbers(self, name: str) -> list[float | None]:
        """Of a row of numbers; None for a NaN, which is how the device says that a number is undefined."""
        return [None if np.isnan(value) else float(value) for value in self.arrays[name]]


class Kind(ABC, Generic[Job]):
    """One kind of job, with one job's settings. Cheap: the driver makes one, too, and calls what stands first.

    Args:
        job: its settings.
        model_name: what rows and parts may call the model: the path as it was given, without credentials.

    Raises:
        ValueError: the settings ask for what can't be.
    """

    name: ClassVar[str]  # stands in _job.json; the module of the command line
    row_group_bytes: ClassVar[int] = 64 * 2**20  # of a part; a part's writer holds as much
    # Bytes of spool for every byte of the shard.
    growth: ClassVar[int] = 8

    def __init__(self, job: Job, model_name: str = "") -> None:
        self.job = job
        self.model_name = model_name

    # --- asked by the driver, before anything is started

    @property
    def variants(self) -> int:
        """Rows planned of every sample."""
        return 1

    @property
    def passes(self) -> frozenset[Pass]:
        """What a batch goes through, for the memory it takes."""
        return ALL_PASSES

    @property
    def brings(self) -> str:
        """The setting that :meth:`check_model` and :meth:`digest` judge."""
        return "model.path"

    @classmethod
    def blamed(cls, job: Job) -> tuple[str, str]:
        """The setting that is at fault, and its value, where the constructor raises."""
        return "input.urls", ""

    @classmethod
    def resolved(cls, job: Job) -> Job:
        """The job with its own local paths absolute."""
        return job

    def shards(self, root: str | None) -> tuple[str, Sequence[Shard]]:
        """(the folder that names are relative to, every shard of the input). ``root``: an earlier run's.

        ValueError where Parquet files have none of the columns that a setting names.
        """
        from asymvae.storage.parquet import check_columns
        from asymvae.storage.shards import input_root, list_shards

        names = self.job.input
        root = names.root or root or input_root(names.urls)
        shards = list_shards(names.urls, root=root, format=names.format)
        check_columns(shards, self.columns())
        return root, shards

    def columns(self) -> Mapping[str, tuple[str, ...]]:
        """By setting, the columns of which a Parquet file must have one, or each of its rows would be an error."""
        return {}

    def check_model(self, model: AsymmetricAutoencoderKL) -> None:
        """Whether the job fits the model. ValueError with the setting and the remedy where it doesn't."""
        return

    def digest(self) -> str | None:
        """sha256 over what decides the output beside settings and the model's weights; see Inpainter.digest."""
        return None

    def doubt(self, mean_hole_fraction: float | None) -> str | None:
        """What of the first shard's holes makes a setting look wrong, in words."""
        return None

    # --- asked by a worker

    @abstractmethod
    def load(self, model: AsymmetricAutoencoderKL, device: torch.device, dtype: torch.dtype) -> None:
        """Get ready to run. Called once a worker, on the device's thread, before what follows."""

    @abstractmethod
    def read(self, shard: Shard, scratch: Path) -> Iterator[Entry | BadSample]:
        """The rows of one shard, in order. ``scratch``: a local folder that lives as long as the shard's run."""

    def numbers(self, row: Entry | BadSample) -> Sequence[int]:
        """The variants planned of a row: there is a result or an error for each."""
        return range(self.variants)

    @abstractmethod
    def cost(self, row: Any) -> int:
        """Bytes that a row read holds at its peak: a function of the input, never of the moment."""

    def held(self, planned: Any, cost: int) -> int:
        """Bytes of these that it still holds while its items wait for a batch, and until its rows are written."""
        return cost

    @abstractmethod
    def prepare(self, row: Any) -> Planned | Fault:
        """A row to what the device needs. In threads of the decode pool."""

    @abstractmethod
    def run(self, items: Sequence[Any], size: int) -> Made:
        """Run items of one shape as a batch of ``size`` >= len(items). On the device's thread, in inference mode."""

    @abstractmethod
    def finish(self, planned: Any, variant: int, done: Done | None) -> Rows | Fault:
        """One planned row's rows by folder; ``done`` is None where it passed through. In threads of the encode pool."""

    @abstractmethod
    def schema(self, folder: str) -> pa.Schema:
        """Of the parts of a folder below OUT that :meth:`finish` names."""
