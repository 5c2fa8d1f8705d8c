"""Precomputed latents as a torch data set, straight from local or object storage."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import torch
from torch.utils.data import IterableDataset

from asymvae.latents.batches import BatchMaker
from asymvae.latents.epoch import Remainder, count_batches
from asymvae.latents.handing import Batch
from asymvae.latents.parts import read_parts
from asymvae.latents.ranks import rank_and_world_size, worker_and_workers
from asymvae.latents.reading import read_batches
from asymvae.latents.share import Order, Share, Who
from asymvae.storage.filesystem import redact
from asymvae.storage.schemas import latents_schema

log = logging.getLogger(__name__)

_CHOOSABLE: Final = tuple(name for name in latents_schema("float16").names if name not in ("mean", "logvar"))


class LatentDataset(IterableDataset[Batch]):
    """Batches of latents that ``jobs.precompute_latents`` wrote, shared out to ranks and DataLoader workers.

    Yields ready batches, so give it to a DataLoader with ``batch_size=None``. A batch is a dict: ``latents``
    (B, C, h, w), which is (mean + std * eps) * scaling_factor; ``is_padding`` (B,) bool; and each of ``columns``, texts
    as a list of B, numbers as a tensor (B,) or, of ``shape`` and ``crop``, (B, n). All of a batch are of one bucket.

    An epoch's order is a function of (seed, epoch) and of the number of ranks and workers, a sample's eps of (seed,
    epoch) and its place in the data alone. Call :meth:`set_epoch` before each epoch; without, each is like the last. A
    resumed run goes on in mid-epoch by :meth:`state_dict`, with the same ranks and workers.

    What is read is what was committed when the data set was made. All ranks must see the same, so the job that writes
    must have ended.

    Args:
        url: OUT of the job, a local folder or any fsspec URL.
        bucket: one only, as "512x768" (height x width); None: all, interleaved by size.
        batch_size: B, of a rank.
        shuffle: row groups, then rows through a buffer. False: as written, each worker a stretch of its own.
        rank, world_size: default: torch.distributed's, else RANK and WORLD_SIZE of the environment, else 0 and 1.
        sample: False: eps = 0, the mean is taken.
        remainder: ``pad``: every sample exactly once an epoch, and repeats with ``is_padding`` that fill all batches of
            all ranks, :attr:`padding` in number; a batch is padding alone only where there are fewer samples than
            batches. ``drop``: no repeats; :attr:`rest` samples are left out, others in each epoch.
        columns: any but mean and logvar.
        dtype: of the latents, which are computed in float32.
        buffer_mb: of the shuffle buffer, in MiB of stored latents, of each worker, over all buckets; but no bucket's
            share holds fewer than ``batch_size`` rows.

    Raises:
        FileNotFoundError: nothing is committed, or a committed part isn't there.
        ValueError: wrong arguments; parts of different weights, scaling_factor, dtype or format; fewer samples than
            ranks, or with ``drop`` fewer full batches.
    """

    def __init__(
        self,
        url: str,
        bucket: str | None = None,
        *,
        batch_size: int,
        shuffle: bool = True,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        sample: bool = True,
        remainder: Remainder = "pad",
        columns: Sequence[str] = ("key", "caption"),
        dtype: torch.dtype = torch.float32,
        buffer_mb: int = 256,
    ) -> None:
        if batch_size < 1 or buffer_mb < 1 or seed < 0:
            raise ValueError("batch_size and buffer_mb must be at least 1, seed at least 0")
        if remainder not in ("pad", "drop"):
            raise ValueError(f"remainder is 'pad' or 'drop', not {remainder!r}")
        unknown = [name for name in columns if name not in _CHOOSABLE]
        if isinstance(columns, str) or unknown:
            raise ValueError(f"columns must be names of {', '.join(_CHOOSABLE)}; not {columns!r}")
        self.rank, self.world_size = rank_and_world_size(rank, world_size)
        self._sample, self._remainder = sample, remainder
        self._columns, self._dtype = tuple(columns), dtype
        self._data = read_parts(url, bucket)
        self._digest, self._groups = self._data.digest, self._data.by_bucket()
        # Of the means: where logvars are read, they take half of the buffer.
        self._order = Order(batch_size, shuffle, seed, buffer_mb * 2**20 // (2 if sample else 1))
        rows = [groups.total for groups in self._groups]
        self._counts = count_batches(rows, batch_size, self.world_size, remainder)
        self.samples = sum(rows)
        self._refuse_too_few(redact(url))
        # Shared, so that workers which outlive an epoch (persistent_workers) hear of the next one. -1: never set.
        self._epoch = torch.full((), -1, dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]
        self._position = (0, 0)  # epoch, and batches yielded in it by this worker
        self._resume: tuple[int, int] | None = None

    def _refuse_too_few(self, where: str) -> None:
        if self.samples < self.world_size:
            raise ValueError(f"{where}: {self.samples} samples are fewer than the {self.world_size} ranks")
        if not self._counts.sum():
            raise ValueError(
                f"{where}: {self.samples} samples don't make a batch of {self._order.batch_size} for each of the"
                f" {self.world_size} ranks; use a smaller batch_size, or remainder='pad'"
            )
        lost = [of.bucket for of, count in zip(self._groups, self._counts, strict=True) if not count]
        if lost:
            log.warning("%s: with remainder='drop' nothing is read of buckets %s", where, ", ".join(lost))

    def __len__(self) -> int:
        """Batches an epoch of this rank, of all its workers together; the same on all ranks."""
        return int(self._counts.sum()) // self.world_size

    @property
    def padding(self) -> int:
        """Repeats an epoch, over all ranks."""
        return max(0, int(self._counts.sum()) * self._order.batch_size - self.samples)

    @property
    def rest(self) -> int:
        """Samples left out of an epoch, over all ranks."""
        return max(0, self.samples - int(self._counts.sum()) * self._order.batch_size)

    @property
    def epoch(self) -> int:
        return max(0, int(self._epoch))

    def set_epoch(self, epoch: int) -> None:
        """Of the next iteration, also for workers that are running already."""
        if epoch < 0:
            raise ValueError("an epoch is at least 0")
        self._epoch.fill_(epoch)

    # --- resuming -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Where this process, or this DataLoader worker, is: the batches it yielded, not those read ahead.

        With workers, each has a state of its own: torchdata's StatefulDataLoader keeps them all.
        """
        return {**self._identity(), "epoch": self._position[0], "batches": self._position[1]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next iteration goes on behind the last batch that was yielded when the state was taken.

        Raises:
            ValueError: the state is of other data, arguments, ranks or workers, or in the middle of another epoch than
                the one that was set.
        """
        ours = self._identity()
        differ = [
            f"  {name}: was {state.get(name)}, is {value}" for name, value in ours.items() if state.get(name) != value
        ]
        if differ:
            raise ValueError(
                "the state does not fit; go on with what it was taken with, or start at an epoch's beginning:\n"
                + "\n".join(differ)
            )
        epoch, batches = int(state["epoch"]), int(state["batches"])
        if int(self._epoch) < 0:
            self._epoch.fill_(epoch)
        if epoch != self.epoch:
            # A finished epoch's state has nothing to say about the next one.
            if batches < len(self._share(epoch).steps):
                raise ValueError(
                    f"the state is in the middle of epoch {epoch}; call set_epoch({epoch}) before loading it"
                )
            return
        self._resume = self._position = (epoch, batches)

    def _identity(self) -> dict[str, Any]:
        own = {"data": self._digest, "sample": self._sample, "remainder": self._remainder}
        return {**own, **asdict(self._order), **asdict(self._who())}

    # --- reading ------------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Batch]:
        epoch, resume, self._resume = self.epoch, self._resume, None
        # Before the first batch is asked for: StatefulDataLoader takes the state now.
        self._position = resume if resume and resume[0] == epoch else (epoch, 0)
        return self._batches(*self._position)

    def _batches(self, epoch: int, done: int) -> Iterator[Batch]:
        stamp, latents = self._data.stamp, ("mean", "logvar") if self._sample else ("mean",)
        maker = BatchMaker(
            self._order.batch_size,
            latents,
            self._columns,
            float(stamp.scaling_factor),
            self._dtype,
            self._order.seed,
            epoch,
        )
        for batch in read_batches(self._data.parts, self._share(epoch), maker, done):
            done += 1
            self._position = (epoch, done)
            yield batch

    def _share(self, epoch: int) -> Share:
        return Share(self._groups, self._counts, self._order, epoch, self._who())

    def _who(self) -> Who:
        return Who(self.rank, self.world_size, *worker_and_workers())
