"""Every setting of every job: its default, why it exists, and whether it decides the output's bytes.

Sources, the first wins: a flag (``--mask.feather=8``), the environment (``ASYMVAE_MASK__FEATHER=8``), the YAML file
of ``--config``. Validated as a whole before anything starts; an unknown key is an error that names the nearest one.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

# Does a setting decide the output's bytes?
#   yes       it is part of the fingerprint: another value is another output
#   rounding  the same output up to floating-point rounding (a thread count): recorded, and free to change on resume
#   no        where and how fast, never what
Affects = Literal["yes", "rounding", "no"]


def setting(default: Any, why: str, affects: Affects, **constraints: Any) -> Any:
    """A field that says why it exists and whether it affects the output."""
    return Field(default, description=why, json_schema_extra={"affects_output": affects}, **constraints)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _list_in(text: str) -> list[Any] | None:
    """What a flag or a variable that is a JSON list says; None for any other text, such as the glob ``[ab].tar``."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, list) else None


def _urls(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return _list_in(value) or (value,)  # never split at commas: they may be a brace's


def _names(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    listed = _list_in(value)
    return listed if listed is not None else [name.strip() for name in value.split(",")]


def _several(value: Any) -> Any:
    return re.findall(r"[^\s,\[\]\"]+", value) if isinstance(value, str) else value


def _auto_or(others: str) -> WrapValidator:
    """Says what a setting may be in one line; pydantic has one for every type that it tried."""

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise ValueError(f"must be auto or {others}") from None

    return WrapValidator(check)


# As text (a flag, a variable, a YAML scalar) or as a list; NoDecode: the text comes here as it was written.
Urls = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_urls)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names)]
# For tuples of numbers or words: ``256,512``, or the JSON list that a flag given twice becomes; a list in YAML.
AS_TEXT = (NoDecode, BeforeValidator(_several))


class ShardInput(Section):
    """What every job over shards reads."""

    urls: Urls = setting(..., "shards: a URL or a list; braces {00000..00999} and globs are expanded", "no")
    root: str | None = setting(
        None, "folder that shard names are relative to; by default the one before the first wildcard", "no"
    )
    format: Literal["auto", "webdataset", "parquet"] = setting("auto", "auto goes by the file's ending", "yes")


class InputSettings(ShardInput):
    key: str | None = setting(None, "Parquet: the key's column; by default <shard>/<row>", "yes")
    image: Names = setting(
        ("jpg", "jpeg", "png", "webp"), "the image's field (longest suffix that matches) or column", "yes"
    )
    mask: Names = setting(("mask.png", "mask.jpg", "mask"), "the mask's field or column", "yes")
    prompt: Names = setting(("txt", "caption"), "the prompt's field or column", "yes")
    given: Names = setting(
        ("given.png", "given.jpg", "given"),
        "the filled image's field or column, for inpaint.method given",
        "yes",
    )
    overrides: Names = setting(
        ("json",),
        "the json's field or column, which may set a sample's own seed, prompt, negative_prompt under 'asymvae'",
        "yes",
    )
    mask_polarity: Literal["white_is_hole", "black_is_hole"] = setting(
        "white_is_hole", "which end of the mask is the hole; inside the library 1 is the hole, always", "yes"
    )
    max_pixels: int = setting(
        64_000_000, "a larger image or mask is an error row: what one sample may cost in memory", "yes", ge=1
    )


class OutputFolder(Section):
    url: str = setting(..., "folder of the results: local, s3://, gs://, ...", "no")


class OutputSettings(OutputFolder):
    image_format: Literal["png", "jpeg", "webp"] = setting("png", "png and webp are lossless", "yes")
    quality: int = setting(95, "of JPEG", "yes", ge=1, le=100)


class ModelSettings(Section):
    path: str = setting(
        "cross-attention/asymmetric-autoencoder-kl-x-1-5",
        "hub id, folder or fsspec URL (weights decide, not names)",
        "no",
    )
    revision: str | None = setting(None, "of a hub id: branch, tag or commit", "no")
    subfolder: str | None = setting(None, "of the repository or folder", "no")
    variant: str | None = setting(None, "of the weights' file, such as fp16", "no")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", "auto: bfloat16 on a GPU, float32 on a CPU", "yes"
    )
    tiling: Annotated[bool | Literal["auto"], _auto_or("true or false")] = setting(
        "auto", "images above 2^18 pixels in strips: auto where one doesn't fit the device's memory whole", "rounding"
    )
    optimize: bool = setting(
        True,
        "layers in the form that is fastest on the device; on a CPU in float32 up to four times the weights' memory",
        "rounding",
    )
    compile: Annotated[tuple[str, ...], *AS_TEXT] = setting(
        (),
        "work sizes, as 512x512 (height x width), that are compiled for full batches when a worker starts, in about a "
        "minute each; all else runs as it is",
        "rounding",
    )

    @field_validator("compile")
    @classmethod
    def _sizes(cls, sizes: tuple[str, ...]) -> tuple[str, ...]:
        for size in sizes:
            if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", size):
                raise ValueError(f"{size!r} is no size; write height x width in pixels, as 512x768")
        return sizes

    @property
    def compiled_sizes(self) -> list[tuple[int, int]]:
        """Height and width of each of ``compile``."""
        return [(int(height), int(width)) for height, width in (size.split("x") for size in self.compile)]


class DiffusionSettings(Section):
    """Of ``inpaint.method: diffusion``; part of the fingerprint only then."""

    path: str = setting(
        "stable-diffusion-v1-5/stable-diffusion-inpainting",
        "hub id, folder or fsspec URL of an inpainting checkpoint in diffusers' layout (files decide, not names)",
        "no",
    )
    revision: str | None = setting(None, "of a hub id: branch, tag or commit", "no")
    variant: str | None = setting(None, "of the weights' files, such as fp16", "no")
    prompt: str = setting("{prompt}", "{prompt} is the sample's own; without it one prompt for all", "yes")
    negative_prompt: str = setting("", "what not to paint; needs guidance_scale above 1", "yes")
    guidance_scale: float = setting(
        7.5, "how closely the prompt is followed; 1: off, half the work", "yes", ge=1, le=100
    )
    steps: int = setting(50, "denoising steps", "yes", ge=1, le=1000)
    scheduler: str | None = setting(
        None, "ddim, pndm, euler, dpm-solver++, ...; by default the checkpoint's own", "yes"
    )
    strength: float = setting(
        1.0, "below 1 the hole begins as its noised old content, which so reaches the result", "yes", gt=0, le=1
    )
    compile: bool = setting(False, "torch.compile the UNet: slower to start", "rounding")
    channels_last: bool = setting(False, "the UNet in channels_last memory format", "rounding")


class InpaintSettings(Section):
    method: str = setting("harmonic", "none | given | harmonic | diffusion | package.module:Class", "yes")
    variants: int = setting(1, "outputs planned from a sample, each with its own seed", "yes", ge=1, le=10_000)
    options: dict[str, Any] = setting({}, "keyword arguments of the method's class; not of diffusion", "yes")
    diffusion: DiffusionSettings = DiffusionSettings()


class MaskSettings(Section):
    dilate: int = setting(4, "pixels the hole grows by: drawn masks are tight", "yes", ge=0, le=4096)
    feather: int = setting(4, "pixels over which the paste fades out, outside of that", "yes", ge=0, le=4096)
    grid: int = setting(
        8,
        "the model's mask grows to whole cells of this many pixels; 1 is diffusers' behaviour",
        "yes",
        ge=1,
        le=1024,
    )


class GeometrySettings(Section):
    mode: Literal["crop_to_hole", "whole", "fit", "buckets"] = setting(
        "crop_to_hole", "what of the image the network sees", "yes"
    )
    margin: int = setting(64, "crop_to_hole: pixels of surroundings on each side", "yes", ge=0)
    max: int = setting(1024, "longest side that the network sees; larger is reduced", "yes", ge=8)


class WorkerSettings(Section):
    min: int = setting(1, "actors that the pool keeps", "no", ge=1)
    max: int = setting(1, "actors that the pool may grow to", "no", ge=1)
    gpus: float = setting(1, "GPUs an actor; a fraction below 1 shares one, 0 runs on the CPU", "rounding", ge=0)
    accelerator_type: str | None = setting(
        None,
        "kind of GPU, as Ray names it (H100, A100, L4 ...); any by default, and then bytes may differ by rounding",
        "rounding",
    )
    labels: dict[str, str] = setting(
        {}, "what Ray's labels of an actor's node must be, such as {ray.io/market-type: spot}", "no"
    )
    cpu_threads: int = setting(
        1,
        "CPUs an actor: torch's threads, and as many threads each for decoding and encoding",
        "rounding",
        ge=1,
        le=512,
    )
    batch_size: Annotated[
        Annotated[int, Field(ge=1, le=1024)] | Literal["auto"], _auto_or("a whole number from 1 to 1024")
    ] = setting(
        8, "samples of one shape that the network runs at once; auto: what fits the device's memory", "rounding"
    )
    shards_in_flight: int = setting(
        2,
        "shards an actor works on: the second fills the device while the first one is uploaded",
        "no",
        ge=1,
        le=8,
    )
    buffer_mb: int = setting(
        1024,
        "MiB of samples in flight, a shard; also bounds how long a rare shape waits for company",
        "rounding",
        ge=16,
    )
    spool: str | None = setting(
        None, "local folder for parts being written; by default the system's temporary one", "no"
    )
    stall_timeout_s: float = setting(
        1800,
        "an actor that finishes no sample for so long is ended, with a trace of what it hung in",
        "no",
        gt=0,
    )


class RaySettings(Section):
    address: str | None = setting(
        None, "cluster to connect to; by default RAY_ADDRESS, else a local one is started", "no"
    )
    attempts: int = setting(
        2, "times that a shard lost in the run is tried alone before it is given up", "no", ge=0, le=10
    )


class JobSettings(BaseSettings):
    """Where every job's settings come from."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix="ASYMVAE_",
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The YAML file comes in as the constructor's arguments, and the environment overrides it.
        return env_settings, init_settings


class ShardJob(JobSettings):
    """What every job over shards has: its kind adds the rest (:mod:`asymvae.pipeline.kinds`)."""

    input: ShardInput
    output: OutputFolder
    model: ModelSettings = ModelSettings()
    workers: WorkerSettings = WorkerSettings()
    ray: RaySettings = RaySettings()
    executor: Literal["ray", "local"] = setting("ray", "local: one process, no Ray, for debugging", "no")
    seed: int = setting(0, "a sample's own seed is blake2b(seed, key, variant)", "yes", ge=0)
    max_error_fraction: float = setting(
        0.05,
        "of samples; judged after 200 and at the end: more stops the job, since it is set up wrongly",
        "no",
        ge=0,
        le=1,
    )

    @model_validator(mode="after")
    def _consistent(self) -> ShardJob:
        if self.workers.max < self.workers.min:
            raise ValueError(f"workers.max ({self.workers.max}) is less than workers.min ({self.workers.min})")
        if self.workers.gpus > 1 and not self.workers.gpus.is_integer():  # Ray's rule, told by it in mid-run
            raise ValueError(f"workers.gpus is {self.workers.gpus:g}; above 1 it must be a whole number")
        return self


class InpaintJob(ShardJob):
    """Fill the holes of every image of the shards, and write results, metrics and errors as Parquet."""

    input: InputSettings
    output: OutputSettings
    inpaint: InpaintSettings = InpaintSettings()
    mask: MaskSettings = MaskSettings()
    geometry: GeometrySettings = GeometrySettings()
    composite: Literal["paste", "none"] = setting(
        "paste", "paste keeps every known pixel of the original; none gives what the decoder made", "yes"
    )
