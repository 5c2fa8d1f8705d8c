"""What a case costs by itself: seconds of CPU and bytes of memory, to read and to prepare, without the network."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from asymvae.pipeline.kinds.inpaint import InpaintKind
from asymvae.stages.prepare import Prepare
from asymvae.storage.samples import FieldNames, read_shard
from asymvae.storage.shards import Format, Shard
from tests.corpus.case import Case, Job, SampleCase
from tests.corpus.run import Corpus, settings_of


@dataclass(frozen=True, slots=True)
class Cost:
    """``seconds`` of CPU, all threads; ``memory``: bytes of the process at its peak above what it had before."""

    case: Case
    seconds: float
    memory: int


def peak_begins() -> int:
    """Bytes that the process holds; from here on its peak is counted anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """The most bytes that the process held since :func:`peak_begins`."""
    return _status("VmHWM")


def _status(name: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def costs(corpus: Corpus, cases: Iterable[Case]) -> Iterator[Cost]:
    """Of each case, one after the other, in this process."""
    prepares: dict[Job, Prepare] = {}
    for case in cases:
        if case.job not in prepares:
            settings = settings_of(case.job, corpus.urls(case.job), Path("/nowhere"), Path("/nowhere"), None)
            prepares[case.job] = Prepare(settings, InpaintKind(settings).inpainter, factor=8)
        prepare = prepares[case.job]
        names = prepare.job.input
        fields = FieldNames(names.image, names.mask, names.prompt, names.given, names.overrides, names.key)
        before, started = peak_begins(), time.process_time()
        if isinstance(case, SampleCase):
            image = next((data for name, data in case.fields.items() if name in names.image), None)
            mask = next((data for name, data in case.fields.items() if name in names.mask), None)
            given = {"image": image, "mask": mask}
            prepare(0, "key", {role: data for role, data in given.items() if data is not None})
        else:
            (path,) = corpus.folder.glob(f"{case.job}/{corpus.file_of[case]}")
            file_format: Format = "parquet" if case.ending in ("parquet", "pq") else "webdataset"
            for row in read_shard(Shard(str(path), "x", file_format, 0, ""), fields):
                del row
        seconds = time.process_time() - started
        yield Cost(case, seconds, max(0, peak() - before))
