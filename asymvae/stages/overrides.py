"""What a sample's json sets for that sample alone: ``{"asymvae": {"seed": 7, "prompt": "a stone wall"}}``.

Under one key of its own, since the jsons of data sets hold metadata of all kinds; whatever stands beside is not ours.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final

from asymvae.faults import Fault
from asymvae.inpaint.base import Override

KEY: Final = "asymvae"
MOST_SEED: Final = 2**63 - 1

_RANGES: Final[dict[Override, str]] = {
    "seed": f"a whole number from 0 to {MOST_SEED}",
    "prompt": "a text",
    "negative_prompt": "a text",
}


@dataclass(frozen=True, slots=True)
class Overrides:
    """None: the job's own setting stays."""

    seed: int | None = None  # 0 to MOST_SEED
    prompt: str | None = None
    negative_prompt: str | None = None


def read_overrides(content: bytes, heeded: frozenset[Override]) -> Overrides | Fault:
    """The overrides in a sample's json. ``heeded``: those that the job's method takes. A null overrides nothing, for
    a Parquet struct has all its members in every row."""
    try:
        sample = json.loads(content)
    except (ValueError, RecursionError):  # no JSON; no UTF; numbers without end; brackets without end
        return Fault("json_invalid")
    ours = sample.get(KEY) if isinstance(sample, dict) else 0
    if ours is None:
        return Overrides()
    if not isinstance(ours, dict):
        return Fault("json_invalid")
    given = {name: value for name, value in ours.items() if value is not None}
    if not given.keys() <= heeded:
        return Fault("override_unknown", {"known": ", ".join(sorted(heeded))})
    for name in _RANGES:
        if name in given and not _in_range(name, given[name]):
            return Fault("override_out_of_range", {"field": name, "range": _RANGES[name]})
    return Overrides(given.get("seed"), _text(given.get("prompt")), _text(given.get("negative_prompt")))


def _in_range(name: Override, value: Any) -> bool:
    if name == "seed":
        return type(value) is int and 0 <= value <= MOST_SEED  # True is an int, too
    return isinstance(value, str)


def _text(text: str | None) -> str | None:
    """Without halves of surrogate pairs, which JSON can hold and UTF-8 can't."""
    return None if text is None else text.encode(errors="replace").decode()
