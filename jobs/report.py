"""``python -m jobs.report OUT``: what a job did, as one HTML page and one picture."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from tqdm import tqdm

from asymvae.report.page import Report, make_report
from asymvae.storage import filesystem

HELP = """\
Write two files about a job's output, OUT (a folder, or an fsspec URL such as s3://bucket/out/run-1):

  index.html         totals, pictures, histograms of every metric, the worst samples by each, errors by code,
                     throughput over time, settings; everything is inside: send it, or open it on a plane
  contact_sheet.png  input, hole and result of samples that are spread evenly over the shards

The report follows the commit records, so it can be made while the job is at work. Inputs and masks are read again
from where the job read them; where they are gone, the report says so and shows the rest.
"""
EXAMPLES = """\
exit codes:
  0  both files are written
  2  nothing is written: OUT holds no job, or it can't be read

examples:
  python -m jobs.report out/demo
  python -m jobs.report out/demo --rows 40
  python -m jobs.report s3://bucket/out/run-1 --out reports/run-1
"""


def read(arguments: Sequence[str] | None) -> tuple[None, argparse.Namespace]:
    """What the arguments say. Exits with 2 where they are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.report",
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", metavar="OUT", help="what output.url was: a folder or an fsspec URL")
    parser.add_argument("--rows", type=_positive, default=12, metavar="N", help="rows of the contact sheet (12)")
    parser.add_argument(
        "--out",
        dest="folder",
        metavar="FOLDER",
        help="where to write; by default OUT/report, and ./report where OUT is not local",
    )
    return None, parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    _, options = read(arguments)
    name = filesystem.redact(options.out)
    try:
        folder = options.folder or (
            filesystem.join(options.out, "report") if filesystem.is_local(options.out) else "report"
        )
        report = _make(options.out, options.rows)
        for file, content in (("index.html", report.page.encode()), ("contact_sheet.png", report.sheet)):
            filesystem.replace(filesystem.join(folder, file), content)
    except FileNotFoundError:
        print(f"{name} is not a job's output: it has no _job.json", file=sys.stderr)
        return 2
    except (KeyError, TypeError) as error:
        print(f"{name}: its _job.json is not one of this project ({error})", file=sys.stderr)
        return 2
    except (OSError, ValueError, ImportError) as error:
        print(f"no report of {name}: {filesystem.redact_text(str(error))}", file=sys.stderr)
        return 2
    print(f"page   {filesystem.redact(filesystem.join(folder, 'index.html'))}")
    print(f"sheet  {filesystem.redact(filesystem.join(folder, 'contact_sheet.png'))}")
    return 0


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _make(out: str, rows: int) -> Report:
    with ExitStack() as stack:
        bars: dict[str, tqdm[Any]] = {}  # one after the other, on a terminal only

        def progress(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = stack.enter_context(tqdm(desc=what, total=total, disable=None, leave=False))
            bars[what].update(done - bars[what].n)

        return make_report(out, rows=rows, progress=progress)


if __name__ == "__main__":
    sys.exit(main())
