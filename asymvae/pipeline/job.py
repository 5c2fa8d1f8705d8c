"""A job: plan, execute, audit."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from asymvae.config import ShardJob
from asymvae.pipeline.disk import is_full_disk
from asymvae.pipeline.executor import Executor, WorkersFailedError
from asymvae.pipeline.interruption import Interruption
from asymvae.pipeline.kinds.base import Kind
from asymvae.pipeline.kinds.choice import kind_of
from asymvae.pipeline.plan import ConfigurationError, Plan, make_plan, open_output
from asymvae.pipeline.progress import Display, Tally
from asymvae.pipeline.spool import sweep_spools
from asymvae.pipeline.tail import Tail
from asymvae.storage.audit import AuditReport, audit
from asymvae.storage.filesystem import redact, redact_text
from asymvae.storage.ledger import Ledger
from asymvae.storage.retry import causes, is_transient
from asymvae.storage.shards import Shard

_JUDGED_AFTER = 200  # samples: enough to tell a wrong setting from a few bad files


class JobStoppedError(RuntimeError):
    """OUT has no room to begin; or it can't be reached any more, so what became of the shards can't be recorded, or
    said for sure. The message names those that failed, why, and the remedy."""


@dataclass
class JobResult:
    """What a run came to. ``failed`` names shards and why; ``stopped`` says why the run was ended early, if it was;
    ``tail``, how evenly its workers were kept busy."""

    plan: Plan
    samples: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)
    stopped: str = ""
    seconds: float = 0.0
    audit: AuditReport | None = None
    tail: Tail = field(default_factory=Tail)

    @property
    def exit_code(self) -> int:
        """0: every shard committed. 1: some were not, or too many errors, or the audit found something."""
        return 0 if self.audit is not None and self.audit.ok and not self.failed and not self.stopped else 1


def run_job(
    job: ShardJob,
    executor: Executor,
    *,
    retry_errors: frozenset[str] | None = None,
    interruption: Interruption | None = None,
) -> JobResult:
    """Do what is left of the job's shards.

    Raises:
        ConfigurationError: the job can't be what was meant; nothing was started.
        Interrupted: by a signal, where ``interruption`` hears them; nothing is left half done.
        JobStoppedError: the output can't be reached any more.
    """
    interruption = interruption or Interruption()
    plan = make_plan(job, retry_errors)
    with _stopped_by_a_full_disk():
        executor.start(plan.recipe.job)
    if plan.left and plan.recipe.batch_budget is None:
        plan = plan.for_memory(executor.device_memory(plan.recipe.job))
    with _stopped_by_a_full_disk(), interruption.held():
        plan = open_output(plan)
    ledger = Ledger(job.output.url)
    result = JobResult(plan)
    tally = Tally()
    done = len(plan.shards) - len(plan.left)
    kind = kind_of(plan.recipe.job, plan.recipe.model_name)
    doubted = False
    display = Display(len(plan.shards), done, tally)

    def news() -> None:
        display.refresh(done)
        interruption.look()

    tally.listener = news
    started = time.monotonic()
    try:
        with interruption.held(), contextlib.closing(executor.run(plan.recipe, plan.left, tally)) as reports:
            for report in reports if plan.left else ():
                if report is not None:
                    done += report.committed
                    tally.settle(report.shard, report.counts.get("samples", 0), report.errors_by_code)
                    if report.committed:
                        result.tail.add(report.worker, report.seconds, time.monotonic())
                    else:
                        result.failed[report.shard] = report.reason
                        _record_failure(ledger, plan.shards.find(report.shard), result)
                    if report.committed and not doubted:
                        doubted = True
                        if doubt := kind.doubt(report.mean_hole_fraction):
                            print(f"warning: shard {report.shard}: {doubt}", file=sys.stderr)
                news()
                if tally.samples >= _JUDGED_AFTER and (wrong := _too_many_errors(tally.samples, tally.errors, kind)):
                    result.stopped = wrong
                    break
    except WorkersFailedError as error:
        result.stopped = str(error)
    finally:
        display.close()
        sweep_spools(plan.recipe.job.workers.spool)  # of workers of this machine that were killed
    result.samples, result.errors = tally.samples, tally.errors
    result.seconds = time.monotonic() - started
    with _stopped_by_storage("audited", result):
        found = audit(job.output.url, deep=False, shards=plan.shards)
        # What a crashed run left beside a shard that is committed now.
        swept = set(ledger.sweep(found.orphaned))
    found.orphaned = [name for name in found.orphaned if name not in swept]
    result.audit = found
    # At the end over all commits, earlier runs' included: a resumed job is judged as one that wasn't interrupted.
    result.stopped = result.stopped or _too_many_errors(found.samples, found.errors_by_code, kind)
    return result


@contextmanager
def _stopped_by_a_full_disk() -> Iterator[None]:
    """Where OUT can't be begun for want of space the settings are right, and the same command may do later."""
    try:
        yield
    except (ConfigurationError, OSError) as error:
        if any(map(is_full_disk, causes(error))):
            raise JobStoppedError(redact_text(str(error))) from error
        raise


@contextmanager
def _stopped_by_storage(done: str, result: JobResult) -> Iterator[None]:
    """What a store raises once it has been waited for long enough, as a message. ``done``: what can't be, to OUT."""
    try:
        yield
    except Exception as error:  # their clients' errors have no class in common
        if not isinstance(error, OSError) and not is_transient(error):
            raise
        said = redact_text(f"{type(error).__name__}: {error}")
        lines = [f"output.url {redact(result.plan.recipe.job.output.url)} can't be {done} ({said})"]
        lines += [f"failed: shard {name}: {reason}" for name, reason in result.failed.items()]
        lines.append("what is committed stays, and the same command goes on from there")
        raise JobStoppedError("\n".join(lines)) from error


def _record_failure(ledger: Ledger, shard: Shard, result: JobResult) -> None:
    """In ``_failed/``. Where the disk is full, say, the result still has it, and other shards may do better; a store
    that has been waited for in vain would hold each of them as long."""
    reason = result.failed[shard.name]
    with _stopped_by_storage("written", result):
        try:
            ledger.fail(shard, {"reason": reason})
        except OSError as error:
            if is_transient(error):
                raise
            print(f"warning: shard {shard.name}: _failed/ can't be written: {redact_text(str(error))}", file=sys.stderr)


def _too_many_errors(samples: int, errors: Counter[str], kind: Kind[Any]) -> str:
    wrong = errors.total() / kind.variants
    allowed = kind.job.max_error_fraction
    if wrong <= allowed * samples or allowed == 1:
        return ""
    codes = ", ".join(f"{code}: {count}" for code, count in errors.most_common(5))
    if samples == 0:
        return f"no shard holds a sample that can be read ({codes}); see errors/ for what is wrong with which"
    return (
        f"{wrong:g} of {samples} samples are errors ({codes}); max_error_fraction allows {allowed:g}. "
        "See errors/ for which, or raise it if they are to be expected"
    )
