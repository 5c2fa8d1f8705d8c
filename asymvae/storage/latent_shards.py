"""From the URLs of latents to the shards of a job that decodes them, each with the shard of its originals."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final, Literal
from urllib.parse import unquote_to_bytes

from asymvae.storage.filesystem import is_local, join, redact, resolve
from asymvae.storage.ledger import COMMITS, Ledger
from asymvae.storage.shards import InputError, Shard, input_root, list_shards

_READS_AT_ONCE: Final = 16
# What shard_name() makes of [.../]bucket=HxW/<shard>[~r<attempt>]
_IN_BUCKET: Final = re.compile(r"(?:.*~2F)?bucket~3D[0-9]+x[0-9]+~2F(?P<shard>.+?)(?:~7Er[0-9a-f]{8})?")


def list_latents(
    urls: Sequence[str], *, root: str | None, format: Literal["auto", "parquet"]
) -> tuple[str, Sequence[Shard]]:
    """(the folder that names are relative to, the shards by name).

    One URL of an output of ``jobs.precompute_latents``: a shard a commit, of the same name, with all its parts; its
    ``url`` is the commit's. Else Parquet files, a shard each.

    Raises:
        InputError: as :func:`asymvae.storage.shards.list_shards`; an output that has no commit, or two of a shard.
    """
    if format == "auto" and len(urls) == 1 and (job := _job_in(urls[0])) is not None:
        out = resolve(urls[0])[1] if is_local(urls[0]) else urls[0].rstrip("/")
        if job.get("job") != "precompute_latents":
            raise InputError(f"{redact(out)} is the output of another job: name one of jobs.precompute_latents")
        return out, _commits(out)
    root = root or input_root(urls)
    return root, list_shards(urls, root=root, format="parquet")


def with_originals(latents: Sequence[Shard], originals: Sequence[Shard]) -> list[Shard]:
    """Each shard with the one of ``originals`` that its latents were made of: that of the same name.

    A file in a folder ``bucket=HxW`` belongs to the shard that it is called after. The version of both is the shard's:
    other originals are another input.

    Raises:
        InputError: there is none of that name.
    """
    by_name = {shard.name: shard for shard in originals}
    joined = []
    for shard in latents:
        found = by_name.get(_shard_of(shard.name)) or by_name.get(shard.name)
        if found is None:
            known = ", ".join(sorted(by_name)[:3])
            raise InputError(
                f"originals.urls has no shard called {_shard_of(shard.name)} for the latents {shard.name} (it has "
                f"{known} ...): names are relative to originals.root"
            )
        joined.append(replace(shard, version=f"{shard.version} {found.version}", beside=found.url))
    return joined


def _job_in(url: str) -> dict[str, Any] | None:
    try:
        return Ledger(url).read_job()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _commits(out: str) -> list[Shard]:
    ledger = Ledger(out)
    names = sorted(ledger.committed())
    if not names:
        raise InputError(f"{redact(out)} has no commit yet: run jobs.precompute_latents first")
    with ThreadPoolExecutor(_READS_AT_ONCE) as pool:
        records = list(pool.map(ledger.read_commit, names))
    shards: list[Shard] = []
    for name, record in zip(names, records, strict=True):
        parts = [part for part in record["parts"] if part["kind"].startswith("latents/")]
        version = hashlib.blake2b(
            "".join(sorted(part["sha256"] for part in parts)).encode(), digest_size=16
        ).hexdigest()
        url, size = join(out, COMMITS, f"{name}.json"), sum(part["size"] for part in parts)
        if shards and shards[-1].name == record["shard"]:
            raise InputError(f"{redact(out)} has two commits of {record['shard']}: `python -m jobs.audit` says which")
        shards.append(Shard(url, record["shard"], "latents", size, version))
    return shards


def _shard_of(name: str) -> str:
    """The name of the shard that a file of latents was made of, by its own name."""
    found = _IN_BUCKET.fullmatch(name)
    if found is None:
        return name
    # Escaped twice: as the shard's name, and that as a file's.
    return unquote_to_bytes(found["shard"].replace("%", "%25").replace("~", "%")).decode("ascii", "replace")
