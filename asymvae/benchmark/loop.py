"""The plain loop that the pipeline is compared with: one process, one thing after the other, nothing written."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
import torch

from asymvae.batch import collate
from asymvae.config import InpaintJob
from asymvae.inpaint.base import load_inpainter
from asymvae.media.image import encode_image
from asymvae.pipeline.capacity import BatchPlan, batch_budget, device_memory
from asymvae.pipeline.plan import model_bytes, ready_model
from asymvae.stages.composite import composite
from asymvae.stages.decode import Decode
from asymvae.stages.encode import Encode
from asymvae.stages.inpaint import Inpaint
from asymvae.stages.levels import levels
from asymvae.stages.prepare import Planned, Prepare
from asymvae.storage.samples import FieldNames, Sample, read_shard
from asymvae.storage.shards import list_shards


@dataclass
class LoopRun:
    """``seconds`` from the first byte read to the last one encoded; loading the model is not in it."""

    samples: int = 0
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def spend(self, stage: str, since: float) -> float:
        """Count the time since then; returns the time now."""
        now = time.perf_counter()
        self.stages[stage] += now - since
        return now


@torch.inference_mode()
def run_loop(job: InpaintJob) -> LoopRun:
    """Every shard of a job that is resolved, through the same functions, in the same batch size; bad samples are
    passed over. No measuring, and no determinism asked of torch."""
    torch.set_num_threads(job.workers.cpu_threads)
    device = torch.device("cuda" if job.workers.gpus > 0 else "cpu")
    model = ready_model(job, device.type)
    inpainter = load_inpainter(job.inpaint)
    inpainter.load(model, device, model.dtype)
    prepare = Prepare(job, inpainter, model.config.encoder_factor)
    budget = batch_budget(device_memory(job), job, model_bytes(model, job))
    batches = BatchPlan(job, model.config, model.dtype, budget)
    stages = (Encode(model, inpainter), Inpaint(model, inpainter), Decode(model))
    names = job.input
    fields = FieldNames(names.image, names.mask, names.prompt, names.given, names.overrides, names.key)
    waiting: dict[Hashable, list[Planned]] = defaultdict(list)
    ran = LoopRun()

    def run_batch(planned: list[Planned]) -> None:
        now = time.perf_counter()
        if batches.of(*planned[0].items[0].size).in_strips:
            model.enable_tiling()
        else:
            model.disable_tiling()
        batch = collate([one.items[0] for one in planned], len(planned), device, model.dtype)
        for stage in stages:
            batch = stage(batch)
        assert batch.decoded is not None
        work = levels(batch.decoded).cpu().numpy()
        now = ran.spend("device", now)
        for one, made in zip(planned, work, strict=True):
            out = composite(one.prepared, np.ascontiguousarray(made), job.composite)
            encode_image(out, None, image_format=job.output.image_format, quality=job.output.quality)
        ran.spend("finish", now)

    started = now = time.perf_counter()
    for shard in list_shards(names.urls, root=names.root, format=names.format):
        for sample in read_shard(shard, fields):
            now = ran.spend("read", now)
            ran.samples += 1
            if isinstance(sample, Sample):
                planned = prepare(sample.index, sample.key, sample.fields)
                now = ran.spend("prepare", now)
                if isinstance(planned, Planned) and planned.items:
                    alike = waiting[planned.items[0].shape_key]
                    alike.append(planned)
                    if len(alike) == batches.of(*planned.items[0].size).size:
                        run_batch(alike)
                        alike.clear()
            now = time.perf_counter()
    for alike in waiting.values():
        if alike:
            run_batch(alike)
    ran.seconds = time.perf_counter() - started
    ran.stages = dict(ran.stages)
    return ran
