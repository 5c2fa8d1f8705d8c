"""What the jobs over shards have in common on the command line: flags, the run, and what is said of it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from asymvae.config import ShardJob
from asymvae.faults import FAULTS
from asymvae.pipeline.executor import Executor, LocalExecutor, RayExecutor
from asymvae.pipeline.interruption import Interrupted, Interruption
from asymvae.pipeline.job import JobResult, JobStoppedError, run_job
from asymvae.pipeline.plan import ConfigurationError, Plan, make_plan
from asymvae.pipeline.tail import oversized
from asymvae.storage.filesystem import redact
from jobs.arguments import fail, nearest, parse

_EPILOG = """\
examples:
  python -m jobs.{name} --config configs/{config}
  python -m jobs.{name} --config configs/{config} --workers.max=8{example}
  python -m jobs.{name} --config configs/{config} --dry-run
  python -m jobs.{name} --config configs/{config} --retry-errors=url_not_found,image_truncated
  python -m jobs.{name} --config configs/{config} --executor=local --workers.gpus=0     (no Ray, no GPU)

exit codes:
  0  every shard is committed
  1  some are not (they are named): a disk was full, say; or more samples were bad than max_error_fraction allows
  2  the configuration is wrong; nothing was started
  130, 143  interrupted by SIGINT (Ctrl-C) or SIGTERM: workers give up what isn't committed, no part is left half
     written; the same command goes on where it ended. A second signal ends the job at once, and loses no more
"""


@dataclass(frozen=True)
class ShardCommand:
    """``python -m jobs.<name>``. ``example``: a flag of its own, for the help; ``config``: a file."""

    settings: type[ShardJob]
    name: str
    description: str
    config: str
    example: str

    def read(self, arguments: Sequence[str]) -> tuple[ShardJob, argparse.Namespace]:
        """The job that the arguments describe, and what is no setting. Exits with 2 where they are wrong."""
        flags = argparse.ArgumentParser(
            prog=f"python -m jobs.{self.name}",
            usage="%(prog)s --config FILE [--name.of.setting=value ...] [--dry-run] [--retry-errors[=CODES]]",
            description=self.description,
            epilog=_EPILOG.format(name=self.name, config=self.config, example=f" {self.example}"),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        flags.add_argument("--dry-run", action="store_true", help="print the plan, start and write nothing")
        flags.add_argument(
            "--retry-errors",
            nargs="?",
            const="",
            metavar="CODES",
            help="also redo committed shards that hold error rows (of these codes, with commas between)",
        )
        job, flag = parse(self.settings, flags, arguments)
        flag.retry_errors = None if flag.retry_errors is None else _codes(flag.retry_errors)
        return job, flag

    def run(self, arguments: Sequence[str]) -> int:
        """The exit code of the command."""
        job, flag = self.read(arguments)
        executor: Executor = RayExecutor() if job.executor == "ray" else LocalExecutor()
        try:
            with Interruption().heard() as interruption:
                if flag.dry_run:
                    _print_plan(make_plan(job, flag.retry_errors))
                    return 0
                result = run_job(job, executor, retry_errors=flag.retry_errors, interruption=interruption)
        except ConfigurationError as error:
            fail(str(error))
        except JobStoppedError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        except Interrupted as interrupted:
            print(
                f"interrupted by {interrupted.name}: what is committed stays, and the same command goes on from there",
                file=sys.stderr,
            )
            return interrupted.exit_code
        _print_result(result)
        return result.exit_code


def _codes(listed: str) -> frozenset[str]:
    codes = frozenset(filter(None, map(str.strip, listed.split(","))))
    for code in sorted(codes - FAULTS.keys()):
        fail(f"--retry-errors: no error has the code {code}" + nearest(code, FAULTS))
    return codes


def _print_plan(plan: Plan) -> None:
    job = plan.recipe.job
    size = int(plan.left.sizes.sum())
    print(f"{len(plan.shards)} shards, {len(plan.shards) - len(plan.left)} of them committed already")
    print(f"{len(plan.left)} to do, {size / 2**20:.1f} MiB, into {redact(job.output.url)}")
    for shard in plan.left[:10]:
        print(f"  {shard.name}  {shard.size / 2**20:.1f} MiB")
    if len(plan.left) > 10:
        print(f"  and {len(plan.left) - 10} more")
    workers = job.workers
    for shard in oversized(plan.left, workers.max)[:3]:
        share = shard.size / size
        print(
            f"note: {shard.name} holds {share:.0%} of what is to do, more than one of {workers.max} workers' part: the "
            "run takes as long as it does. Split it where shards are made, if that is too long"
        )
    print(
        f"{workers.min} to {workers.max} actors, each with {workers.gpus:g} GPUs and {workers.cpu_threads} CPUs, "
        f"{job.model.dtype}, batches of {workers.batch_size}"
    )
    print(f"fingerprint {plan.recipe.fingerprint}, weights {plan.recipe.weights_sha256[:12]}")


def _print_result(result: JobResult) -> None:
    audit = result.audit
    assert audit is not None
    out = redact(result.plan.recipe.job.output.url)
    rate = result.samples / result.seconds if result.seconds else 0.0
    print(f"{result.samples} samples in {result.seconds:.1f} s ({rate:.2f}/s) in this run")
    if result.tail.workers > 1:
        print(
            f"{result.tail.workers} workers were without a shard for {result.tail.idle_share:.1%} of their time "
            f"({result.tail.idle_seconds:.0f} worker-seconds)"
        )
    print(
        f"{out}: {audit.shards} shards committed, {audit.samples} samples = "
        f"{audit.results} results + {audit.errors} errors, of {audit.planned} planned"
    )
    if audit.errors_by_code:
        print("errors by code: " + ", ".join(f"{code} {count}" for code, count in audit.errors_by_code.most_common()))
    if audit.incomplete:
        print(f"{audit.incomplete} shards have a fault of their own (a cut tar); see errors/ with a null index")
    if audit.degraded:
        print(
            f"{audit.degraded} shards are degraded: a batch didn't fit the device's memory and was run in parts, so "
            "their bytes may differ in another run, by rounding"
        )
    for name, reason in result.failed.items():
        print(f"failed: shard {name}: {reason}", file=sys.stderr)
    for kind in ("missing", "broken", "orphaned", "failed"):
        for line in getattr(audit, kind):
            if kind == "failed" and line.partition(":")[0] in result.failed:
                continue  # just said
            print(f"{kind}: {line}", file=sys.stderr)
    if result.stopped:
        print(f"error: {result.stopped}", file=sys.stderr)
