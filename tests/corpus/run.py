"""The corpus as shards, and what real jobs make of it, in one process."""

from __future__ import annotations

import re
import tarfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow.parquet as pq

from asymvae.config import InpaintJob
from asymvae.pipeline.executor import LocalExecutor
from asymvae.pipeline.job import JobResult, run_job
from asymvae.storage.shards import shard_name
from tests.corpus import colours, image_files, keys, masks, orientations, parquets, prompts, sizes, tars
from tests.corpus.case import MAX_PIXELS, Came, Case, Job, SampleCase, ShardCase
from tests.corpus.law import commits_of
from tests.storage.tars import make_tar
from tests.tiny import job

JOBS: Final[tuple[Job, ...]] = ("plain", "inverted", "keyed", "prompted")
_NOUNS: Final = (image_files, colours, orientations, sizes, masks, keys, tars, parquets, prompts)


def all_cases() -> list[Case]:
    """Every case, in an order that never changes. ValueError where two have one name."""
    found = [case for noun in _NOUNS for case in noun.cases()]
    names = {(case.group, case.name) for case in found}
    if len(names) < len(found):
        raise ValueError("two cases of a group have one name")
    return found


@dataclass(frozen=True)
class Corpus:
    """Where the cases lie. ``shard_of`` has the name of each case's shard, ``file_of`` the file of a shard's case,
    ``key_of`` of a sample's case its key; ``samples`` how many were put into each tar of samples, by job."""

    folder: Path
    cases: Sequence[Case]
    shard_of: Mapping[Case, str]
    file_of: Mapping[Case, str]
    key_of: Mapping[Case, str]
    samples: Mapping[Job, Mapping[str, int]]

    def urls(self, of: Job) -> str:
        return str(self.folder / of / "*.*")


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:60]


def build(folder: Path, cases: Iterable[Case]) -> Corpus:
    """Write the shards: a tar a group and job of samples, and a file a case of shards."""
    cases = list(cases)
    shared: dict[tuple[Job, str], list[tuple[str, SampleCase]]] = {}
    shard_of: dict[Case, str] = {}
    file_of: dict[Case, str] = {}
    key_of: dict[Case, str] = {}
    for number, case in enumerate(cases):
        root = folder / case.job
        root.mkdir(parents=True, exist_ok=True)
        if isinstance(case, ShardCase):
            path = root / f"{number:04d}-{_slug(case.name)}.{case.ending}"
            path.write_bytes(case.data)
            file_of[case] = path.name
            shard_of[case] = shard_name(str(path), str(root))
        else:
            key = case.key or f"{number:04d}-{_slug(case.name)}"
            shared.setdefault((case.job, case.group), []).append((key, case))
            key_of[case] = key
    counted: dict[Job, dict[str, int]] = {name: {} for name in JOBS}
    for (job_name, group), samples in shared.items():
        path = folder / job_name / f"{_slug(group)}.tar"
        members = [(f"{key}.{name}", data) for key, case in samples for name, data in case.fields.items()]
        path.write_bytes(make_tar(members, tarfile.PAX_FORMAT))
        name = shard_name(str(path), str(path.parent))
        counted[job_name][name] = len(samples)
        shard_of |= {case: name for _, case in samples}
    return Corpus(folder, cases, shard_of, file_of, key_of, counted)


@dataclass
class Ran:
    """What came of it: an OUT and a result a job, and seconds."""

    corpus: Corpus
    outs: dict[Job, Path]
    results: dict[Job, JobResult]
    seconds: float = 0.0
    memory: int = 0  # bytes, the peak above what the process had before
    _rows: dict[tuple[Job, str], dict[str, list[dict[str, Any]]]] = field(default_factory=dict)

    def came(self, case: Case) -> Came:
        """The rows of one case."""
        shard = self.corpus.shard_of[case]
        rows = self._of_shard(case.job, shard)
        errors = rows.get("errors", [])
        if isinstance(case, ShardCase):
            samples = [row for row in errors if row["index"] is not None]
            return Came(rows.get("results", []), samples, [row for row in errors if row["index"] is None])
        key = self.corpus.key_of[case]
        return Came(
            [row for row in rows.get("results", []) if row["key"] == key], [row for row in errors if row["key"] == key]
        )

    def _of_shard(self, of: Job, shard: str) -> dict[str, list[dict[str, Any]]]:
        if not self._rows:
            for name, out in self.outs.items():
                for commit in commits_of(str(out)):
                    self._rows[name, commit["shard"]] = {
                        part["kind"]: pq.read_table(out / part["object"]).to_pylist() for part in commit["parts"]
                    }
        return self._rows[of, shard]

    def wrong(self) -> Iterator[tuple[Case, str]]:
        """The cases of which something else came out, and what."""
        for case in self.corpus.cases:
            if found := self.look(case):
                yield case, found

    def look(self, case: Case) -> str:
        """What is wrong with one case; empty if nothing is."""
        if (case.job, self.corpus.shard_of[case]) not in self._rows and self._rows:
            return "its shard has no commit"
        return case.expects(self.came(case))


def run(corpus: Corpus, out: Path, checkpoint: Path, diffusion: Path | None) -> Ran:
    """Run every job of the corpus, one after the other. Without ``diffusion``, those with prompts are left out."""
    started = time.monotonic()
    ran = Ran(corpus, {}, {})
    for name in JOBS:
        if not (corpus.folder / name).exists() or (name == "prompted" and diffusion is None):
            continue
        ran.outs[name] = out / name
        settings = settings_of(name, corpus.urls(name), out / name, checkpoint, diffusion)
        ran.results[name] = run_job(settings, LocalExecutor())
    ran.seconds = time.monotonic() - started
    return ran


def settings_of(name: Job, urls: str, out: Path, checkpoint: Path, diffusion: Path | None) -> InpaintJob:
    """The job of that name, on the CPU. ``prompted`` without a checkpoint for ``diffusion`` is filled as the others."""
    given: dict[str, Any] = {"max_pixels": MAX_PIXELS}
    if name == "inverted":
        given["mask_polarity"] = "black_is_hole"
    elif name == "keyed":
        given["key"] = "id"
    inpaint: dict[str, Any] = {"method": "harmonic"}
    if name == "prompted" and diffusion is not None:
        inpaint = {"method": "diffusion", "diffusion": {"path": str(diffusion), "steps": 1, "guidance_scale": 1}}
    more = {"inpaint": inpaint, "max_error_fraction": 1.0}
    return job(urls, out, checkpoint, input=given, workers={"batch_size": 8, "cpu_threads": 1}, **more)
