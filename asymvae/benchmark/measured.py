"""From settings to what was measured. Each kind imports what it needs when it is called: the network's speed can be
measured where Ray, or the codecs' libraries, are not installed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asymvae.benchmark.turns import Panels

if TYPE_CHECKING:
    from asymvae.benchmark.config import (
        CodecBenchmark,
        ModelBenchmark,
        NetworkSettings,
        PipelineBenchmark,
        SimulateBenchmark,
    )
    from asymvae.benchmark.contenders import Network

Tell = Callable[[str], None]


class RunFailedError(RuntimeError):
    """What was to be measured did not run to its end. The message says why, in one line."""


@dataclass
class Measured:
    """What a benchmark came to: single timings, their table with what is said above and below it, and their plot."""

    timings: list[Any]
    table: str
    panels: Panels
    unit: str
    subject: str
    notes: list[str] = field(default_factory=list)


def measure_model(job: ModelBenchmark, tell: Tell) -> Measured:
    """Raises what loading a checkpoint raises, and ValueError for a GPU that isn't there."""
    import torch

    from asymvae.benchmark import blocks, network_report
    from asymvae.benchmark.contenders import diffusers_is_there
    from asymvae.benchmark.device import MEMORY, matmul_peak
    from asymvae.benchmark.network import Timing, all_cases, all_ways, measure
    from asymvae.tables import markdown

    has_gpu = torch.cuda.is_available()
    device = ("cuda" if has_gpu else "cpu") if job.device == "auto" else job.device
    if device == "cuda" and not has_gpu:
        raise ValueError("device is cuda and torch sees no GPU here; leave it out, or set device=cpu")
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    network = _network(job.model)
    notes = [*network_report.NOTES, f"MiB: {MEMORY[device]}."]
    has_diffusers = diffusers_is_there()
    if not has_diffusers:
        notes.append("diffusers is not installed: ours alone was measured (`pip install diffusers`).")
    automatic = "bfloat16" if device == "cuda" else "float32"
    dtypes = list(dict.fromkeys(automatic if name == "auto" else name for name in job.dtypes))
    compared = [
        all_ways(
            dtype,
            layouts=job.layouts,
            compiled=job.compiled,
            plain=job.plain,
            against=list(dict.fromkeys(dtype if name == "same" else name for name in job.against if has_diffusers)),
        )
        for dtype in dtypes
    ]
    peaks = {dtype: matmul_peak(device, dtype) for dtype in dict.fromkeys(way.dtype for of in compared for way in of)}
    timings: list[Timing] = []
    for ways in compared:
        timings += measure(
            network,
            ways,
            all_cases(job.parts, job.sizes, job.batches),
            device=device,
            peaks=peaks,
            rounds=job.pairs,
            least_seconds=job.least_seconds,
            tell=tell,
        )
    if job.blocks:
        found: list[list[str]] = []
        for ways in compared:
            models = {way: network.make(way, device) for way in blocks.ways_of(ways)}
            for case in all_cases(job.parts, job.sizes, job.batches):
                tell(f"blocks of {case.part} {case.size} px, batch {case.batch} ({ways[0].dtype})")
                found += blocks.rows(network, models, case, device=device, peaks=peaks, rounds=job.pairs)
        notes.insert(0, markdown(blocks.HEAD, found))
    subject = f"{network.name} on the {device.replace('cuda', 'gpu').upper()}; peak {network_report.of_peaks(peaks)}"
    return Measured(timings, network_report.table(timings), network_report.panels(timings), "TFLOP/s", subject, notes)


def measure_pipeline(job: PipelineBenchmark, scratch: Path, tell: Tell) -> Measured:
    """``scratch``: an empty folder. Raises ConfigurationError (a ValueError) and RunFailedError."""
    import torch

    from asymvae.benchmark import pipeline_report
    from asymvae.benchmark.contenders import random_model
    from asymvae.benchmark.pipeline import measure
    from asymvae.benchmark.samples import write_shards
    from asymvae.config import InpaintJob

    gpus = float(torch.cuda.is_available()) if job.workers.gpus is None else job.workers.gpus
    source = job.input.model_dump()
    subject = "shards of input.urls"
    geometry = {}
    if not job.input.urls:
        subject = f"shards: {job.shards}, of {job.samples} drawn pictures of {job.size} px"
        source["urls"] = write_shards(scratch / "shards", shards=job.shards, samples=job.samples, size=job.size)
        geometry = {"mode": "whole", "max": job.size}
    model = job.model.model_dump(exclude={"network"})
    named = str(job.model.path)
    if job.model.path is None:
        named = f"{job.model.network}, random weights"
        model["path"] = str(scratch / "checkpoint")
        random_model(job.model.network).save_pretrained(scratch / "checkpoint")
    values: dict[str, Any] = {
        "input": source,
        "output": {"url": str(scratch / "out")},
        "model": model,
        "geometry": geometry,
        "workers": job.workers.model_dump() | {"gpus": gpus},
        "ray": job.ray,
        "max_error_fraction": 1.0,
    }
    inpaint = InpaintJob(**values)
    timings = list(measure(inpaint, ray_workers=job.ray_workers, rounds=job.pairs, scratch=scratch, tell=tell))
    subject = f"{named}; {subject}; a worker's batch: {job.workers.batch_size}, its threads: {job.workers.cpu_threads}"
    notes = ["Seconds by stage: a worker's, summed over its threads and shards."]
    if gpus:
        notes.append("On a GPU a worker's device stage is the launching alone; the loop's waits for the GPU.")
    table, panels = pipeline_report.table(timings), pipeline_report.panels(timings)
    return Measured(timings, table, panels, "samples/s", subject, notes)


def measure_simulation(job: SimulateBenchmark, scratch: Path, tell: Tell) -> Measured:
    """``scratch``: an empty folder. Raises RunFailedError."""
    from asymvae.benchmark import simulate, simulate_report

    timings, news = simulate.measure(
        job.workers,
        nodes=job.nodes,
        shards=job.shards,
        shard_s=job.seconds,
        spread=job.spread,
        empty=job.empty,
        rounds=job.pairs,
        scratch=scratch,
        tell=tell,
    )
    notes = [*simulate_report.NOTES, f"The board takes {news:,.0f} news a second from one sender."]
    subject = f"workers that wait {job.seconds:g} s a shard, {job.shards} shards each, Ray nodes: {job.nodes}"
    table, panels = simulate_report.table(timings), simulate_report.panels(timings)
    return Measured(timings, table, panels, "share of the ideal", subject, notes)


def measure_codecs(job: CodecBenchmark, tell: Tell) -> Measured:
    """Raises what the store raises, and ValueError where no image can be read."""
    from asymvae.benchmark import codecs

    timings = list(
        codecs.measure(job.input, formats=job.formats, sizes=job.sizes, images=job.images, rounds=job.pairs, tell=tell)
    )
    subject = f"{timings[0].images} pictures, " + ("of input.urls" if job.input.urls else "drawn") + ", one core"
    return Measured(timings, codecs.table(timings), codecs.panels(timings), "ms", subject)


def _network(model: NetworkSettings) -> Network:
    from asymvae.benchmark.contenders import Network
    from asymvae.model import AsymmetricAutoencoderKL

    if model.path is None:
        return Network.random(model.network)
    loaded = AsymmetricAutoencoderKL.from_pretrained(
        model.path, subfolder=model.subfolder, revision=model.revision, variant=model.variant
    )
    return Network.of(model.path, loaded)
