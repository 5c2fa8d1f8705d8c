"""What a run is: settings, model and shards, resolved once by the driver; the same for every worker."""

from __future__ import annotations

import hashlib
import itertools
import platform
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import torch

from asymvae.config import ShardJob
from asymvae.fingerprint import fingerprint, settings_that
from asymvae.model.autoencoder import AsymmetricAutoencoderKL
from asymvae.model.memory import weight_bytes
from asymvae.model.optimize import form_bytes
from asymvae.pipeline.capacity import DeviceMemory, batch_budget
from asymvae.pipeline.disk import full_disk_named
from asymvae.pipeline.kinds.choice import kind_class, kind_of
from asymvae.pipeline.recipe import Recipe as Recipe
from asymvae.storage.filesystem import is_local, redact, redact_text
from asymvae.storage.filesystem import resolve as resolve_url
from asymvae.storage.job_records import compare_jobs
from asymvae.storage.ledger import Ledger, commit_names
from asymvae.storage.redaction import refuse_credentials
from asymvae.storage.schemas import FORMAT_VERSION
from asymvae.storage.shard_table import ShardTable

J = TypeVar("J", bound=ShardJob)

_VERSIONS_OF = ("asymvae", "torch", "numpy", "pillow", "opencv-python-headless", "simplejpeg", "pyarrow", "ray")


class ConfigurationError(ValueError):
    """The job can't be what was meant; nothing was started. The message names the setting and the remedy."""


@dataclass(frozen=True)
class Plan:
    """A recipe and its shards: all of the input, and those ``left``, which have no commit of this recipe yet or one
    that is to be done again (``redo``). ``record`` is what :func:`open_output` makes ``_job.json``; ``model_bytes``,
    what the model's weights take."""

    recipe: Recipe
    shards: ShardTable
    left: ShardTable
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


def resolve(job: J) -> J:
    """The job with its automatic settings decided and local paths absolute, checked in what only imports can check."""
    kind = kind_class(job)
    with _about(*kind.blamed(job)):  # a user's own module may raise anything
        try:
            kind(job)
        except ValueError as error:
            raise ConfigurationError(str(error)) from error
    with _about(*kind.blamed(job)):
        job = kind.resolved(job)
    model: dict[str, str] = {}
    if job.model.dtype == "auto":
        model["dtype"] = "bfloat16" if job.workers.gpus > 0 else "float32"
    # Workers have other working folders than the driver.
    with _about("model.path", job.model.path):
        refuse_credentials(job.model.path)
        if Path(job.model.path).is_dir():
            model["path"] = str(Path(job.model.path).resolve())
    with _about("output.url", job.output.url):
        output = {"url": resolve_url(job.output.url)[1]} if is_local(job.output.url) else {}
    workers = {"spool": str(Path(job.workers.spool).absolute())} if job.workers.spool else {}
    return job.model_copy(
        update={
            "model": job.model.model_copy(update=model),
            "output": job.output.model_copy(update=output),
            "workers": job.workers.model_copy(update=workers),
        }
    )


def load_model(job: ShardJob, device: str = "cpu") -> AsymmetricAutoencoderKL:
    """The job's model in its dtype on ``device``, in eval mode."""
    return AsymmetricAutoencoderKL.from_pretrained(
        job.model.path,
        subfolder=job.model.subfolder,
        revision=job.model.revision,
        variant=job.model.variant,
        torch_dtype=getattr(torch, job.model.dtype),
        device=device,
    ).eval()


def ready_model(job: ShardJob, device: str) -> AsymmetricAutoencoderKL:
    """:func:`load_model`, made as fast as the job asks for."""
    model = load_model(job, device)
    return model.optimize() if job.model.optimize else model


def make_plan(job: ShardJob, retry_errors: frozenset[str] | None = None) -> Plan:
    """Resolve the job and find what is left to do. Only looks: nothing is written.

    Args:
        retry_errors: also redo shards whose commit counts errors of these codes (empty: of any).

    Raises:
        ConfigurationError: the output belongs to another job (naming the settings that differ), no shard matches,
            the model can't be loaded, the inpainter doesn't exist or doesn't fit it.
    """
    given = job
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
    name = _model_name(earlier) if earlier else redact(given.model.path)
    with _listed_beside(ledger) as listed:
        return _plan(job, name, ledger, earlier, listed, retry_errors)


@contextmanager
def _listed_beside(ledger: Ledger) -> Iterator[Future[set[str]]]:
    """The names of all commits, listed by a thread while the block lists the input: each is 1,000 pages of a million
    shards, and a store far away is waited for once. The end of the block ends the listing."""
    over = threading.Event()

    def names() -> set[str]:
        return set(itertools.takewhile(lambda _: not over.is_set(), ledger.committed_names()))

    with ThreadPoolExecutor(1) as pool:
        try:
            yield pool.submit(names)
        finally:
            over.set()


def _plan(
    job: ShardJob,
    name: str,
    ledger: Ledger,
    earlier: dict[str, Any] | None,
    listed: Future[set[str]],
    retry_errors: frozenset[str] | None,
) -> Plan:
    out = job.output.url
    kind = kind_of(job, name)
    with _about("input.urls"):
        root, found = kind.shards(earlier["input"]["root"] if earlier else None)
        shards = ShardTable.of(found)
    with _about("model.path", job.model.path):
        model = load_model(job)
    weights = model.weights_sha256
    assert weights is not None
    with _about("model.compile"):
        _check_sizes(job, model)
    with _about(kind.brings):
        kind.check_model(model)
        brought = kind.digest()
    deciding = settings_that(job, "yes")
    mark = fingerprint(deciding, weights, brought, FORMAT_VERSION)
    recipe = Recipe(job, mark, weights, brought, _budget_in(earlier), name)
    record = _job_record(recipe, deciding, root)
    if earlier:
        _refuse_another(earlier, record, out)

    left, redo = [], []
    with _about("output.url", out):
        committed = listed.result()
        meant = hashlib.blake2b(digest_size=16)
        for place, name in enumerate(commit_names(recipe.fingerprint, shards)):
            meant.update(f"{name}\n".encode())
            if name not in committed:
                left.append(place)
            elif retry_errors is not None and _has_errors(ledger.read_commit(name), retry_errors):
                left.append(place)
                redo.append(name)
    # Commits without a _job.json, which somebody removed, may be of any plan.
    record["plan"] = meant.hexdigest() if earlier or not committed else None
    return Plan(recipe, shards, shards.take(left), tuple(redo), record, model_bytes(model, job))


def model_bytes(model: AsymmetricAutoencoderKL, job: ShardJob) -> int:
    """What the weights take on a worker's device, with the forms that they are given there."""
    device = "cuda" if job.workers.gpus > 0 else "cpu"
    return weight_bytes(model) + (form_bytes(model, device) if job.model.optimize else 0)


def _check_sizes(job: ShardJob, model: AsymmetricAutoencoderKL) -> None:
    factor = max(model.config.encoder_factor, model.config.decoder_factor)
    for height, width in job.model.compiled_sizes:
        if height % factor or width % factor:
            raise ValueError(f"{height}x{width} is no work size: sides are multiples of {factor}")


def open_output(plan: Plan) -> Plan:
    """Write ``_job.json`` where there is none, and take back the commits that are to be done again.

    Returns the plan with the budget and the model's name that stand in ``_job.json``, whoever wrote it.

    Raises:
        ConfigurationError: another job was begun there meanwhile, or nothing can be written there.
    """
    out = plan.recipe.job.output.url
    with _about("output.url", out), full_disk_named(f"output.url {redact(out)}", "free some, or enlarge it"):
        ledger = Ledger(out)
        standing = ledger.open_job(plan.record)
        _refuse_another(standing, plan.record, out)
        for name in plan.redo:
            ledger.withdraw(name)
    budget = _budget_in(standing)
    recipe = replace(
        plan.recipe,
        batch_budget=plan.recipe.batch_budget if budget is None else budget,
        model_name=_model_name(standing),
    )
    return replace(plan, recipe=recipe)


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
    return "fingerprint" in record and all(
        isinstance(record.get(section), dict) and name in record[section]
        for section, name in (("input", "root"), ("model", "path"))
    )


def _budget_in(record: dict[str, Any] | None) -> int | None:
    found = (record or {}).get("memory", {}).get("batch_budget_bytes")
    return None if found is None else int(found)


def _model_name(record: dict[str, Any]) -> str:
    model = record["model"]
    return str(model.get("name", model["path"]))


def _has_errors(commit: dict[str, Any], codes: frozenset[str]) -> bool:
    found = commit["errors_by_code"].keys()
    return bool(found & codes if codes else found)


def _job_record(recipe: Recipe, deciding: dict[str, Any], root: str) -> dict[str, Any]:
    job = recipe.job
    return {
        "format_version": FORMAT_VERSION,
        "job": kind_class(job).name,
        "fingerprint": recipe.fingerprint,
        "settings": job.model_dump(mode="json"),
        "affects_output": deciding,
        "affects_rounding": settings_that(job, "rounding"),
        "input": {"root": root},
        "model": {"path": job.model.path, "name": recipe.model_name, "weights_sha256": recipe.weights_sha256},
        "inpainter": {"sha256": recipe.inpainter_sha256},
        "batch_size": job.workers.batch_size,
        "versions": {name: version(name) for name in _VERSIONS_OF} | {"python": platform.python_version()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
