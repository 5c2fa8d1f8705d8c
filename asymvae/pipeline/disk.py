"""A full disk, told as what it is: which folder, and what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager


def is_full_disk(error: BaseException) -> bool:
    """Or a quota that is used up."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def full_disk_named(where: str, remedy: str) -> Iterator[None]:
    """An OSError of a disk or quota that is full becomes one that names ``where`` and the ``remedy``."""
    try:
        yield
    except OSError as error:
        if not is_full_disk(error):
            raise
        raise OSError(error.errno, f"no space is left in {where}: {remedy}; then the same command goes on") from error
