"""What decides the output's bytes: the settings that do, as one hash, and a sample's own seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from asymvae.config import Affects, InpaintJob


def settings_by_name(settings: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, Affects]]:
    """(dotted name, value as JSON holds it, whether it affects the output) of every setting."""
    for name, info in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            yield from settings_by_name(value, f"{prefix}{name}.")
        else:
            extra = info.json_schema_extra
            assert isinstance(extra, dict), f"setting {prefix}{name} doesn't say whether it affects the output"
            yield prefix + name, json.loads(json.dumps(value)), extra["affects_output"]  # type: ignore[misc]


def settings_that(settings: BaseModel, affect: Affects) -> dict[str, Any]:
    """By dotted name. Those of a method that isn't the job's decide nothing, and are left out."""
    idle = isinstance(settings, InpaintJob) and settings.inpaint.method != "diffusion"
    return {
        name: value
        for name, value, affects in settings_by_name(settings)
        if affects == affect and not (idle and name.startswith("inpaint.diffusion."))
    }


def fingerprint(
    deciding: Mapping[str, Any], weights_sha256: str, inpainter_sha256: str | None, format_version: int
) -> str:
    """32 hex digits of blake2b over the deciding settings, the weights, what the inpainter brings of its own, and the
    output's format."""
    content = {
        "settings": dict(deciding),
        "weights": weights_sha256,
        "inpainter": inpainter_sha256,
        "format": format_version,
    }
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def sample_seed(seed: int, key: str, variant: int) -> int:
    """A sample's own seed, 63 bits: from what it is, never from where it stands in a batch."""
    content = json.dumps([seed, key, variant]).encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big") >> 1
