"""What a run is: settings, model and shards, resolved once by the driver; the same for every worker."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from asymvae.config import InpaintJob
from asymvae.fingerprint import fingerprint, settings_that
from asymvae.inpaint.base import load_inpainter
from asymvae.model.autoencoder import AsymmetricAutoencoderKL
from asymvae.model.memory import weight_bytes
from asymvae.pipeline.capacity import DeviceMemory, batch_budget
from asymvae.storage.filesystem import is_local, redact, redact_text
from asymvae.storage.filesystem import resolve as resolve_url
from asymvae.storage.ledger import Ledger, commit_name, compare_jobs
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
    inpainter_sha256: str | None = None  # of what the inpainter brings beside the model, see Inpainter.digest
    batch_budget: int | None = None  # bytes that a batch may take, see capacity; None: whatever it takes


@dataclass(frozen=True)
class Plan:
    """A recipe and its shards: all of the input, and those ``left``, which have no commit of this recipe yet or one
    that is to be done again (``redo``). ``record`` is what :func:`open_output` makes ``_job.json``; ``model_bytes``,
    what the model's weights take."""

    recipe: Recipe
    shards: tuple[Shard, ...]
    left: tuple[Shard, ...]
    redo: tuple[str, ...]
    record: dict[str, Any]
    model_bytes: int

    def for_memory(self, memory: DeviceMemory) -> Plan:
        """The plan with the budget that batches have on a device of that memory. An earlier run's stands."""
        if self.recipe.batch_budget is not None:
            return self
        budget = batch_budget(memory, self.recipe.job, self.model_bytes)
        record = self.record | {"memory": {"device_bytes": memory.total, "batch_budget_bytes": budget}}
        return replace(self, recipe=replace(self.recipe, batch_budget=budget), record=record)


def resolve(job: InpaintJob) -> InpaintJob:
    """The job with its automatic settings decided and local paths absolute, checked in what only imports can check."""
    with _about("inpaint.method", job.inpaint.method):  # its module may raise anything
        try:
            load_inpainter(job.inpaint)
        except ValueError as error:
            raise ConfigurationError(str(error)) from error
    model: dict[str, str] = {}
    if job.model.dtype == "auto":
        model["dtype"] = "bfloat16" if job.workers.gpus > 0 else "float32"
    # Workers have other working folders than the driver.
    with _about("model.path", job.model.path):
        if Path(job.model.path).is_dir():
            model["path"] = str(Path(job.model.path).resolve())
    inpaint = job.inpaint
    if inpaint.method == "diffusion":
        with _about("inpaint.diffusion.path", inpaint.diffusion.path):
            if Path(inpaint.diffusion.path).is_dir():
                absolute = {"path": str(Path(inpaint.diffusion.path).resolve())}
                inpaint = inpaint.model_copy(update={"diffusion": inpaint.diffusion.model_copy(update=absolute)})
    with _about("output.url", job.output.url):
        output = {"url": resolve_url(job.output.url)[1]} if is_local(job.output.url) else {}
    workers = {"spool": str(Path(job.workers.spool).absolute())} if job.workers.spool else {}
    return job.model_copy(
        update={
            "model": job.model.model_copy(update=model),
            "inpaint": inpaint,
            "output": job.output.model_copy(update=output),
            "workers": job.workers.model_copy(update=workers),
        }
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


def make_plan(job: InpaintJob, retry_errors: frozenset[str] | None = None) -> Plan:
    """Resolve the job and find what is left to do. Only looks: nothing is written.

    Args:
        retry_errors: also redo shards whose commit counts errors of these codes (empty: of any).

    Raises:
        ConfigurationError: the output belongs to another job (naming the settings that differ), no shard matches,
            the model can't be loaded, the inpainter doesn't exist or doesn't fit it.
    """
    job = resolve(job)
    out = job.output.url
    with _about("output.url", out):
        ledger = Ledger(out)
        try:
            earlier = ledger.read_job()
        except FileNotFoundError:
            earlier = None
        if earlier is not None and not _is_job(earlier):
            raise ConfigurationError(f"{redact(out)} holds a _job.json of something else; choose another output.url")
    with _about("input.urls"):
        root = job.input.root or (earlier["input"]["root"] if earlier else input_root(job.input.urls))
        shards = tuple(list_shards(job.input.urls, root=root, format=job.input.format))
    with _about("model.path", job.model.path):
        model = load_model(job)
    weights = model.weights_sha256
    assert weights is not None
    with _about("inpaint.diffusion.path" if job.inpaint.method == "diffusion" else "inpaint.method"):
        inpainter = load_inpainter(job.inpaint)
        inpainter.check_vae(model)
        brought = inpainter.digest()
    deciding = settings_that(job, "yes")
    mark = fingerprint(deciding, weights, brought, FORMAT_VERSION)
    recipe = Recipe(job, mark, weights, brought, _budget_in(earlier))
    record = _job_record(recipe, deciding, root)
    if earlier:
        _refuse_another(earlier, record, out)

    left, redo = [], []
    with _about("output.url", out):
        committed = ledger.committed()
        for shard in shards:
            name = commit_name(recipe.fingerprint, shard)
            if name not in committed:
                left.append(shard)
            elif retry_errors is not None and _has_errors(ledger.read_commit(name), retry_errors):
                left.append(shard)
                redo.append(name)
    return Plan(recipe, shards, tuple(left), tuple(redo), record, weight_bytes(model))


def open_output(plan: Plan) -> Plan:
    """Write ``_job.json`` where there is none, and take back the commits that are to be done again.

    Returns the plan with the budget that stands in ``_job.json``, whoever wrote it.

    Raises:
        ConfigurationError: another job was begun there meanwhile, or nothing can be written there.
    """
    out = plan.recipe.job.output.url
    with _about("output.url", out):
        ledger = Ledger(out)
        standing = ledger.open_job(plan.record)
        _refuse_another(standing, plan.record, out)
        for name in plan.redo:
            ledger.withdraw(name)
    budget = _budget_in(standing)
    return plan if budget is None else replace(plan, recipe=replace(plan.recipe, batch_budget=budget))


@contextmanager
def _about(setting: str, url: str = "") -> Iterator[None]:
    """Whatever is raised inside becomes a ConfigurationError that names the setting, and shows no secret."""
    try:
        yield
    except ConfigurationError:
        raise
    except Exception as error:  # stores, file formats and other people's modules raise what they like
        ours = isinstance(error, OSError) or type(error) is ValueError or type(error).__module__.startswith("asymvae.")
        said = redact_text(str(error) if ours else f"{type(error).__name__}: {error}")
        where = setting if not url or redact(url) in said else f"{setting} {redact(url)}"
        raise ConfigurationError(said if said.startswith(f"{setting} ") else f"{where}: {said}") from error


def _refuse_another(theirs: dict[str, Any], ours: dict[str, Any], out: str) -> None:
    if theirs["fingerprint"] != ours["fingerprint"]:
        differing = "\n  ".join(compare_jobs(theirs, ours))
        raise ConfigurationError(
            f"{redact(out)} holds the output of another job; choose another output.url, or set these back:"
            f"\n  {differing}"
        )


def _is_job(record: dict[str, Any]) -> bool:
    return "fingerprint" in record and isinstance(record.get("input"), dict) and "root" in record["input"]


def _budget_in(record: dict[str, Any] | None) -> int | None:
    found = (record or {}).get("memory", {}).get("batch_budget_bytes")
    return None if found is None else int(found)


def _has_errors(commit: dict[str, Any], codes: frozenset[str]) -> bool:
    found = commit["errors_by_code"].keys()
    return bool(found & codes if codes else found)


def _job_record(recipe: Recipe, deciding: dict[str, Any], root: str) -> dict[str, Any]:
    job = recipe.job
    return {
        "format_version": FORMAT_VERSION,
        "fingerprint": recipe.fingerprint,
        "settings": job.model_dump(mode="json"),
        "affects_output": deciding,
        "affects_rounding": settings_that(job, "rounding"),
        "input": {"root": root},
        "model": {"path": job.model.path, "weights_sha256": recipe.weights_sha256},
        "inpainter": {"sha256": recipe.inpainter_sha256},
        "batch_size": job.workers.batch_size,
        "versions": {name: version(name) for name in _VERSIONS_OF} | {"python": platform.python_version()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
