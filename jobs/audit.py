"""``python -m jobs.audit OUT``: is everything there, once, and whole?"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from asymvae.storage import filesystem
from asymvae.storage.audit import AuditReport, Survey, audit_and_survey
from asymvae.storage.cleaning import Cleaned, Leftover, clean
from asymvae.storage.latent_shards import list_latents, with_originals
from asymvae.storage.ledger import Ledger
from asymvae.storage.shards import Shard, list_shards

HELP = """\
Check what a job wrote to OUT (a folder, or an fsspec URL such as s3://bucket/out/run-1).

The audit follows the commit records, OUT/_commits/*.json, and checks that
  - every shard of the job's input has a commit, and none was given up on;
  - every object a commit names is there, with its size;
  - the counts add up: planned = results + errors, for every shard;
  - nothing else lies about: parts that no commit names, temporary files.
With --deep it reads every part whole: its sha256, every Parquet page, each (key, variant) exactly once,
one metrics row a result.

With --clean it then removes what crashes left there and no commit names, once it is older than --older-than, by the
store's own times: parts, temporary files, unfinished multipart uploads, records of failures of shards done since.
It says what it removed, what it left because it was too young, and which names aren't this project's: those stay.
"""
EXAMPLES = """\
exit codes:
  0  all is well
  1  something is missing, orphaned, broken or failed; it is named
  2  OUT can't be audited: no job was ever started there, or it can't be read

What a run that is still at work has not committed yet is shown as missing and orphaned.
A rerun of the same job does the missing shards, and removes what a crash left of the finished ones; --clean removes
the rest, too. With --clean the exit code is that of what is left.

examples:
  python -m jobs.audit out/demo
  python -m jobs.audit s3://bucket/out/run-1 --deep
  python -m jobs.audit out/demo --json | jq .errors_by_code
  python -m jobs.audit s3://bucket/out/run-1 --clean --dry-run
  python -m jobs.audit s3://bucket/out/run-1 --clean --older-than=7d
"""
_DAY = 86_400.0
_SHOWN = 20  # lines of a list in the table; --json has them all


def read(arguments: Sequence[str] | None) -> tuple[None, argparse.Namespace]:
    """What the arguments say. Exits with 2 where they are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.audit",
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", metavar="OUT", help="what output.url was: a folder or an fsspec URL")
    parser.add_argument("--deep", action="store_true", help="read every part whole; takes as long as reading OUT")
    parser.add_argument("--json", action="store_true", help="print the report as JSON, all of it")
    parser.add_argument("--clean", action="store_true", help="remove what crashes left and no commit names")
    parser.add_argument(
        "--older-than",
        type=_duration,
        metavar="AGE",
        help="with --clean: only what is at least this old, as 30m, 24h or 7d (24h); what is younger may be the work "
        "of a run that is going on. 0h where none is",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="with --clean: say what would be removed, remove nothing"
    )
    options = parser.parse_args(arguments)
    if not options.clean and (options.dry_run or options.older_than is not None):
        parser.error("--older-than and --dry-run go with --clean: add it")
    return None, options


def main(arguments: list[str] | None = None) -> int:
    _, options = read(arguments)
    name = filesystem.redact(options.out)
    cleaned = None
    try:
        job = Ledger(options.out).read_job()
        shards, note = _input_shards(job)
        report, survey = _audit(options.out, options.deep, shards)
        if options.clean:
            age = _DAY if options.older_than is None else options.older_than
            cleaned = clean(options.out, survey, older_than=age, dry_run=options.dry_run)
            if not options.dry_run:
                _forget_removed(report, cleaned)
    except FileNotFoundError:
        print(f"{name} is not a job's output: it has no _job.json", file=sys.stderr)
        return 2
    except (KeyError, TypeError) as error:
        print(f"{name} can't be audited: its _job.json is not one of this project ({error})", file=sys.stderr)
        return 2
    except (OSError, ValueError, ImportError) as error:
        print(f"{name} can't be audited: {filesystem.redact_text(str(error))}", file=sys.stderr)
        return 2
    if options.json:
        print(_as_json(report, note, cleaned, options.dry_run))
    else:
        print(_as_table(name, report, note, [] if cleaned is None else _cleaning_lines(cleaned, options.dry_run)))
    return 0 if report.ok else 1


def _forget_removed(report: AuditReport, cleaned: Cleaned) -> None:
    """What was found stands for what is left."""
    gone = {found.where for found in cleaned.removed}
    report.orphaned = [where for where in report.orphaned if where not in gone]
    report.missing += [
        f"{commit}: made while a part that it names was being removed, and withdrawn; the next run does the shard again"
        for commit in cleaned.withdrawn
    ]


def _duration(text: str) -> float:
    """In s."""
    known = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())
    if not known:
        raise argparse.ArgumentTypeError(f"{text!r} is no age: write a number and a unit, as 30m, 24h or 7d")
    return float(known[1]) * {"s": 1, "m": 60, "h": 3600, "d": _DAY, "w": 7 * _DAY}[known[2]]


def _audit(out: str, deep: bool, shards: Sequence[Shard] | None) -> tuple[AuditReport, Survey]:
    with tqdm(desc="audit", unit=" shards", disable=None if deep else True, leave=False) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return audit_and_survey(out, deep=deep, shards=shards, progress=progress)


def _input_shards(job: dict[str, Any]) -> tuple[Sequence[Shard] | None, str | None]:
    """The shards of the job's input, or None and why they can't be listed (it may be gone, rightly)."""
    settings, root = job["settings"]["input"], job["input"]["root"]
    try:
        if job.get("job") != "decode_latents":
            return list_shards(settings["urls"], root=root, format=settings["format"]), None
        _, shards = list_latents(settings["urls"], root=root, format=settings["format"])
        originals = job["settings"]["originals"]
        if originals["urls"]:
            found = list_shards(originals["urls"], root=originals["root"], format=originals["format"])
            shards = with_originals(shards, found)
        return shards, None
    except (OSError, ValueError) as error:
        why = filesystem.redact_text(str(error))
        return None, f"the input can't be listed, so shards without a commit were not looked for: {why}"


def _as_json(report: AuditReport, note: str | None, cleaned: Cleaned | None, dry_run: bool) -> str:
    content = {"ok": report.ok, **vars(report), "note": note}
    if cleaned is not None:
        content["cleaning"] = {
            "dry_run": dry_run,
            "bytes": sum(found.bytes for found in cleaned.removed),
            "removed": [_as_record(found) for found in cleaned.removed],
            "too_young": [_as_record(found) for found in cleaned.young],
            "doubtful": cleaned.doubtful,
            "not_ours": cleaned.foreign,
        }
    return json.dumps(content, indent=1, sort_keys=True)


def _as_record(found: Leftover) -> dict[str, Any]:
    return {"path": found.where, "kind": found.kind, "bytes": found.bytes, "age_seconds": found.age}


def _cleaning_lines(cleaned: Cleaned, dry_run: bool) -> list[str]:
    verb = "WOULD REMOVE" if dry_run else "REMOVED"
    lines = ["", f"{verb}: {len(cleaned.removed):,}, {sum(found.bytes for found in cleaned.removed):,} bytes"]
    lines += map(_leftover_line, cleaned.removed)
    if cleaned.young:
        lines += ["", f"LEFT, TOO YOUNG: {len(cleaned.young):,}", *map(_leftover_line, cleaned.young)]
    if cleaned.doubtful:
        lines += ["", f"LEFT, for a commit that can't be read may name them: {len(cleaned.doubtful):,}"]
        lines += [f"  {where}" for where in cleaned.doubtful]
    if cleaned.foreign:
        lines += ["", f"NOT OF THIS PROJECT, left: {len(cleaned.foreign):,}"]
        lines += [f"  {where}" for where in cleaned.foreign]
    return lines


def _leftover_line(found: Leftover) -> str:
    age = "of unknown age" if found.age is None else f"{found.age / 3600:,.1f} h old"
    return f"  {found.kind:<10}{found.bytes:>16,} bytes  {age:>14}  {found.where}"


def _as_table(name: str, report: AuditReport, note: str | None, cleaning: list[str]) -> str:
    depth = "every part read" if report.deep else "sizes and counts; --deep reads every part"
    lines = [f"{name}  ({depth})", ""]
    numbers = [
        (
            "shards committed",
            report.shards,
            f"{report.incomplete} with a fault of their own" if report.incomplete else "",
        ),
        ("samples", report.samples, ""),
        ("rows planned", report.planned, ""),
        ("results", report.results, ""),
        ("errors", report.errors, ""),
        ("errors of shards", report.shard_errors, ""),
    ]
    if report.degraded:
        numbers.append(("degraded shards", report.degraded, "their bytes may differ in another run"))
    lines += [f"  {label:<18}{number:>14,}  {remark}".rstrip() for label, number, remark in numbers]
    for title, counted in (("bytes", report.bytes_by_kind), ("errors by code", report.errors_by_code)):
        if counted:
            lines += ["", title]
            lines += [f"  {what:<18}{number:>14,}" for what, number in counted.most_common()]
    for title in ("missing", "orphaned", "broken", "failed"):
        found = getattr(report, title)
        if found:
            lines += ["", f"{title.upper()}: {len(found):,}"]
            lines += [f"  {line}" for line in found[:_SHOWN]]
            if len(found) > _SHOWN:
                lines.append(f"  ... and {len(found) - _SHOWN:,} more; --json lists them")
    lines += cleaning
    if note:
        lines += ["", f"note: {note}"]
    verdict = "all is well" if report.ok else "not all is well: see above"
    return "\n".join([*lines, "", verdict])


if __name__ == "__main__":
    sys.exit(main())
