"""The spool: a shard's parts while they are written, on the local disk, in a folder of their own."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import psutil
import pyarrow as pa

from asymvae.pipeline.rows import Rows
from asymvae.storage.parts import Part, PartWriter
from asymvae.storage.schemas import ERRORS

# With the host's name: process ids say nothing across containers that share a temporary folder.
_PREFIX = f"asymvae-spool-{platform.node()}-"
# A reader of one column still gets long runs, and a writer holds little: part of the output format.
_ROW_GROUP_ROWS = 1000
_LEAST_FREE = 64 * 2**20
_NOTE = "reserved"  # of the bytes that a shard was promised, in its folder
_LOOK_AGAIN_S = 1.0


class Spool:
    """Parts of one shard, one a folder below OUT that rows were written for.

    Args:
        schema: of a folder's parts; not asked for ``errors``.
        row_group_bytes: see :class:`asymvae.storage.parts.PartWriter`.
    """

    def __init__(self, folder: Path, schema: Callable[[str], pa.Schema], row_group_bytes: int) -> None:
        self._folder, self._schema, self._row_group_bytes = folder, schema, row_group_bytes
        self._writers: dict[str, PartWriter] = {}

    def write(self, rows: Rows) -> None:
        for kind, row in rows.items():
            if kind not in self._writers:
                self._writers[kind] = self._open(kind)
            self._writers[kind].write(row)

    def _open(self, kind: str) -> PartWriter:
        return PartWriter(
            self._folder / f"{kind.replace('/', '-')}.parquet",
            ERRORS if kind == "errors" else self._schema(kind),
            kind=kind,
            row_group_rows=_ROW_GROUP_ROWS,
            row_group_bytes=self._row_group_bytes,
        )

    def close(self) -> list[Part]:
        """Finish and check the files: what holds results first, errors last."""
        kinds = sorted(self._writers, key=lambda kind: (kind == "errors", kind == "metrics", kind))
        return [part for kind in kinds if (part := self._writers[kind].close()) is not None]

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            for writer in self._writers.values():
                writer.discard()


@contextmanager
def spool_folder(root: str | None, wanted: int, waiting: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """A folder for one shard's spool, gone afterwards; the ``wanted`` bytes that the shard may become are reserved.

    Where they are free only once this machine's other shards in flight have ended, these are waited for.

    Args:
        waiting: called now and then meanwhile; what it raises ends the wait.

    Raises:
        OSError: there is not enough space below ``root``, whatever the others give back.
    """
    base = Path(root or tempfile.gettempdir())
    base.mkdir(parents=True, exist_ok=True)
    while (folder := _reserved(base, wanted)) is None:
        waiting()
        time.sleep(_LOOK_AGAIN_S)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _reserved(base: Path, wanted: int) -> Path | None:
    """A new folder with a note of ``wanted`` in it; None while others hold what it needs."""
    with _locked(base):
        held = [_held(folder) for folder in _of_living_processes(base)]
        free = shutil.disk_usage(base).free
        least = wanted + _LEAST_FREE
        if free - sum(promised for _, promised in held) < least:
            most = free + sum(used for used, _ in held)
            if most >= least:
                return None
            raise OSError(
                f"the spool folder {base} has {most >> 20} MiB free and this shard may need {least >> 20}: "
                "free some, or set workers.spool to a larger disk"
            )
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=base))
        (folder / _NOTE).write_text(str(wanted))
        return folder


def _held(folder: Path) -> tuple[int, int]:
    """Bytes of a shard in flight: (those it has written, those promised to it beyond them)."""
    used = wanted = 0
    try:
        for path in folder.iterdir():
            used += path.stat().st_blocks * 512
            if path.name == _NOTE:
                wanted = int(path.read_text() or 0)
    except (FileNotFoundError, NotADirectoryError):  # it has just ended
        return 0, 0
    return used, max(0, wanted - used)


@contextmanager
def _locked(base: Path) -> Iterator[None]:
    """One process of this machine at a time, and one thread of it: two must not count the same space as free."""
    handle = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # a network's file system without locks: each counts what it sees
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def sweep_spools(root: str | None) -> None:
    """Remove this machine's spool folders whose processes are gone: what a SIGKILL left."""
    for folder, process in _of_this_machine(Path(root or tempfile.gettempdir())):
        if not psutil.pid_exists(process):
            shutil.rmtree(folder, ignore_errors=True)


def _of_living_processes(base: Path) -> list[Path]:
    return [folder for folder, process in _of_this_machine(base) if psutil.pid_exists(process)]


def _of_this_machine(base: Path) -> Iterator[tuple[Path, int]]:
    """Spool folders and the ids of their processes."""
    # Whole names: of hosts "gpu" and "gpu-7" that share a folder, neither must take the other's for its own.
    ours = re.compile(rf"{re.escape(_PREFIX)}([0-9]+)-[^-]+")
    for folder in base.glob(f"{glob.escape(_PREFIX)}*"):
        if found := ours.fullmatch(folder.name):
            yield folder, int(found[1])
