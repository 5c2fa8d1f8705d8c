"""What crashes left in an OUT and no commit names, removed once it is too old to be anybody's work.

Names decide what is ours: parts, their temporary files and unfinished uploads, and records of failures that a commit
has overtaken. Whatever else lies below OUT is named and left alone.

Another driver may be about to adopt an old part, since the shard it is of is being done again. So a part goes only
while no record names it, and the records are looked at again afterwards; :meth:`Ledger.commit` for its part looks at
its objects after its record is made, and puts back what is gone. Whichever comes last sees the other.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from asymvae.storage import filesystem, uploads
from asymvae.storage.audit import Survey
from asymvae.storage.clock import PROBE, store_time
from asymvae.storage.ledger import COMMITS, FAILED, JOB, REPLANNED, Ledger, is_part, shard_of

_RECORD: Final = re.compile(rf"({COMMITS}|{FAILED})/[^/]+\.json")
_OF_OUT: Final = frozenset([JOB, REPLANNED, "seen-by-all", PROBE])  # temporary files that are of no shard
_REPORT: Final = frozenset(["report/index.html", "report/contact_sheet.png"])
_SHARDS_AT_ONCE: Final = 16


@dataclass(frozen=True, slots=True)
class Leftover:
    """``where``: path below OUT. ``age``: in s, by the store's clock; None where the store doesn't say."""

    where: str
    kind: str  # part, temporary, failure, upload
    bytes: int
    age: float | None
    upload: uploads.Upload | None = field(default=None, compare=False, repr=False)


@dataclass
class Cleaned:
    """What became of it."""

    removed: list[Leftover] = field(default_factory=list)  # or would be, in a dry run
    young: list[Leftover] = field(default_factory=list)
    doubtful: list[str] = field(default_factory=list)  # of shards whose commit can't be read: it may name them
    foreign: list[str] = field(default_factory=list)  # names that aren't ours
    withdrawn: list[str] = field(default_factory=list)  # commits made meanwhile of parts that were being removed


def clean(out_url: str, survey: Survey, *, older_than: float, dry_run: bool = False) -> Cleaned:
    """Remove what of ``survey`` no commit names and is older than ``older_than`` s. ``dry_run`` removes nothing."""
    ledger = Ledger(out_url)
    now = store_time(out_url)
    cleaned = Cleaned()
    by_shard: dict[str | None, list[Leftover]] = {}
    for found in _leftovers(out_url, survey, now, cleaned):
        if found.age is None or found.age < older_than:
            cleaned.young.append(found)
        else:
            by_shard.setdefault(shard_of(found.where), []).append(found)

    def of_shard(shard: str | None) -> Cleaned:
        return _clean_shard(ledger, shard, by_shard[shard], dry_run)

    with ThreadPoolExecutor(_SHARDS_AT_ONCE) as pool:
        for part in pool.map(of_shard, sorted(by_shard, key=str)):
            cleaned.removed += part.removed
            cleaned.doubtful += part.doubtful
            cleaned.withdrawn += part.withdrawn
    for each in (cleaned.removed, cleaned.young):
        each.sort(key=lambda found: found.where)
    cleaned.doubtful.sort()
    cleaned.foreign.sort()
    return cleaned


def _leftovers(out_url: str, survey: Survey, now: float, cleaned: Cleaned) -> Iterator[Leftover]:
    """What may go, by its name and the survey; names that aren't ours are noted in ``cleaned``."""
    for where, size, changed in survey.objects.items():
        kind = _kind(where)
        if where in survey.named or where in (JOB, REPLANNED) or where in _REPORT:
            continue
        if kind == "failure" and not survey.commits.of(shard_of(where) or ""):
            continue
        if kind is None:
            cleaned.foreign.append(where)
            continue
        yield Leftover(where, kind, size, None if changed is None else max(0.0, now - changed))
    for upload in uploads.list_uploads(out_url):
        age = max(0.0, now - upload.started)
        if is_part(upload.where):
            yield Leftover(upload.where, "upload", uploads.uploaded_bytes(out_url, upload), age, upload)
        else:
            cleaned.foreign.append(f"{upload.where} (an unfinished upload)")


def _kind(where: str) -> str | None:
    """part, temporary or failure; None: no name of ours. Commits' records are not among a survey's objects."""
    folder, _, name = where.rpartition("/")
    temporary = filesystem.TEMPORARY.fullmatch(name)
    if temporary:
        whole = f"{folder}/{temporary['name']}" if folder else temporary["name"]
        return "temporary" if whole in _OF_OUT or is_part(whole) or _RECORD.fullmatch(whole) else None
    if _RECORD.fullmatch(where):
        return "failure"
    return "part" if is_part(where) else None


def _clean_shard(ledger: Ledger, shard: str | None, found: list[Leftover], dry_run: bool) -> Cleaned:
    cleaned = Cleaned()
    try:
        # Read now: the survey is older.
        named = set() if shard is None else ledger.objects_of(shard)
    except ValueError:
        cleaned.doubtful = [each.where for each in found]
        return cleaned
    gone = []
    for each in found:
        if each.kind == "failure" and not (shard and ledger.overtaken(shard)):
            continue  # it is as it says
        if each.where in named and each.upload is None:
            continue  # committed since the survey
        if not dry_run:
            if each.upload is None:
                filesystem.remove(filesystem.join(ledger.url, each.where))
                gone += [each.where] if each.kind == "part" else []
            elif not uploads.abort(ledger.url, each.upload):
                continue  # finished meanwhile
        cleaned.removed.append(each)
    if shard is not None and gone:
        cleaned.withdrawn = _withdraw_commits_of(ledger, shard, gone)
    return cleaned


def _withdraw_commits_of(ledger: Ledger, shard: str, gone: list[str]) -> list[str]:
    """A commit that was made in between, of parts that are gone and weren't put back, counts no more."""
    withdrawn = []
    for name, objects in ledger.commits_of(shard).items():
        for where in objects.intersection(gone):
            if not filesystem.exists(filesystem.join(ledger.url, where)):
                with contextlib.suppress(FileNotFoundError):
                    ledger.withdraw(name)
                withdrawn.append(name)
                break
    return withdrawn
