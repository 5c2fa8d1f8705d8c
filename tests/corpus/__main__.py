"""``python -m tests.corpus``: build the corpus into a folder, run it, and say by group what came of it."""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from asymvae.storage.audit import audit
from tests.corpus.case import Case
from tests.corpus.cost import costs, peak, peak_begins
from tests.corpus.law import law_broken
from tests.corpus.run import Ran, all_cases, build, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.corpus", description=__doc__)
    parser.add_argument("--folder", type=Path, help="where shards and OUTs are left; by default nothing is left")
    parser.add_argument("--group", action="append", help="only these groups; may be given several times")
    parser.add_argument("--list", action="store_true", help="only print the cases")
    args = parser.parse_args()
    cases = [case for case in all_cases() if not args.group or case.group in args.group]
    if args.list:
        print("\n".join(f"{case.group}: {case.name}" for case in cases))
        return 0
    if not cases:
        parser.error(f"no such group; there are {', '.join(sorted({case.group for case in all_cases()}))}")
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="asymvae-corpus-") as scratch:
        folder = args.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            parser.error(f"{folder} is not empty")
        return _run(cases, folder)


def _run(cases: Sequence[Case], folder: Path) -> int:
    from tests.tiny import tiny_model
    from tests.tiny_diffusion import write_tiny_diffusion

    tiny_model().save_pretrained(str(folder / "checkpoint"))
    diffusion = write_tiny_diffusion(folder / "diffusion")
    corpus = build(folder / "shards", cases)
    before = peak_begins()
    ran = run(corpus, folder / "out", folder / "checkpoint", diffusion)
    ran.memory = peak() - before
    wrong = dict(ran.wrong())
    print(table(ran))
    for case, what in wrong.items():
        print(f"\nunexpected: {case.group}: {case.name}: {what}")
    broken = [
        f"{name}: {line}" for name, out in ran.outs.items() for line in law_broken(str(out), corpus.samples[name])
    ]
    audits = {name: audit(str(out), deep=True, shards=ran.results[name].plan.shards) for name, out in ran.outs.items()}
    samples, results, errors, own = (
        sum(getattr(report, name) for report in audits.values())
        for name in ("samples", "results", "errors", "shard_errors")
    )
    print(
        f"\n{len(cases)} cases, {len(wrong)} unexpected; {sum(len(r.plan.shards) for r in ran.results.values())} shards"
    )
    print(
        f"{samples} samples = {results} results + {errors} errors; {own} faults of shards; the law is broken: {broken}"
    )
    print(f"deep audit: {'well' if all(report.ok for report in audits.values()) else 'NOT WELL'}")
    print(f"\nthe run: {ran.seconds:.1f} s, peak {ran.memory / 2**20:.0f} MiB above {before / 2**20:.0f} MiB")
    spent = list(costs(corpus, corpus.cases))
    slowest, hungriest = max(spent, key=lambda c: c.seconds), max(spent, key=lambda c: c.memory)
    print(f"slowest case: {slowest.seconds:.2f} s of CPU, {slowest.case.group}: {slowest.case.name}")
    print(f"most memory: {hungriest.memory / 2**20:.0f} MiB, {hungriest.case.group}: {hungriest.case.name}")
    return 1 if wrong or broken or not all(report.ok for report in audits.values()) else 0


def table(ran: Ran) -> str:
    """By group: cases, what came out, and what was unexpected, as Markdown."""
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    codes: dict[str, Counter[str]] = defaultdict(Counter)
    for case in ran.corpus.cases:
        came = ran.came(case)
        groups[case.group].update(cases=1, results=len(came.results), unexpected=bool(ran.look(case)))
        codes[case.group].update(row["code"] for row in [*came.errors, *came.faults])
    lines = ["| group | cases | results | error rows by code | unexpected |", "|---|---|---|---|---|"]
    for group, counts in groups.items():
        listed = ", ".join(f"{code} {count}" for code, count in codes[group].most_common())
        lines.append(f"| {group} | {counts['cases']} | {counts['results']} | {listed} | {counts['unexpected']} |")
    total = sum((Counter(counts) for counts in groups.values()), Counter[str]())
    lines.append(
        f"| all | {total['cases']} | {total['results']} | {sum(map(Counter.total, codes.values()))} "
        f"of {len(set().union(*codes.values()))} codes | {total['unexpected']} |"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
