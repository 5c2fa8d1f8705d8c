"""Shards to batches of random crops, endlessly, in an order that a position alone restores."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from asymvae.faults import Fault
from asymvae.media.image import decode_image
from asymvae.storage.samples import BadSample, FieldNames, Sample, read_shard
from asymvae.storage.shards import Shard
from asymvae.training.config import CropSettings, TrainInput

Pixels = NDArray[np.uint8]

# Batches made while the one before them is trained on.
_AHEAD = 4


@dataclass(frozen=True, slots=True)
class Position:
    """The next batch: in ``epoch``, in its ``window`` of shuffled shards, in that one's ``group`` of images."""

    epoch: int = 0
    window: int = 0
    group: int = 0
    batch: int = 0


class NoImagesError(ValueError):
    """A whole epoch gave no batch. The message says what became of the images."""


class Crops:
    """Batches of crops, (batch_size, size, size, 3) uint8, each with the position after it.

    A window of shards is held at once, as the bytes they came in, and shuffled; a group of ``batch_size`` images is
    decoded together, gives ``per_image`` crops of each, and these are shuffled into batches. So memory is bounded, a
    batch mixes images, and a run that resumes reads one window again, not the epoch. The sequence is a pure function
    of the shards, the settings and the seed: no thread's timing enters.
    """

    def __init__(
        self, shards: Sequence[Shard], images: TrainInput, crops: CropSettings, *, batch_size: int, seed: int
    ) -> None:
        self.shards, self.images, self.settings = list(shards), images, crops
        self.batch_size, self.seed = batch_size, seed
        self.skipped: Counter[str] = Counter()  # images that gave no crop, by why; every epoch counts them again

    def batches(
        self, start: Position = Position(), *, threads: int = 1
    ) -> Generator[tuple[Pixels, Position], None, None]:
        """From ``start`` on, for ever; ``threads`` decode. Raises NoImagesError where a whole epoch gives no batch."""
        with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(1) as ahead:
            stream = self._stream(start, pool)
            coming = deque(ahead.submit(next, stream) for _ in range(_AHEAD))
            try:
                while True:
                    yield coming.popleft().result()
                    coming.append(ahead.submit(next, stream))
            finally:
                ahead.shutdown(cancel_futures=True)

    def _stream(self, position: Position, pool: ThreadPoolExecutor) -> Iterator[tuple[Pixels, Position]]:
        while True:
            epoch = position.epoch
            empty = position == Position(epoch)  # an epoch begun in its middle proves nothing
            for window, shards in enumerate(self._windows(epoch)):
                if window < position.window:
                    continue
                samples = self._read(shards, epoch, window)
                for group in range(position.group, math.ceil(len(samples) / self.batch_size)):
                    chosen = samples[group * self.batch_size : (group + 1) * self.batch_size]
                    batches = self._decode(chosen, self._rng(epoch, window, group), pool)
                    for batch in range(position.batch, len(batches)):
                        empty = False
                        yield batches[batch], Position(epoch, window, group, batch + 1)
                    position = Position(epoch, window, group + 1)
                position = Position(epoch, window + 1)
                del samples  # before the next window is read: one is held at a time
            if empty:
                raise NoImagesError(self._nothing())
            position = Position(epoch + 1)

    def _windows(self, epoch: int) -> list[list[Shard]]:
        order = [self.shards[i] for i in self._rng(epoch).permutation(len(self.shards))]
        width = self.settings.shuffle_shards
        return [order[i : i + width] for i in range(0, len(order), width)]

    def _read(self, shards: Sequence[Shard], epoch: int, window: int) -> list[Sample]:
        names = FieldNames(image=self.images.image, mask=(), prompt=(), given=(), json=())
        samples = []
        for shard in shards:
            for row in read_shard(shard, names):
                if isinstance(row, BadSample):
                    self.skipped[row.fault.code] += 1
                elif "image" not in row.fields:
                    self.skipped["missing_image"] += 1
                else:
                    samples.append(row)
        return [samples[i] for i in self._rng(epoch, window).permutation(len(samples))]

    def _decode(self, samples: Sequence[Sample], rng: np.random.Generator, pool: ThreadPoolExecutor) -> list[Pixels]:
        """The batches of a group; crops that fill none are dropped."""
        made = pool.map(self._crop, samples, rng.spawn(len(samples)))
        crops: list[Pixels] = []
        for one in made:
            if isinstance(one, str):
                self.skipped[one] += 1
            else:
                crops += one
        order = rng.permutation(len(crops))
        whole = len(crops) // self.batch_size * self.batch_size
        if whole == 0 and crops:  # a group of few good images still counts
            order = rng.integers(0, len(crops), self.batch_size)
            whole = self.batch_size
        return [np.stack([crops[k] for k in order[i : i + self.batch_size]]) for i in range(0, whole, self.batch_size)]

    def _crop(self, sample: Sample, rng: np.random.Generator) -> list[Pixels] | str:
        """Crops of one image, or why it gives none."""
        image = decode_image(sample.fields["image"], max_pixels=self.images.max_pixels)
        if isinstance(image, Fault):
            return image.code
        size = self.settings.size
        height, width = image.pixels.shape[:2]
        short = min(height, width)
        if short < size:
            return "smaller_than_crop"
        low, high = (min(max(side, size), short) for side in self.settings.short_side)
        crops = []
        for _ in range(self.settings.per_image):
            # the image reduced to a short side of random length, a crop of that: cut first, which is cheaper
            scale = short / math.exp(rng.uniform(math.log(low), math.log(high)))
            side = min(round(size * scale), short)
            top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
            cut = image.pixels[top : top + side, left : left + side]
            crop = cv2.resize(cut, (size, size), interpolation=cv2.INTER_AREA) if side > size else cut
            crops.append(np.ascontiguousarray(crop[:, ::-1] if rng.random() < 0.5 else crop).astype(np.uint8))
        return crops

    def _rng(self, *place: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *place, len(place)])

    def _nothing(self) -> str:
        why = ", ".join(f"{code} {count}" for code, count in self.skipped.most_common()) or "the shards are empty"
        shards = len(self.shards)
        return f"none of the {shards} shards gave a batch ({why}): look at input.urls, input.image and crops.size"
