"""What decoding and encoding an image costs on one core, with the functions that the jobs use."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import cv2

from asymvae.benchmark.samples import Pixels, encode_all, pictures
from asymvae.benchmark.turns import Panels, Spread, in_turns, number, panels_of
from asymvae.config import InputSettings
from asymvae.faults import Fault
from asymvae.media.image import decode_image
from asymvae.tables import markdown


@dataclass(frozen=True, slots=True)
class CodecTiming:
    """Seconds an image, the mean over ``images`` pictures of size x size pixels; ``bytes`` an image's file has."""

    direction: str  # decode or encode
    format: str
    size: int
    round: int
    images: int
    seconds: float
    bytes: int

    @property
    def ms(self) -> float:
        return 1000 * self.seconds


def measure(
    source: InputSettings,
    *,
    formats: Sequence[str],
    sizes: Sequence[int],
    images: int,
    rounds: int,
    tell: Callable[[str], None] = lambda said: None,
) -> Iterator[CodecTiming]:
    """All formats in turns, size by size. What is decoded is what encoding made."""
    cv2.setNumThreads(1)  # as in the jobs: their pools are the parallelism
    for size in sizes:
        tell(f"{size} px: {', '.join(formats)}")
        several = pictures(source, size=size, count=images)
        files = {name: encode_all(several, name) for name in formats}
        ways = {("decode", name): _decoding(files[name]) for name in formats}
        ways |= {("encode", name): _encoding(several, name) for name in formats}
        for way in ways.values():
            way()  # the first call loads and allocates what the others find
        for round_, (direction, name), seconds in in_turns(ways, rounds):
            mean = round(sum(map(len, files[name])) / len(several))
            yield CodecTiming(direction, name, size, round_, len(several), seconds / len(several), mean)


def _decoding(files: Sequence[bytes]) -> Callable[[], float]:
    def run() -> float:
        started = time.perf_counter()
        for file in files:
            if isinstance(decode_image(file, max_pixels=2**40), Fault):
                raise ValueError("a file that was just encoded can't be decoded")
        return time.perf_counter() - started

    return run


def _encoding(images: Sequence[Pixels], name: str) -> Callable[[], float]:
    def run() -> float:
        started = time.perf_counter()
        encode_all(images, name)
        return time.perf_counter() - started

    return run


def table(timings: Sequence[CodecTiming]) -> str:
    """A row a format and size; medians, with the least and the most."""
    by: dict[tuple[str, int], dict[str, list[float]]] = {}
    sizes: dict[tuple[str, int], int] = {}
    for timing in timings:
        key = (timing.format, timing.size)
        by.setdefault(key, {}).setdefault(timing.direction, []).append(timing.ms)
        sizes[key] = timing.bytes
    rows = [
        [name, str(size), str(Spread.of(of["decode"])), str(Spread.of(of["encode"])), number(sizes[name, size] / 1024)]
        for (name, size), of in by.items()
    ]
    return markdown(("format", "px", "decode, ms", "encode, ms", "KiB"), rows)


def panels(timings: Sequence[CodecTiming]) -> Panels:
    """Milliseconds over sizes, a panel a direction."""
    return panels_of((timing.direction, timing.format, f"{timing.size} px", timing.ms) for timing in timings)
