"""The settings of ``jobs.evaluate``: which checkpoint, on which images, at which sizes."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode

from asymvae.config import InputSettings, JobSettings, MaskSettings, ModelSettings, setting


def _sizes(value: Any) -> Any:
    """``256,512`` as a flag or a variable, or the JSON list that a flag given twice becomes; a list in YAML."""
    return re.findall(r"[^\s,\[\]\"]+", value) if isinstance(value, str) else value


Sizes = Annotated[tuple[Annotated[int, Field(ge=8)], ...], NoDecode, BeforeValidator(_sizes), Field(min_length=1)]


class EvaluateJob(JobSettings):
    """Measure a checkpoint on images that it was not trained on."""

    input: InputSettings
    model: ModelSettings = ModelSettings()
    mask: MaskSettings = MaskSettings()
    sizes: Sizes = setting(
        (256, 512),
        "longest sides that images are reduced to, with commas between; smaller images stay as they are",
        "yes",
    )
    block_transform: str | None = setting(
        None,
        "file of the linear transform to compare with; by default the one in the checkpoint's folder, if any",
        "yes",
    )
