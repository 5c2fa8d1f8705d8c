"""Commits: which shards are done, by which objects. The one place that makes results count.

A part counts once a commit record names it. The rules that keep this right, with any number of drivers on one
OUT and a crash at any line:

* Parts and records are only ever created where there is nothing; none is overwritten.
* A stale record (of the same shard, with another id: its input or settings changed) is removed before anything
  else happens, so that no record ever names bytes that aren't its own. Its parts are left in their places.
* An object is removed only once a record of the present id is there that doesn't name it. From then on no other
  driver can make it count: creating the record would fail. :mod:`asymvae.storage.cleaning` alone also removes old
  parts of shards without a record, and so a new record's parts are looked for once more.

What a crash leaves between these steps belongs to shards without a record, which the next run does again, or
is unnamed by a shard's record, which :meth:`Ledger.sweep` removes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from asymvae.storage import filesystem
from asymvae.storage.job_records import compare_jobs
from asymvae.storage.parts import Part
from asymvae.storage.schemas import FORMAT_VERSION
from asymvae.storage.uploads import abort_uploads

if TYPE_CHECKING:
    from asymvae.storage.shard_table import ShardTable
    from asymvae.storage.shards import Shard

log = logging.getLogger(__name__)

JOB: Final = "_job.json"
REPLANNED: Final = "_replanned.json"
COMMITS: Final = "_commits"
FAILED: Final = "_failed"
# Of a shard whose first name was taken by other bytes. No shard's name contains "~r".
_ATTEMPT: Final = "~r{digest}"
_COMMIT_KEYS: Final = frozenset(
    ["shard", "id", "fingerprint", "input", "counts", "errors_by_code", "degraded", "complete", "parts", "run"]
)
_PART_KEYS: Final = frozenset(["kind", "object", "rows", "size", "sha256"])
# Other people's files may lie below OUT, too: only what we could have named is ours.
_PART: Final = re.compile(
    r"(results|metrics|errors|latents/bucket=\d+x\d+)"
    r"/(?P<shard>(?![._])([A-Za-z0-9._-]|~[0-9A-F]{2})+?(~h[0-9a-f]{32})?)(~r[0-9a-f]{8})?\.parquet"
)
_RECORD = re.compile(rf"{COMMITS}/(?P<shard>[^/]+)\.[0-9a-f]{{16}}\.json|{FAILED}/(?P<failed>[^/]+)\.json")


def commit_id(fingerprint: str, shard: Shard) -> str:
    """16 hex digits that change with the settings, the weights, or the shard's content."""
    return _id(fingerprint, shard.version)


def _id(fingerprint: str, version: str) -> str:
    return hashlib.blake2b(f"{fingerprint}\n{version}".encode(), digest_size=8).hexdigest()


def commit_name(fingerprint: str, shard: Shard) -> str:
    """``<shard>.<id>``, as :meth:`Ledger.committed` lists it."""
    return f"{shard.name}.{commit_id(fingerprint, shard)}"


def commit_names(fingerprint: str, shards: ShardTable) -> Iterator[str]:
    """:func:`commit_name` of each, in their order."""
    return (f"{name}.{_id(fingerprint, version)}" for name, version in shards.names_and_versions())


def is_part(object_name: str) -> bool:
    """Whether a path below OUT is one that a part may have."""
    return _PART.fullmatch(object_name) is not None


def shard_of(object_name: str) -> str | None:
    """The shard that a path below OUT belongs to: a part, a record, or the temporary file of one; else None."""
    folder, _, name = object_name.rpartition("/")
    temporary = filesystem.TEMPORARY.match(name)
    if temporary:
        object_name = f"{folder}/{temporary['name']}"
    if part := _PART.fullmatch(object_name):
        return part["shard"]
    record = _RECORD.fullmatch(object_name)
    return (record["shard"] or record["failed"]) if record else None


def law_broken(record: Mapping[str, Any]) -> list[str]:
    """What a commit record says that can't be, in words; [] if all adds up.

    planned = results + errors, and the parts hold just these rows; KeyError if it isn't a commit record.
    """
    counts = record["counts"]
    broken = []
    if counts["planned"] != counts["results"] + counts["errors"]:
        broken.append(f"planned {counts['planned']} != results {counts['results']} + errors {counts['errors']}")
    rows: dict[str, int] = {}
    for part in record["parts"]:
        kind = part["kind"].partition("/")[0]
        rows[kind] = rows.get(kind, 0) + part["rows"]
    errors = counts["errors"] + counts["shard_errors"]
    if rows.pop("errors", 0) != errors:
        broken.append(f"the errors part doesn't hold the {errors} errors counted")
    if counts["results"] and not rows.keys() & {"results", "latents"}:
        broken.append(f"no part holds the {counts['results']} results counted")
    if "results" in rows:
        rows.setdefault("metrics", 0)  # one row a result
    broken += [
        f"{kind} hold {held} rows, {counts['results']} results are counted"
        for kind, held in sorted(rows.items())
        if held != counts["results"]
    ]
    return broken


class Ledger:
    """The records below ``url`` (OUT), and the way parts get there."""

    def __init__(self, url: str) -> None:
        self.url = url

    def open_job(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Create ``_job.json`` unless there is one; returns what is there, ours or the earlier one.

        Both may have a ``plan``: a digest of all ``"<shard>.<id>"`` that its driver may commit. Whoever means others
        than the first leaves a mark, before anything of it is committed; see :meth:`_present`.
        """
        filesystem.put_if_absent(self._at(JOB), _encode(record))
        standing = self.read_job()
        if standing.get("plan") != record.get("plan") and not compare_jobs(standing, record):
            filesystem.put_if_absent(self._at(REPLANNED), _encode({"plan": record.get("plan")}))
        return standing

    def read_job(self) -> dict[str, Any]:
        """FileNotFoundError where no job was ever opened; ValueError if its record can't be parsed."""
        content = filesystem.read_bytes(self._at(JOB))
        try:
            return _decode(content)
        except ValueError as error:
            raise ValueError(f"{JOB} is damaged: {error}") from error

    def committed(self) -> dict[str, str]:
        """``"<shard>.<id>"`` -> URL of its record, by one listing."""
        return {name: self._at(COMMITS, f"{name}.json") for name in self._names(COMMITS)}

    def committed_names(self) -> Iterator[str]:
        """The keys of :meth:`committed`, one by one and in no order, by one listing."""
        for name, _ in filesystem.iter_files(self._at(COMMITS)):
            if name.endswith(".json"):
                yield name.removesuffix(".json")

    def read_commit(self, name: str) -> dict[str, Any]:
        """The record of ``"<shard>.<id>"``; FileNotFoundError, or ValueError if it is no such record."""
        content = filesystem.read_bytes(self._at(COMMITS, f"{name}.json"))
        try:
            record = _decode(content)
            law_broken(record)
            whole = record.keys() >= _COMMIT_KEYS and all(part.keys() >= _PART_KEYS for part in record["parts"])
            if not whole:
                raise KeyError("a part of the record is missing")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            remedy = "remove it, and the next run does the shard again"
            raise ValueError(f"{COMMITS}/{name}.json is no commit record: {remedy}") from error
        return record

    def withdraw(self, name: str) -> None:
        """Take back the commit ``"<shard>.<id>"``, so that the next run does the shard again."""
        filesystem.remove(self._at(COMMITS, f"{name}.json"))

    def failed(self) -> dict[str, dict[str, Any]]:
        """Shard's name -> record, of the shards given up on."""
        return {name: _decode(filesystem.read_bytes(self._at(FAILED, f"{name}.json"))) for name in self._names(FAILED)}

    def fail(self, shard: Shard, reason: Mapping[str, Any]) -> None:
        """Record that a shard was given up on. ``reason`` has at least ``{"reason": "..."}``; URLs in it are
        redacted. Without ``attempts`` in it, the earlier record's number goes up by one."""
        url = self._at(FAILED, f"{shard.name}.json")
        try:
            earlier = int(_decode(filesystem.read_bytes(url)).get("attempts", 0))
        except (FileNotFoundError, ValueError):
            earlier = 0
        record = {"attempts": earlier + 1, **reason, "shard": shard.name, "input": _input(shard)}
        filesystem.replace(url, _encode(record))

    def commit(
        self,
        shard: Shard,
        commit_id: str,
        parts: Sequence[Part],
        counts: Mapping[str, int],
        run: Mapping[str, Any],
        *,
        errors_by_code: Mapping[str, int] | None = None,
        degraded: bool = False,
    ) -> dict[str, Any]:
        """Make a shard's parts count. Returns its record: ours, or another driver's who was first.

        Args:
            parts: at most one of a kind.
            counts: ``samples``, ``planned``, ``results``, ``errors`` (with an index), ``shard_errors`` (without).
            run: whatever differs between runs: seconds, host, worker, attempt.

        Raises:
            ValueError: the counts and the parts don't add up; nothing was written.
        """
        job = self.read_job()
        record: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "shard": shard.name,
            "id": commit_id,
            "fingerprint": job["fingerprint"],
            "input": _input(shard),
            "counts": dict(counts),
            "errors_by_code": dict(errors_by_code or {}),
            "degraded": degraded,
            "complete": counts["shard_errors"] == 0,
            "parts": [{"kind": part.kind, "rows": part.rows} for part in parts],
            "run": dict(run),
        }
        if broken := law_broken(record):
            raise ValueError(f"shard {shard.name} is not committed: {'; '.join(broken)}")
        name = f"{shard.name}.{commit_id}"
        present = self._present(shard.name, name, job)
        if name in present:
            filesystem.remove(self._at(FAILED, f"{shard.name}.json"))
            return self.read_commit(name)
        surplus: set[str] = set()
        for stale in present:
            with contextlib.suppress(FileNotFoundError, ValueError):  # withdrawn already, or names nothing
                surplus |= _objects(self.read_commit(stale))
            self.withdraw(stale)
        objects = self._put(shard.name, parts, surplus)
        record["parts"] = [
            {"kind": part.kind, "object": where, "rows": part.rows, "size": part.size, "sha256": part.sha256}
            for part, where in zip(parts, objects, strict=True)
        ]
        filesystem.put_if_absent(self._at(COMMITS, f"{name}.json"), _encode(record))
        winner = self.read_commit(name)
        if _objects(winner) == set(objects):
            for part, where in zip(parts, objects, strict=True):
                self._put_back(part, where)
        for where in sorted(surplus - _objects(winner)):
            filesystem.remove(self._at(where))
        filesystem.remove(self._at(FAILED, f"{shard.name}.json"))
        return winner

    def sweep(self, orphans: Iterable[str]) -> list[str]:
        """Remove what crashes left beside commits; returns what was removed, as paths below OUT.

        Of ``orphans`` (from :func:`asymvae.storage.audit.audit`) only what belongs to a committed shard goes:
        the rest may be another driver's, at work. Unfinished uploads of such shards' objects go too.
        """
        committed = {name.rpartition(".")[0] for name in self._names(COMMITS)}
        removed = []
        for where in sorted(orphans):
            shard_name = shard_of(where)
            temporary = filesystem.TEMPORARY.fullmatch(where)
            of_job = temporary is not None and temporary["name"] == JOB
            if of_job or (shard_name in committed and self._unnamed(where, shard_name)):
                filesystem.remove(self._at(where))
                removed.append(where)
        try:
            return removed + abort_uploads(self.url, lambda where: shard_of(where) in committed)
        except PermissionError:  # all is committed: no reason to fail
            log.warning(
                "%s: not allowed to look for unfinished uploads (s3:ListBucketMultipartUploads and "
                "s3:AbortMultipartUpload); let the bucket's lifecycle end them",
                filesystem.redact(self.url),
            )
            return removed

    def _unnamed(self, where: str, shard_name: str) -> bool:
        # Read now: the records may be newer than the audit that the list of orphans comes from.
        try:
            records = [self.read_commit(name) for name in self._commits_of(shard_name)]
        except (FileNotFoundError, ValueError):  # what it named isn't known
            return False
        return bool(records) and not any(where in _objects(record) for record in records)

    def _put(self, shard_name: str, parts: Sequence[Part], surplus: set[str]) -> list[str]:
        """Put all parts under one set of names; adds the objects we made to ``surplus``, for the record to
        take out again. Returns the objects, in the parts' order."""
        content = "".join(f"{part.kind}:{part.sha256}\n" for part in parts).encode()
        attempt = _ATTEMPT.format(digest=hashlib.blake2b(content, digest_size=4).hexdigest())
        for suffix in ("", attempt):
            objects = [f"{part.kind}/{shard_name}{suffix}.parquet" for part in parts]
            # all() stops at the first that is taken by other bytes: the set moves as a whole.
            if all(self._put_one(part, where, surplus) for part, where in zip(parts, objects, strict=True)):
                return objects
        raise OSError(
            f"{filesystem.redact(self.url)} {shard_name}: objects named by their own content hold other bytes; "
            f"look with `python -m jobs.audit --deep`, and remove those of this shard ending in {attempt}.parquet"
        )

    def _put_one(self, part: Part, where: str, surplus: set[str]) -> bool:
        """True: the object is there with the part's bytes; False: with others."""
        url = self._at(where)
        while not filesystem.put_if_absent(url, part.path):
            try:
                return filesystem.info(url).size == part.size and filesystem.hash_stream(url) == part.sha256
            except FileNotFoundError:  # its maker lost to a record made meanwhile, and so shall we
                continue
        surplus.add(where)
        return True

    def _put_back(self, part: Part, where: str) -> None:
        """A part that was there before the record, and adopted, may have been cleaned away as old and unnamed."""
        if not filesystem.exists(self._at(where)):
            self._put_one(part, where, set())

    def commits_of(self, shard_name: str) -> dict[str, set[str]]:
        """``"<shard>.<id>"`` -> the objects it names; ValueError if one of these records can't be read."""
        found = {}
        for name in self._commits_of(shard_name):
            with contextlib.suppress(FileNotFoundError):  # withdrawn meanwhile
                found[name] = _objects(self.read_commit(name))
        return found

    def objects_of(self, shard_name: str) -> set[str]:
        """All that a shard's commits name; ValueError if one can't be read."""
        return set[str]().union(*self.commits_of(shard_name).values())

    def overtaken(self, shard_name: str) -> bool:
        """A shard's record of failure is of an input that has been committed since."""
        try:
            failed = _decode(filesystem.read_bytes(self._at(FAILED, f"{shard_name}.json")))
            commits = [self.read_commit(name) for name in self._commits_of(shard_name)]
        except (FileNotFoundError, ValueError):
            return False
        return any(record["input"] == failed.get("input") for record in commits)

    def _present(self, shard_name: str, name: str, job: Mapping[str, Any]) -> list[str]:
        """The shard's commits. A local folder has to be read whole for them, half a second's CPU among a million.

        Two ids of one shard take two plans, and a driver of a second one leaves its mark before it commits: as long as
        there is none, the shard can have no commit but ``name``. A mark that comes after this look is of a driver whose
        commits do too; so would they after a listing.
        """
        if not filesystem.is_local(self.url) or not job.get("plan") or filesystem.exists(self._at(REPLANNED)):
            return self._commits_of(shard_name)
        return [name] if filesystem.exists(self._at(COMMITS, f"{name}.json")) else []

    def _commits_of(self, shard_name: str) -> list[str]:
        names = self._names(COMMITS, prefix=f"{shard_name}.")
        return [name for name in names if name.rpartition(".")[0] == shard_name]

    def _names(self, folder: str, prefix: str = "") -> list[str]:
        found = filesystem.list_files(self._at(folder), prefix=prefix)
        return [name.removesuffix(".json") for name in found if name.endswith(".json")]

    def _at(self, *names: str) -> str:
        return filesystem.join(self.url, *names)


def _objects(record: Mapping[str, Any]) -> set[str]:
    return {part["object"] for part in record["parts"]}


def _input(shard: Shard) -> dict[str, Any]:
    return {"url": filesystem.redact(shard.url), "size": shard.size, "version": shard.version}


def _encode(record: Mapping[str, Any]) -> bytes:
    """Sorted, so that the same record is the same bytes; no URL in it keeps credentials."""
    text = json.dumps(_redacted(record), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return filesystem.redact_text(value)
    if isinstance(value, Mapping):
        return {str(name): _redacted(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_redacted(inner) for inner in value]
    return value


def _decode(content: bytes) -> dict[str, Any]:
    record = json.loads(content)
    if not isinstance(record, dict):
        raise ValueError("the record is not a JSON object")
    return record
