"""What a run is: settings, model and shards, resolved once by the driver; the same for every worker."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from asymvae.config import InpaintJob
from asymvae.fingerprint import fingerprint, settings_that
from asymvae.inpaint.base import load_inpainter
from asymvae.model.autoencoder import AsymmetricAutoencoderKL
from asymvae.storage.filesystem import is_local, redact
from asymvae.storage.filesystem import resolve as resolve_url
from asymvae.storage.ledger import Ledger, commit_id, compare_jobs
from asymvae.storage.schemas import FORMAT_VERSION
from asymvae.storage.shards import Shard, input_root, list_shards

_VERSIONS_OF = ("asymvae", "torch", "numpy", "pillow", "opencv-python-headless", "simplejpeg", "pyarrow", "ray")


class ConfigurationError(ValueError):
    """The job can't be what was meant; nothing was started. The message names the setting and the remedy."""


@dataclass(frozen=True)
class Recipe:
    """What every worker is given: how a shard becomes its parts, and under which commit."""

    job: InpaintJob
    fingerprint: str
    weights_sha256: str

    def commit_name(self, shard: Shard) -> str:
        """``<shard>.<id>``, as the ledger lists it."""
        return f"{shard.name}.{commit_id(self.fingerprint, shard)}"


@dataclass(frozen=True)
class Plan:
    """A recipe and its shards: all of the input, and those ``left``, which have no commit of this recipe yet."""

    recipe: Recipe
    shards: tuple[Shard, ...]
    left: tuple[Shard, ...]


def resolve(job: InpaintJob) -> InpaintJob:
    """The job with its automatic settings decided and local paths absolute, checked in what only imports can check."""
    try:
        load_inpainter(job.inpaint.method, job.inpaint.options)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    model: dict[str, str] = {}
    if job.model.dtype == "auto":
        model["dtype"] = "bfloat16" if job.workers.gpus > 0 else "float32"
    # Workers have other working folders than the driver.
    if Path(job.model.path).is_dir():
        model["path"] = str(Path(job.model.path).resolve())
    output = {"url": resolve_url(job.output.url)[1]} if is_local(job.output.url) else {}
    return job.model_copy(
        update={"model": job.model.model_copy(update=model), "output": job.output.model_copy(update=output)}
    )


def load_model(job: InpaintJob, device: str = "cpu") -> AsymmetricAutoencoderKL:
    """The job's model in its dtype on ``device``, in eval mode."""
    return AsymmetricAutoencoderKL.from_pretrained(
        job.model.path,
        subfolder=job.model.subfolder,
        revision=job.model.revision,
        variant=job.model.variant,
        torch_dtype=getattr(torch, job.model.dtype),
        device=device,
    ).eval()


def make_plan(job: InpaintJob, retry_errors: frozenset[str] | None = None, *, record: bool = True) -> Plan:
    """Resolve the job and find what is left to do.

    Args:
        retry_errors: also redo shards whose commit counts errors of these codes (empty: of any).
        record: write ``_job.json`` where there is none; False only looks (``--dry-run``).

    Raises:
        ConfigurationError: the output belongs to another job (naming the settings that differ), no shard matches,
            the model can't be loaded, the inpainter doesn't exist.
    """
    job = resolve(job)
    ledger = Ledger(job.output.url)
    try:
        earlier = ledger.read_job()
    except FileNotFoundError:
        earlier = None
    try:
        root = job.input.root or (earlier["input"]["root"] if earlier else input_root(job.input.urls))
        shards = tuple(list_shards(job.input.urls, root=root, format=job.input.format))
        weights = load_model(job).weights_sha256
    except (ValueError, OSError) as error:
        raise ConfigurationError(str(error)) from error
    assert weights is not None
    deciding = settings_that(job, "yes")
    mark = fingerprint(deciding, weights, FORMAT_VERSION)
    ours = _job_record(job, mark, deciding, weights, root)
    theirs = earlier or (ledger.open_job(ours) if record else ours)
    if theirs["fingerprint"] != mark:
        differing = "\n  ".join(compare_jobs(theirs, ours))
        raise ConfigurationError(
            f"{redact(job.output.url)} holds the output of another job; choose another output.url, or set these back:"
            f"\n  {differing}"
        )

    recipe = Recipe(job, mark, weights)
    committed = ledger.committed()
    left = []
    for shard in shards:
        name = recipe.commit_name(shard)
        if name not in committed:
            left.append(shard)
        elif retry_errors is not None and _has_errors(ledger.read_commit(name), retry_errors):
            left.append(shard)
            if record:
                ledger.withdraw(name)
    return Plan(recipe, shards, tuple(left))


def _has_errors(commit: dict[str, Any], codes: frozenset[str]) -> bool:
    found = commit["errors_by_code"].keys()
    return bool(found & codes if codes else found)


def _job_record(job: InpaintJob, mark: str, deciding: dict[str, Any], weights: str, root: str) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "fingerprint": mark,
        "settings": job.model_dump(mode="json"),
        "affects_output": deciding,
        "affects_rounding": settings_that(job, "rounding"),
        "input": {"root": root},
        "model": {"path": job.model.path, "weights_sha256": weights},
        "batch_size": job.workers.batch_size,
        "versions": {name: version(name) for name in _VERSIONS_OF} | {"python": platform.python_version()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
