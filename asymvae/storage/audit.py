"""Is everything there, once, and whole? The answer follows the commits, and trusts nothing else."""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from asymvae.storage import filesystem, schemas
from asymvae.storage.inventory import CommitNames, Inventory
from asymvae.storage.ledger import COMMITS, FAILED, Ledger, commit_name, law_broken

if TYPE_CHECKING:
    from asymvae.storage.shards import Shard

KINDS: Final = ("results", "metrics", "errors", "latents")
_RECORDS_AT_ONCE: Final = 16  # small reads: a store's latency, not its bandwidth
_SHARDS_AT_ONCE: Final = 2  # whole parts, each on local disk while it is read
_CHUNK: Final = 1000


@dataclass
class AuditReport:
    """What was found. The lists hold lines for people, each beginning with a path below OUT or a shard's name."""

    deep: bool
    missing: list[str] = field(default_factory=list)  # shards without a commit, objects that a commit names
    orphaned: list[str] = field(default_factory=list)  # paths below OUT of what no commit names
    broken: list[str] = field(default_factory=list)  # what is there and isn't what its commit says
    failed: list[str] = field(default_factory=list)  # shards given up on, and why
    shards: int = 0  # with a commit
    incomplete: int = 0  # of these, with a fault of the shard itself, a cut tar
    degraded: int = 0  # of these, outside the promise of the same bytes
    samples: int = 0
    planned: int = 0
    results: int = 0
    errors: int = 0
    shard_errors: int = 0
    errors_by_code: Counter[str] = field(default_factory=Counter)
    bytes_by_kind: Counter[str] = field(default_factory=Counter)

    @property
    def ok(self) -> bool:
        """Nothing missing, orphaned, broken or failed."""
        return not (self.missing or self.orphaned or self.broken or self.failed)


@dataclass(slots=True)
class _Found:
    """What one commit record led to."""

    record: dict[str, Any] | None
    missing: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Survey:
    """What lies in OUT and was not found to be as a commit says; the commits' records are in ``commits`` alone."""

    objects: Inventory
    commits: CommitNames
    named: set[str] = field(default_factory=set)  # of ``objects``, what a commit names all the same


def audit(
    out_url: str,
    *,
    deep: bool,
    shards: Sequence[Shard] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AuditReport:
    """What :func:`audit_and_survey` finds wrong."""
    return audit_and_survey(out_url, deep=deep, shards=shards, progress=progress)[0]


def audit_and_survey(
    out_url: str,
    *,
    deep: bool,
    shards: Sequence[Shard] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[AuditReport, Survey]:
    """Check OUT against its commits, and say what lies in it.

    Every record is read; every object it names must be there with its size; its counts must add up. ``deep``
    reads every part whole: sha256, Parquet, each (key, variant) once. While a job runs on OUT, its uncommitted
    parts and temporary files are reported as orphans.

    Args:
        shards: those of the input, to name the ones without a commit.
        progress: called with (commits looked at, commits in all).

    Raises:
        FileNotFoundError: no job was ever opened in OUT.
    """
    ledger = Ledger(out_url)
    fingerprint = ledger.read_job()["fingerprint"]
    report = AuditReport(deep)
    # Objects before records: one that is committed in between is then named, and no orphan.
    files = filesystem.iter_files(out_url, recursive=True)
    objects = Inventory((where, file) for where, file in files if not _is_record(where))
    survey = Survey(objects, CommitNames(ledger.committed_names()))
    failed = ledger.failed()
    done = 0

    def look(name: str) -> _Found:
        return _look(ledger, name, fingerprint, objects, deep)

    with ThreadPoolExecutor(_SHARDS_AT_ONCE if deep else _RECORDS_AT_ONCE) as pool:
        for chunk in survey.commits.chunks(_CHUNK):
            for found in pool.map(look, chunk):
                done += 1
                report.missing += found.missing
                report.broken += found.broken
                if found.record is not None:
                    _count(report, found.record)
                    for part in found.record["parts"]:
                        _settle(part, survey)
                if progress:
                    progress(done, len(survey.commits))

    for shard_name, of_one in survey.commits.by_shard():
        report.shards += 1
        if len(of_one) > 1:
            report.broken.append(
                f"{shard_name}: {len(of_one)} commits ({', '.join(of_one)}); remove those of an older input"
            )
    undone = {
        shard.name for shard in shards or () if commit_name(fingerprint, shard) not in survey.commits.of(shard.name)
    }
    for shard_name in sorted(undone - failed.keys()):
        changed = "the input changed since its commit" if survey.commits.of(shard_name) else "no commit"
        report.missing.append(f"{shard_name}: {changed}")
    report.failed = [
        f"{shard}: {record.get('reason', 'no reason given')} (attempts: {record.get('attempts', '?')})"
        for shard, record in sorted(failed.items())
        if shard in undone or not survey.commits.of(shard)
    ]
    report.orphaned = sorted(_orphans(survey, undone))
    return report, survey


def _is_record(where: str) -> bool:
    folder, _, name = where.rpartition("/")
    return folder == COMMITS and name.endswith(".json")


def _settle(part: Mapping[str, Any], survey: Survey) -> None:
    """Of a million shards' objects nearly all are as their commits say, and needn't be kept in mind."""
    where = part["object"]
    if survey.objects.size(where) == part["size"]:
        survey.objects.strike(where)
    else:
        survey.named.add(where)


def _orphans(survey: Survey, undone: set[str]) -> Iterator[str]:
    for where in survey.objects:
        folder, _, name = where.rpartition("/")
        temporary = filesystem.TEMPORARY.fullmatch(name) is not None
        part = folder.partition("/")[0] in KINDS and where not in survey.named
        # Written before the commit that made it untrue, which a crash kept from removing it.
        shard = name.removesuffix(".json")
        outdated = folder == FAILED and shard not in undone and bool(survey.commits.of(shard))
        if temporary or part or outdated or folder.startswith("_tmp"):
            yield where


def _count(report: AuditReport, record: Mapping[str, Any]) -> None:
    counts = record["counts"]
    report.samples += counts["samples"]
    report.planned += counts["planned"]
    report.results += counts["results"]
    report.errors += counts["errors"]
    report.shard_errors += counts["shard_errors"]
    report.incomplete += not record["complete"]
    report.degraded += bool(record["degraded"])
    report.errors_by_code.update(record["errors_by_code"])
    for part in record["parts"]:
        report.bytes_by_kind[part["kind"].partition("/")[0]] += part["size"]


def _look(
    ledger: Ledger,
    name: str,
    fingerprint: str,
    objects: Inventory,
    deep: bool,
) -> _Found:
    where = f"{COMMITS}/{name}.json"
    try:
        record = ledger.read_commit(name)
    except FileNotFoundError:  # withdrawn since the listing
        return _Found(None)
    except ValueError as error:
        return _Found(None, broken=[str(error)])
    found = _Found(record, broken=[f"{where}: {line}" for line in law_broken(record)])
    if f"{record['shard']}.{record['id']}" != name:
        found.broken.append(f"{where}: says it is of {record['shard']}.{record['id']}")
    if record["fingerprint"] != fingerprint:
        found.broken.append(f"{where}: of another job, fingerprint {record['fingerprint']}")
    rows: dict[str, list[dict[str, Any]]] = {}
    for part in record["parts"]:
        size = objects.size(part["object"])
        if size is None:
            # Put after the listing, perhaps, or named by another commit, too: ask for itself.
            with contextlib.suppress(FileNotFoundError):
                size = filesystem.info(filesystem.join(ledger.url, part["object"])).size
        if size is None:
            found.missing.append(f"{part['object']}: named by {where}, and not there")
        elif size != part["size"]:
            found.broken.append(f"{part['object']}: {size} bytes, {part['size']} were committed")
        elif deep:
            problem, ids = _read_part(ledger, part)
            found.broken += [f"{part['object']}: {line}" for line in problem]
            rows.setdefault(part["kind"].partition("/")[0], []).extend(ids)
    if deep and not found.broken and not found.missing:
        found.broken.extend(f"{where}: {line}" for line in _ids_broken(record, rows))
    return found


def _read_part(ledger: Ledger, part: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """(what is wrong with a part, the rows' identities): its bytes, and every value of it, read."""
    with _on_local_disk(filesystem.join(ledger.url, part["object"])) as (path, sha256):
        if sha256 != part["sha256"]:
            return ["its sha256 is not the committed one"], []
        wrong: list[str] = []
        ids: list[dict[str, Any]] = []
        rows = 0
        try:
            with pq.ParquetFile(path) as file:
                expected = schemas.columns_of(part["kind"], file.schema_arrow)
                if expected is not None and not file.schema_arrow.equals(expected):
                    wrong.append("its columns are not those of its kind")
                columns = [name for name in ("key", "variant", "index", "code") if name in file.schema_arrow.names]
                for batch in file.iter_batches(batch_size=128):
                    batch.validate(full=True)
                    rows += batch.num_rows
                    ids += batch.select(columns).to_pylist()
        except (pa.ArrowException, OSError, ValueError) as error:
            return [f"not a readable Parquet file ({type(error).__name__})"], []
        if rows != part["rows"]:
            wrong.append(f"{rows} rows, {part['rows']} were committed")
        return wrong, ids


@contextlib.contextmanager
def _on_local_disk(url: str) -> Iterator[tuple[Path, str]]:
    """(path, sha256) of a file, fetched once where it isn't local."""
    digest = hashlib.sha256()
    with filesystem.open_stream(url) as stream, contextlib.ExitStack() as stack:
        copy = None
        if not filesystem.is_local(url):
            copy = stack.enter_context(tempfile.NamedTemporaryFile(prefix="asymvae-audit-"))
        while block := stream.read(2**20):
            digest.update(block)
            if copy is not None:
                copy.write(block)
        if copy is not None:
            copy.flush()
        yield Path(copy.name if copy else filesystem.resolve(url)[1]), digest.hexdigest()


def _ids_broken(record: Mapping[str, Any], rows: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """The law, row by row: every planned (sample, variant) is a result or an error, once."""
    counts = record["counts"]
    results = rows.get("results", []) + rows.get("latents", [])
    errors = [row for row in rows.get("errors", []) if row["index"] is not None]
    broken = []
    if len(errors) != counts["errors"]:
        broken.append(f"{len(errors)} error rows with an index, {counts['errors']} are counted")
    by_code = Counter(row["code"] for row in rows.get("errors", []))
    if by_code != Counter(record["errors_by_code"]):
        broken.append("errors_by_code is not what the error rows say")
    places = Counter((row["index"], row.get("variant", 0)) for row in results + errors)
    twice = sorted(place for place, times in places.items() if times > 1)
    if twice:
        broken.append(f"(index, variant) {twice[0]} and {len(twice) - 1} others come more than once")
    samples = Counter(index for index, _ in places)
    variants = counts["planned"] // max(1, counts["samples"])
    # Numbers count from 0 without a gap, but where rows of a damaged row group are lost: later ones keep theirs.
    numbers = sorted(samples) if by_code["parquet_corrupt"] else range(counts["samples"])
    lost = [index for index in numbers if samples.pop(index, 0) != variants]
    if lost or samples or len(numbers) != counts["samples"]:
        odd = sorted([*lost, *samples])
        broken.append(f"samples without each of their {variants} rows, or unknown: {odd[:5]}, {len(odd)} in all")
    names = Counter((row["key"], row.get("variant", 0)) for row in results)
    again = sorted(str(name) for name, times in names.items() if times > 1)
    # A later sample of the same key is an error row beside the first one's result.
    again += sorted(
        str((row["key"], row.get("variant", 0)))
        for row in errors
        if row["code"] != "duplicate_key" and (row["key"], row.get("variant", 0)) in names
    )
    if again:
        broken.append(f"(key, variant) more than once: {again[0]}, {len(again)} in all")
    if "metrics" in rows:
        identities = [
            Counter((row["key"], row["variant"], row["index"]) for row in kind) for kind in (results, rows["metrics"])
        ]
        if identities[0] != identities[1]:
            broken.append("metrics and results are not of the same rows")
    return broken
