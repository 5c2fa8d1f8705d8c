"""From the URLs of a configuration to the shards of a job: what exists, in which version, under which name."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

from braceexpand import braceexpand
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from asymvae.storage.filesystem import FileInfo, info, iter_files, join, redact, resolve

if TYPE_CHECKING:
    from asymvae.storage.shard_table import ShardTable

# "latents": the parts that a commit of jobs.precompute_latents names, see latent_shards.py
Format = Literal["webdataset", "parquet", "latents"]

_EXTENSIONS: Final[dict[str, Format]] = {
    ".tar": "webdataset",
    ".tar.gz": "webdataset",
    ".tgz": "webdataset",
    ".parquet": "parquet",
    ".parq": "parquet",
    ".pq": "parquet",
}
_LONGEST_FIRST: Final = sorted(_EXTENSIONS, key=len, reverse=True)
_WILDCARD: Final = re.compile(r"[*?[]")
_UNSAFE: Final = re.compile(rb"^[._]|[^A-Za-z0-9._-]")
_NAME_LENGTH: Final = 150
_HASH_DIGITS: Final = 32
# Up to this many files of one folder are asked for one by one, more by a listing of the folder.
_ASK_EACH: Final = 16
_REQUESTS_AT_ONCE: Final = 16
# Up to this many files in folders of few are asked for one by one; for more, their common folder is listed, as long as
# that is cheaper: a page of 1,000 names takes a request, and requests for one go 16 at once.
_ASK_EACH_OF_ALL: Final = 1000
_LISTED_FOR_ONE: Final = 50


class InputError(ValueError):
    """The input URLs can't be what was meant. The message says which one, and what to do."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One input file. ``size`` in bytes; ``version`` changes with the content (etag, else size and mtime)."""

    url: str
    name: str
    format: Format
    size: int
    version: str
    beside: str | None = None  # URL of the shard that is joined to it by key


def input_root(urls: Sequence[str]) -> str:
    """The folder that every URL lies below: up to the first wildcard or brace, without credentials or query.

    Names of shards are relative to it, so a job keeps the root of its first run: more inputs rename nothing.
    """
    folders = [re.split(r"[*?[{]", _location(_normal(_absolute(url))), maxsplit=1)[0].split("/")[:-1] for url in urls]
    if not folders:
        raise InputError("no input is given: set input.urls")
    common = _common_prefix(folders)
    if not common:
        shown = ", ".join(sorted({redact(url) for url in urls})[:4])
        raise InputError(f"the inputs have no folder in common ({shown}): run one job for each store")
    if len(common) == 2 and common[0].endswith(":"):  # of s3://bucket only the scheme
        return f"{common[0]}//"
    return "/".join(common) or "/"


def list_shards(
    urls: str | Sequence[str],
    *,
    root: str | None,
    format: Literal["auto", "webdataset", "parquet"],
) -> ShardTable:
    """Every file that the URLs name, once, sorted by name.

    ``urls``: one pattern or several, with ``{000..999}``, ``{a,b}``, ``*``, ``?``, ``[...]`` and ``**``.
    ``root``: the folder that names are relative to; None: :func:`input_root` of these URLs.
    ``format``: "auto" goes by the extension.

    Raises InputError where a pattern matches nothing, a file is missing or of no known format, lies outside the
    root, or two files would have one name.
    """
    from asymvae.storage.shard_table import ShardTable

    patterns = [_absolute(url) for url in ([urls] if isinstance(urls, str) else urls)]
    base = input_root(patterns) if root is None else _location(_normal(_absolute(root)))
    literals: list[str] = []
    globs: list[str] = []
    for pattern in patterns:
        for url in _expand(pattern):
            (globs if _has_wildcard(url) else literals).append(url)
    wanted = {url: format_of(url, format) for url in literals}  # said before any store is asked
    found = itertools.chain(itertools.chain.from_iterable(map(_glob, globs)), _stat(list(wanted)))
    shards, two = (
        ShardTable(
            Shard(url, shard_name(url, base), wanted.get(url) or format_of(url, format), file.size, file.etag)
            for url, file in found
        )
        .by_name()
        .without_repeats()
    )
    if two is not None:
        one, other = two
        raise InputError(
            f"{redact(one.url)} and {redact(other.url)} would both be called {one.name!r}: rename one of them"
        )
    return shards


def _common_prefix(sequences: Sequence[Sequence[str]]) -> Sequence[str]:
    alike = itertools.takewhile(lambda items: len(set(items)) == 1, zip(*sequences, strict=False))
    return sequences[0][: sum(1 for _ in alike)]


def _start_of_all(strings: Collection[str]) -> str:
    first, last = min(strings), max(strings)
    return first[: len(_common_prefix([first, last]))]


def _absolute(url: str) -> str:
    """Local paths made absolute and without a scheme, so that one file has one URL."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*(::|://)", url) and not url.lower().startswith(("file://", "local://")):
        return url
    fs, path = resolve(url)
    if not isinstance(fs, LocalFileSystem):
        return url
    return path.rstrip("/") + "/" if url.endswith("/") else path


def _location(url: str) -> str:
    """What identifies a URL's place: of a web address, neither query nor password."""
    if not _is_web(url):
        return url
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _is_web(url: str) -> bool:
    return url[:8].lower().startswith(("http://", "https://"))


def _expand(pattern: str) -> Iterable[str]:
    try:
        urls = list(braceexpand(pattern, escape=False))
    except ValueError as error:
        raise InputError(f"{redact(pattern)}: the braces are not balanced") from error
    return [_normal(url) for url in urls]


def _normal(url: str) -> str:
    """A local path without ``.`` and ``..``; a final slash, which says it is a folder, stays."""
    if not url.startswith("/"):
        return url
    return os.path.normpath(url) + ("/" if url.endswith("/") else "")


def _has_wildcard(url: str) -> bool:
    if not _is_web(url):
        # a local file may be called so: then it is meant
        return bool(_WILDCARD.search(url)) and not os.path.isfile(url)
    if "*" in urlsplit(url).path:
        raise InputError(f"{redact(url)}: web servers list no files; use {{000..999}} or a list of URLs")
    return False


def _glob(pattern: str) -> Iterator[tuple[str, FileInfo]]:
    before = pattern[: _first_wildcard(pattern)]
    folder, _, prefix = before.rpartition("/")
    folder = folder or "/"
    if folder.endswith(":/"):
        raise InputError(f"{redact(pattern)}: a bucket's name takes no wildcard; list the buckets")
    below = pattern[len(before) - len(prefix) :]
    try:
        matches = re.compile(glob_translate(below)).match
    except ValueError as error:
        raise InputError(f"{redact(pattern)}: '**' stands for whole folders only, as in a/**/*.tar") from error
    nothing, start = True, join(folder, "")
    for name, file in iter_files(folder, recursive="/" in below or "**" in below, prefix=prefix):
        if matches(name):
            nothing = False
            yield start + name, file
    if nothing:
        raise InputError(f"{redact(pattern)} matches no file: look at the path and its wildcards")


def _first_wildcard(pattern: str) -> int:
    match = _WILDCARD.search(pattern)
    return match.start() if match else len(pattern)


def _stat(urls: Sequence[str]) -> Iterator[tuple[str, FileInfo]]:
    """Size and version of each; a folder that many are in is listed once instead of a request for each, and so is what
    they have in common, where they are in very many folders."""
    folders: dict[str, list[str]] = defaultdict(list)
    for url in urls:
        folders[url.rpartition("/")[0]].append(url)
    single: list[str] = []
    for folder, members in folders.items():
        if len(members) <= _ASK_EACH or _is_web(folder):
            single.extend(members)
            continue
        missing = set(members)
        yield from _among(missing, folder, math.inf)
        if missing:
            raise _missing(next(url for url in members if url in missing))
    if len(single) > _ASK_EACH_OF_ALL:
        stores: dict[str, set[str]] = defaultdict(set)
        for url in single:
            if not _is_web(url):
                stores["/".join(url.split("/")[:3]) if "://" in url else ""].add(url)
        for several in stores.values():
            if len(several) > _ASK_EACH_OF_ALL:
                common = _start_of_all(several).rpartition("/")[0]
                yield from _among(several, common, _LISTED_FOR_ONE * len(several))
        single = [url for url in single if _is_web(url)] + sorted(url for of in stores.values() for url in of)
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        yield from zip(single, pool.map(_info, single), strict=True)


def _among(wanted: set[str], folder: str, most: float) -> Iterator[tuple[str, FileInfo]]:
    """What of ``wanted`` is found by listing ``folder``, of which at most so many files are looked at; it is removed
    from the set."""
    prefix = _start_of_all(wanted)[len(folder) + 1 :]
    recursive = any("/" in url[len(folder) + 1 :] for url in wanted)
    for seen, (name, file) in enumerate(iter_files(folder or "/", recursive=recursive, prefix=prefix)):
        if not wanted or seen >= most:
            return
        if (url := f"{folder}/{name}") in wanted:
            wanted.remove(url)
            yield url, file


def _info(url: str) -> FileInfo:
    try:
        return info(url)
    except FileNotFoundError:
        raise _missing(url) from None


def _missing(url: str) -> InputError:
    return InputError(f"{redact(url)} does not exist: correct input.urls, or use a wildcard for what is there")


def _extension(location: str) -> str:
    """The known extension of a file, in its own case; "" where there is none, or nothing but it."""
    base = location[location.rfind("/") + 1 :]
    lower = base.lower()
    for extension in _LONGEST_FIRST:
        if lower.endswith(extension) and len(base) > len(extension):
            return base[-len(extension) :]
    return ""


def format_of(url: str, wanted: Literal["auto", "webdataset", "parquet"]) -> Format:
    """Of one file; InputError where "auto" can't tell."""
    if url.endswith("/"):
        raise InputError(f"{redact(url)} is a folder: name its files, as in {redact(url)}*.tar")
    if wanted != "auto":
        return wanted
    extension = _extension(_location(url)).lower()
    if not extension:
        known = ", ".join(_EXTENSIONS)
        raise InputError(f"{redact(url)} has none of the extensions {known}: set input.format, or narrow the pattern")
    return _EXTENSIONS[extension]


def shard_name(url: str, root: str) -> str:
    """The path below the root as a file name, without its extension; two paths never share one.

    Bytes outside [A-Za-z0-9._-] become ``~XX``, a leading ``.`` or ``_`` too (readers of data sets skip such
    files). What is then too long is cut and gets a hash after ``~h``, which no other name contains.
    """
    location, folder = _location(url), root.rstrip("/") + "/"
    if root.endswith("://"):
        folder = root
    if not location.startswith(folder):
        raise InputError(
            f"{redact(url)} is not below input.root, {redact(root)}, by which this job names its shards: "
            "write it to another output"
        )
    path = location[len(folder) : len(location) - len(_extension(location))]
    raw = path.encode("utf-8", "surrogatepass")  # names that are no UTF-8 come with surrogates
    safe = _UNSAFE.sub(lambda byte: b"~%02X" % byte[0][0], raw).decode("ascii")
    if len(safe) <= _NAME_LENGTH:
        return safe
    digest = hashlib.blake2b(raw, digest_size=_HASH_DIGITS // 2).hexdigest()
    return f"{safe[: _NAME_LENGTH - _HASH_DIGITS - 2]}~h{digest}"
