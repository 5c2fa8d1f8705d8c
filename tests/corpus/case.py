"""What a case of the corpus is: bytes, and what must come out of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from tests.tiny import file_bytes, pixels_of

# Each is one job over its own shards; see tests/corpus/run.py for their settings.
Job = Literal["plain", "inverted", "keyed", "prompted"]
Box = tuple[int, int, int, int]  # top, left, bottom, right

HEIGHT, WIDTH = 32, 48
HOLE: Final[Box] = (12, 20, 20, 28)
MAX_PIXELS: Final = 2_000_000  # of every job here: what an image may cost is seen at sizes that cost little
# The default dilate and feather: further from the hole than this nothing changes.
REACH: Final = 8

DAMAGED: Final = frozenset({"image_truncated", "image_undecodable"})


@dataclass(slots=True)
class Came:
    """What came out of one case: rows of OUT. ``faults`` are the shard's own, whose index is null."""

    results: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    faults: list[dict[str, Any]] = field(default_factory=list)

    def __str__(self) -> str:
        results = ", ".join(f"{row['key'][:60]!r} {row['width']}x{row['height']}" for row in self.results[:5])
        errors = ", ".join(f"{row['code']} ({row['message']})" for row in [*self.errors, *self.faults][:5])
        return f"results [{results}], errors [{errors}]"


Expects = Callable[[Came], str]
"""What is wrong with what came out, in words; empty if nothing is."""


@dataclass(frozen=True, eq=False)
class SampleCase:
    """One sample of a tar that it shares with its group. ``fields`` has bytes by field name.

    The key is the case's own, unless ``key`` is what the case is about.
    """

    group: str
    name: str
    fields: Mapping[str, bytes]
    expects: Expects
    key: str | None = None
    job: Job = "plain"


@dataclass(frozen=True, eq=False)
class ShardCase:
    """A file that is a shard of its own. ``ending`` is its extension, which is all that says what it is."""

    group: str
    name: str
    data: bytes
    expects: Expects
    ending: str = "tar"
    job: Job = "plain"


Case = SampleCase | ShardCase


def photo(height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """(height, width, 3): smooth, and no two corners alike, so that a turned one is told."""
    y, x = np.mgrid[:height, :width] / np.array([max(height, 8), max(width, 8)]).reshape(2, 1, 1)
    bands = [40 + 180 * y, 220 - 190 * x, 60 + 150 * x * y + 30 * np.sin(6 * x)]
    return np.stack(bands, axis=-1).clip(0, 255).astype(np.uint8)


def hole(box: Box | None = HOLE, height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """(height, width) uint8: 255 in the box, else 0."""
    mask = np.zeros((height, width), np.uint8)
    if box is not None:
        mask[box[0] : box[2], box[1] : box[3]] = 255
    return mask


def png(pixels: NDArray[Any]) -> bytes:
    return file_bytes(pixels, "PNG")


def masked(image: bytes, field_name: str = "png", box: Box | None = None) -> dict[str, bytes]:
    """The fields of a sample of the usual size; without a hole it passes through, and every pixel is looked at."""
    return {field_name: image, "mask.png": png(hole(box))}


# --- what must come out --------------------------------------------------------------------------------------


def error(*codes: str) -> Expects:
    """One error row a variant, of one of these codes, and no result."""

    def check(came: Came) -> str:
        found = [row["code"] for row in came.errors]
        return "" if not came.results and len(found) == 1 and found[0] in codes else f"not {codes}: {came}"

    return check


def result(
    pixels: NDArray[np.uint8],
    *,
    box: Box | None = None,
    within: int = 0,
    alpha: NDArray[np.uint8] | None = None,
    **columns: Any,
) -> Expects:
    """One result of the size of ``pixels`` that differs from them by at most ``within`` levels where it is known.

    ``box``: the hole, in which something else must stand; None: there is none, and the image passes through.
    ``alpha``: what the result carries; None: it has none. ``columns``: values of the row.
    """

    def check(came: Came) -> str:
        if came.errors or len(came.results) != 1:
            return f"not one result: {came}"
        row = came.results[0]
        made = pixels_of(row)
        wrong = {name: row[name] for name, value in columns.items() if row[name] != value}
        if wrong:
            return f"the row says {wrong}"
        if row["passed_through"] != (box is None):
            return f"passed_through is {row['passed_through']}"
        carried = made[..., 3] if made.ndim == 3 and made.shape[2] == 4 else None
        same = alpha is carried if alpha is None or carried is None else np.array_equal(carried, alpha)
        if not same:
            return f"the alpha is another, or missing: {made.shape}"
        if made.shape[:2] != pixels.shape[:2] or (row["height"], row["width"]) != pixels.shape[:2]:
            return f"it is {made.shape[1]}x{made.shape[0]}, not {pixels.shape[1]}x{pixels.shape[0]}"
        return differs(made[..., :3], pixels, box, within)

    return check


def differs(made: NDArray[np.uint8], pixels: NDArray[np.uint8], box: Box | None, within: int) -> str:
    """What of a result is not as it must be."""
    off = np.abs(made.astype(np.int16) - pixels).max(axis=2)
    known = np.ones(off.shape, bool)
    if box is not None:
        top, left, bottom, right = box
        known[max(0, top - REACH) : bottom + REACH, max(0, left - REACH) : right + REACH] = False
        if not off[top:bottom, left:right].any():
            return "the hole holds what it held"
    if known.any() and off[known].max() > within:
        return f"known pixels are off by up to {off[known].max()} levels"
    return ""


def damage(expected: NDArray[np.uint8] | None, *codes: str) -> Expects:
    """An error row of these codes, or one result: of these very pixels, or where ``expected`` is None of the usual
    size."""

    def check(came: Came) -> str:
        if not came.results:
            return error(*(codes or sorted(DAMAGED)))(came)
        if expected is not None:
            return result(expected)(came)
        size = {(row["height"], row["width"]) for row in came.results}
        return "" if len(came.results) == 1 and not came.errors and size == {(HEIGHT, WIDTH)} else f"{came}"

    return check


def shard(
    keys: list[str] | None = None, errors: Mapping[str | None, str] | None = None, fault: str | None = None
) -> Expects:
    """Of a shard: its results' keys in order, the codes of its errors by key, and its own fault, once."""

    def check(came: Came) -> str:
        found = [row["key"] for row in came.results]
        bad = [(row["key"], row["code"]) for row in came.errors]
        own = [row["code"] for row in came.faults]
        if found != (keys or []):
            return f"results are {[key[:60] for key in found]}: {came}"
        if bad != list((errors or {}).items()):
            return f"errors are {bad}"
        return "" if own == ([fault] if fault else []) else f"the shard's faults are {own}"

    return check
