"""A job: plan, execute, audit."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass, field

from asymvae.config import InpaintJob
from asymvae.pipeline.executor import Executor, WorkersFailedError
from asymvae.pipeline.plan import Plan, make_plan, open_output
from asymvae.pipeline.progress import Display, Tally
from asymvae.pipeline.worker import Report
from asymvae.storage.audit import AuditReport, audit
from asymvae.storage.ledger import Ledger

_JUDGED_AFTER = 200  # samples: enough to tell a wrong setting from a few bad files
_LIKELY_POLARITY = 0.5


@dataclass
class JobResult:
    """What a run came to. ``failed`` names shards and why; ``stopped`` says why the run was ended early, if it was."""

    plan: Plan
    samples: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)
    stopped: str = ""
    seconds: float = 0.0
    audit: AuditReport | None = None

    @property
    def exit_code(self) -> int:
        """0: every shard committed. 1: some were not, or too many errors, or the audit found something."""
        return 0 if self.audit is not None and self.audit.ok and not self.failed and not self.stopped else 1


def run_job(job: InpaintJob, executor: Executor, *, retry_errors: frozenset[str] | None = None) -> JobResult:
    """Inpaint what is left of the job's shards.

    Raises:
        ConfigurationError: the job can't be what was meant; nothing was started.
    """
    plan = make_plan(job, retry_errors)
    executor.start(plan.recipe.job)
    if plan.left and plan.recipe.batch_budget is None:
        plan = plan.for_memory(executor.device_memory(plan.recipe.job))
    plan = open_output(plan)
    ledger = Ledger(job.output.url)
    by_name = {shard.name: shard for shard in plan.shards}
    result = JobResult(plan)
    tally = Tally()
    done = len(plan.shards) - len(plan.left)
    polarity_is_judged = False
    display = Display(len(plan.shards), done, tally)
    tally.listener = lambda: display.refresh(done)
    started = time.monotonic()
    try:
        for report in executor.run(plan.recipe, plan.left, tally) if plan.left else ():
            if report is not None:
                done += report.committed
                tally.settle(report.shard, report.counts.get("samples", 0), report.errors_by_code)
                if not report.committed:
                    result.failed[report.shard] = report.reason
                    ledger.fail(by_name[report.shard], {"reason": report.reason})
                elif not polarity_is_judged:
                    polarity_is_judged = True
                    _warn_of_polarity(report, job)
            display.refresh(done)
            if tally.samples >= _JUDGED_AFTER and (wrong := _too_many_errors(tally.samples, tally.errors, job)):
                result.stopped = wrong
                break
    except WorkersFailedError as error:
        result.stopped = str(error)
    finally:
        display.close()
    result.samples, result.errors = tally.samples, tally.errors
    result.seconds = time.monotonic() - started
    found = audit(job.output.url, deep=False, shards=plan.shards)
    # What a crashed run left beside a shard that is committed now.
    swept = set(ledger.sweep(found.orphaned))
    found.orphaned = [name for name in found.orphaned if name not in swept]
    result.audit = found
    # At the end over all commits, earlier runs' included: a resumed job is judged as one that wasn't interrupted.
    result.stopped = result.stopped or _too_many_errors(found.samples, found.errors_by_code, job)
    return result


def _too_many_errors(samples: int, errors: Counter[str], job: InpaintJob) -> str:
    wrong = errors.total() / job.inpaint.variants
    if samples == 0 or wrong <= job.max_error_fraction * samples:
        return ""
    codes = ", ".join(f"{code}: {count}" for code, count in errors.most_common(5))
    return (
        f"{wrong:g} of {samples} samples are errors ({codes}); max_error_fraction allows {job.max_error_fraction:g}. "
        "See errors/ for which, or raise it if they are to be expected"
    )


def _warn_of_polarity(report: Report, job: InpaintJob) -> None:
    if report.mean_hole_fraction is not None and report.mean_hole_fraction > _LIKELY_POLARITY:
        print(
            f"warning: holes cover {report.mean_hole_fraction:.0%} of the images of shard {report.shard}; "
            f"is input.mask_polarity ({job.input.mask_polarity}) the right way round?",
            file=sys.stderr,
        )
