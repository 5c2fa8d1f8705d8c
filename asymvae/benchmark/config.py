"""The settings of ``jobs.benchmark``, one class for each of the things that it measures."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from asymvae.config import AS_TEXT, InputSettings, JobSettings, RaySettings, Section, Urls, setting

Side = Annotated[int, Field(ge=8, multiple_of=8)]
Count = Annotated[int, Field(ge=1)]
Dtype = Literal["float32", "bfloat16", "float16"]
Layout = Literal["contiguous", "channels_last"]
Maker = Literal["ours", "plain", "diffusers"]


class NetworkSettings(Section):
    path: str | None = setting(
        None, "checkpoint: hub id, folder or fsspec URL; by default the network below, with random weights", "no"
    )
    network: Literal["x-1-5", "x-2", "demo"] = setting(
        "x-1-5", "without a path: a published configuration, or that of configs/demo-checkpoint", "no"
    )
    revision: str | None = setting(None, "of a hub id: branch, tag or commit", "no")
    subfolder: str | None = setting(None, "of the repository or folder", "no")
    variant: str | None = setting(None, "of the weights' file, such as fp16", "no")


class PipelineNetwork(NetworkSettings):
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto", "auto: bfloat16 on a GPU, float32 on a CPU", "no"
    )


class BenchmarkInput(InputSettings):
    urls: Urls = setting((), "shards, as for jobs.inpaint; by default pictures are drawn", "no")


class ModelBenchmark(JobSettings):
    """The network alone, beside diffusers' with the same weights."""

    model: NetworkSettings = NetworkSettings()
    device: Literal["auto", "cpu", "cuda"] = setting("auto", "auto: the GPU if torch sees one", "no")
    threads: int | None = setting(None, "of torch on a CPU; by default as many as torch takes", "no", ge=1)
    parts: Annotated[tuple[Literal["encode", "decode", "decode_masked"], ...], *AS_TEXT] = setting(
        ("encode", "decode", "decode_masked"), "decode_masked is given image and mask", "no", min_length=1
    )
    sizes: Annotated[tuple[Side, ...], *AS_TEXT] = setting(
        (512,), "sides of square images in pixels, with commas between", "no", min_length=1
    )
    batches: Annotated[tuple[Count, ...], *AS_TEXT] = setting((1,), "images a call", "no", min_length=1)
    dtypes: Annotated[tuple[Literal["auto", Dtype], ...], *AS_TEXT] = setting(
        ("auto",), "auto: bfloat16 on a GPU, float32 on a CPU", "no", min_length=1
    )
    layouts: Annotated[tuple[Layout, ...], *AS_TEXT] = setting(
        ("contiguous", "channels_last"), "memory formats of diffusers' weights and images; ours has its own", "no"
    )
    plain: bool = setting(False, "ours without optimize() as well, in the same memory formats as diffusers'", "no")
    compiled: Annotated[tuple[Maker, ...], *AS_TEXT] = setting(
        (), "whose is measured compiled as well, with commas between", "no"
    )
    blocks: bool = setting(False, "a second table: the network's blocks one by one, eagerly", "no")
    against: Annotated[tuple[Literal["same", Dtype], ...], *AS_TEXT] = setting(
        ("same",), "diffusers' dtypes; same: as ours", "no"
    )
    pairs: int = setting(5, "rounds; each times every contender once", "no", ge=1)
    least_seconds: float = setting(0.2, "a timing repeats its call until it lasts as long", "no", gt=0)


class BenchmarkWorkers(Section):
    """As in jobs.inpaint."""

    gpus: float | None = setting(None, "GPUs a worker; by default 1 where torch sees one, else 0", "no", ge=0)
    cpu_threads: int = setting(1, "CPUs a worker", "no", ge=1, le=512)
    batch_size: int = setting(8, "images that the network runs at once", "no", ge=1, le=1024)
    shards_in_flight: int = setting(2, "shards that a worker works on", "no", ge=1, le=8)


class PipelineBenchmark(JobSettings):
    """Whole jobs on this machine or cluster, beside a plain loop over the same samples."""

    model: PipelineNetwork = PipelineNetwork()
    input: BenchmarkInput = BenchmarkInput()
    size: int = setting(512, "side of the drawn pictures", "no", ge=8, multiple_of=8)
    shards: int = setting(2, "of drawn pictures; every worker should have one or more", "no", ge=1)
    samples: int = setting(32, "in a drawn shard; a GPU wants more", "no", ge=1)
    workers: BenchmarkWorkers = BenchmarkWorkers()
    ray_workers: Annotated[tuple[Count, ...], *AS_TEXT] = setting(
        (1,), "numbers of Ray workers, with commas between; empty leaves Ray out", "no"
    )
    ray: RaySettings = RaySettings()
    pairs: int = setting(3, "rounds; each runs the loop, the local executor and every number of workers", "no", ge=1)
    scratch: str | None = setting(
        None, "folder for shards and results meanwhile; on a cluster one that every node sees", "no"
    )

    @model_validator(mode="after")
    def _fed(self) -> PipelineBenchmark:
        most = max(self.ray_workers, default=1)
        if not self.input.urls and self.shards < most:
            raise ValueError(f"shards is {self.shards}; {most} workers need as many: a shard is one worker's")
        return self


class CodecBenchmark(JobSettings):
    """Decoding and encoding of images on one core."""

    input: BenchmarkInput = BenchmarkInput()
    formats: Annotated[tuple[Literal["png", "jpeg", "webp"], ...], *AS_TEXT] = setting(
        ("png", "jpeg", "webp"), "as output.image_format has them", "no", min_length=1
    )
    sizes: Annotated[tuple[Side, ...], *AS_TEXT] = setting(
        (256, 512, 1024), "sides of square images in pixels, with commas between", "no", min_length=1
    )
    images: int = setting(4, "different pictures that a timing goes over", "no", ge=1)
    pairs: int = setting(5, "rounds; each times every format once", "no", ge=1)


class SimulateBenchmark(JobSettings):
    """Many workers that wait where they would compute, on nodes of this machine."""

    workers: Annotated[tuple[Count, ...], *AS_TEXT] = setting(
        (1, 8, 32, 64), "numbers of workers, with commas between; each is a process", "no", min_length=1
    )
    nodes: int = setting(4, "of the Ray cluster that is started; each takes some 300 MiB", "no", ge=1, le=64)
    shards: int = setting(10, "of a worker", "no", ge=1)
    seconds: float = setting(2.0, "that a worker's device takes for a shard", "no", gt=0)
    spread: float = setting(
        0.0,
        "of shards' sizes: their logarithms' standard deviation; 0: all alike, 1: very different",
        "no",
        ge=0,
        le=3,
    )
    empty: int = setting(
        2000, "shards of no time, for what can be started and committed a second; 0 leaves it", "no", ge=0
    )
    pairs: int = setting(1, "rounds", "no", ge=1)
    scratch: str | None = setting(None, "folder for commits meanwhile", "no")
