"""Shards for diffusion: prompts of all kinds, jsons that override, and one of each thing that can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.tiny import file_bytes, sample, write_tar

SAMPLES = 14  # of a shard
FAULTS = {
    "missing_prompt": 1,
    "image_truncated": 1,
    "override_unknown": 1,
    "override_out_of_range": 2,
    "json_invalid": 2,
}


def prompted(number: int) -> dict[str, bytes]:
    """Sample ``number`` of a shard, 0 to SAMPLES - 1."""
    fields = sample(number) | {"txt": f"cat {number}".encode()}
    jsons: dict[int, Any] = {
        0: {"url": "http://x/0.jpg", "width": 64},  # img2dataset's: none of ours
        1: {"asymvae": {"seed": 7}},
        2: {"asymvae": {"prompt": "a stone wall"}},
        3: {"asymvae": {"negative_prompt": "dog"}},
        8: {"asymvae": {"strength": 0.5}},
        9: {"asymvae": {"seed": -1}},
        10: {"asymvae": {"prompt": 3}},
        11: [1],
    }
    if number in jsons:
        fields["json"] = json.dumps(jsons[number]).encode()
    if number == 4:
        fields["txt"] = b"caf\xe9 \x00 {prompt}"
    elif number == 5:
        fields["txt"] = b""
    elif number == 6:
        del fields["txt"]
    elif number == 7:
        fields["png"] = fields["png"][:200]
    elif number == 12:
        fields["json"] = b'{"asymvae": '
    elif number == 13:  # no hole: nothing to paint, so no prompt is wanted
        del fields["txt"]
        fields["mask.png"] = file_bytes(np.zeros((80, 120), np.uint8), "PNG")
    return fields


def write_prompted_shards(folder: Path, shards: int) -> str:
    """The URL of all of them; keys are ``s<shard>-<number of four digits>``."""
    for shard in range(shards):
        samples = [(f"s{shard}-{number:04d}", prompted(number)) for number in range(SAMPLES)]
        write_tar(folder / f"{shard:05d}.tar", samples)
    return str(folder / "*.tar")
