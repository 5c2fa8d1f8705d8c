"""Small tars of every kind, for the tests of reading."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from asymvae.storage.samples import BadSample, FieldNames, Sample
from asymvae.storage.webdataset import read_tar

FIELDS = FieldNames(
    image=("jpg", "jpeg", "png", "webp"),
    mask=("mask.png", "mask"),
    prompt=("txt", "caption"),
    given=("given.png",),
    json=("json",),
)


def make_tar(members: Iterable[tuple[str, bytes]], tar_format: int = tarfile.USTAR_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tar_format, encoding="utf-8") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def read(folder: Path, data: bytes, fields: FieldNames = FIELDS) -> tuple[list[Sample], list[BadSample]]:
    """The good and the bad, after a check that indices count up and that a shard's own fault comes last, once."""
    path = folder / "shard.tar"
    path.write_bytes(data)
    rows = list(read_tar(str(path), fields))
    counted = [row.index for row in rows if row.index is not None]
    assert counted == list(range(len(counted)))
    assert all(row.index is not None for row in rows[:-1])
    return (
        [row for row in rows if isinstance(row, Sample)],
        [row for row in rows if isinstance(row, BadSample)],
    )
