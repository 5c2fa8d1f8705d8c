"""A worker's share -> its batches: slices are read by a thread ahead, batches made of them here."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Final

from asymvae.latents.batches import BatchMaker
from asymvae.latents.handing import Batch
from asymvae.latents.order import Pick
from asymvae.latents.parts import LatentPart
from asymvae.latents.read_ahead import ReadAhead
from asymvae.latents.rows import Held, Slice, SliceReader
from asymvae.latents.share import Share

_AHEAD_BYTES: Final = 32 * 2**20


def read_batches(parts: Sequence[LatentPart], share: Share, make: BatchMaker, done: int) -> Iterator[Batch]:
    """The batches from number ``done`` on. Rows that only earlier ones needed are not read again."""
    held = {bucket: Held(stretch.window) for bucket, stretch in share.stretches.items()}
    ahead = ReadAhead(_read(parts, share, make, done), _size, _AHEAD_BYTES)
    try:
        for item in ahead:
            if isinstance(item, Slice):
                held[item.bucket].add(item)
            else:
                batch = make(item, held[item.bucket])
                held[item.bucket].pass_by(item)
                yield batch
    finally:
        ahead.close()


def _read(
    parts: Sequence[LatentPart], share: Share, make: BatchMaker, done: int
) -> Generator[Slice | Pick, None, None]:
    """Of each batch: the slices that it needs and no earlier one did, then what to pick."""
    passed = {bucket: Held(stretch.window) for bucket, stretch in share.stretches.items()}
    readers: dict[int, SliceReader] = {}
    for number, pick in enumerate(share.picks()):
        bucket = pick.bucket
        if number < done:
            passed[bucket].pass_by(pick)
            continue
        if bucket not in readers:
            place = passed[bucket].needed
            readers[bucket] = SliceReader(parts, bucket, share.stretches[bucket], place, make.latents, make.columns)
        yield from readers[bucket].up_to(int(pick.places.max()))
        yield pick


def _size(item: Slice | Pick) -> int:
    return item.size if isinstance(item, Slice) else 0
