"""The spool: a shard's parts while they are written, on the local disk, in a folder of their own."""

from __future__ import annotations

import glob
import os
import platform
import re
import shutil
import tempfile
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
def spool_folder(root: str | None, wanted: int) -> Iterator[Path]:
    """A folder for one shard's spool, gone afterwards.

    Raises:
        OSError: there is not enough free space below ``root`` for the ``wanted`` bytes that a shard may become.
    """
    base = Path(root or tempfile.gettempdir())
    base.mkdir(parents=True, exist_ok=True)
    wanted += _LEAST_FREE
    free = shutil.disk_usage(base).free
    if free < wanted:
        raise OSError(
            f"the spool folder {base} has {free >> 20} MiB free and this shard may need {wanted >> 20}: "
            "free some, or set workers.spool to a larger disk"
        )
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=base))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep_spools(root: str | None) -> None:
    """Remove this machine's spool folders whose processes are gone: what a SIGKILL left."""
    base = Path(root or tempfile.gettempdir())
    # Whole names: of hosts "gpu" and "gpu-7" that share a folder, neither must take the other's for its own.
    ours = re.compile(rf"{re.escape(_PREFIX)}([0-9]+)-[^-]+")
    for folder in base.glob(f"{glob.escape(_PREFIX)}*"):
        found = ours.fullmatch(folder.name)
        if found and not psutil.pid_exists(int(found[1])):
            shutil.rmtree(folder, ignore_errors=True)
