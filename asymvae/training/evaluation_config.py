"""The settings of ``jobs.evaluate``: which checkpoint, on which images, at which sizes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from asymvae.config import AS_TEXT, InputSettings, JobSettings, MaskSettings, ModelSettings, setting

Sizes = Annotated[tuple[Annotated[int, Field(ge=8)], ...], *AS_TEXT, Field(min_length=1)]


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
