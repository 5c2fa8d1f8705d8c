"""A case: bytes that a seed and a number decide, and what becomes of them at a door."""

from __future__ import annotations

import functools
import random
import traceback
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.laws import LAWS
from tests.fuzz.mutate import compressed, mutated, repaired
from tests.fuzz.seeds import seeds

DOORS = {
    "image": ("image",),
    "mask": ("mask",),
    "tar": ("tar",),
    "parquet": ("parquet", "latents"),
    # by turns; shards take twenty times as long as images
    "all": (*("image",) * 6, *("mask",) * 3, "tar", "parquet", "tar", "latents"),
}
_GZIPPED = 0.15  # of the tars
_LARGE = 30_000  # bytes; from here on a file is a real one, and slow
_LARGE_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Case:
    door: str
    number: int
    data: bytes
    history: str  # the file it was, and what was done to it


@functools.cache
def _pool(door: str, real: bool) -> tuple[list[tuple[str, bytes]], list[tuple[str, bytes]]]:
    """(small, large)"""
    found = list(seeds(door, real=real).items())
    return [one for one in found if len(one[1]) < _LARGE], [one for one in found if len(one[1]) >= _LARGE]


def make_case(door: str, seed: int, number: int, *, real: bool = True) -> Case:
    """The same of the same, on every machine with the same encoders."""
    name = DOORS[door][number % len(DOORS[door])]
    rng = random.Random(f"{door} {seed} {number}")
    small, large = _pool(name, real)
    pool = large if large and rng.random() < _LARGE_SHARE else small
    origin, data = rng.choice(pool)
    data, done = mutated(rng, data, [content for _, content in small])
    data, checks = repaired(rng, data)
    done += checks
    if name == "tar" and rng.random() < _GZIPPED:
        data = compressed(rng, data)
        done.append("gzip")
        if rng.random() < 0.5:
            data, more = mutated(rng, data, [content for _, content in small])
            done += more
    return Case(name, number, data, f"{origin}: {', '.join(done)}")


def outcome(case: Case, folder: Path) -> tuple[str, str]:
    """(outcome, details). What is no outcome that the door declares begins with "!", and its details are the trace."""
    try:
        return LAWS[case.door](case.data, case.number, folder), ""
    except Exception as error:  # noqa: BLE001  whatever a door doesn't declare is what is looked for
        last = [frame for frame in traceback.extract_tb(error.__traceback__) if "/asymvae/" in frame.filename]
        where = f"{Path(last[-1].filename).stem}:{last[-1].lineno}" if last else "law"
        words = str(error).split("\n")[0][:80] if isinstance(error, AssertionError) else ""
        return f"!{type(error).__name__} at {where} {words}".strip(), traceback.format_exc()
