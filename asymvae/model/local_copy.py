"""Files of checkpoints in object storage, fetched once a machine and not once a worker.

They lie below ``$ASYMVAE_CACHE`` (``~/.cache/asymvae``), in folders named by what the store says of the file: one that
is replaced there is fetched anew. What isn't needed any more can be removed there at any time. (Checkpoints of the hub
have the hub's own cache, ``$HF_HOME``.)
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any, Final

_CACHE: Final = "ASYMVAE_CACHE"


def local_copy(filesystem: Any, path: str) -> str:
    """The path of a copy of the remote file ``path`` here. Of many processes that ask at once one fetches it.

    Raises what the file system raises, and OSError where the cache's folder can't be written.
    """
    from filelock import FileLock

    said = filesystem.info(path)
    mark = hashlib.blake2b(f"{type(filesystem).__name__} {path} {sorted(said.items())}".encode(), digest_size=16)
    folder = cache_folder() / mark.hexdigest()
    target = folder / os.path.basename(path)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not target.exists():
            handle, unfinished = tempfile.mkstemp(dir=folder)
            os.close(handle)
            try:
                filesystem.get_file(path, unfinished)
                os.replace(unfinished, target)
            except BaseException:
                os.unlink(unfinished)
                raise
    return str(target)


def cache_folder() -> Path:
    """Where copies lie on this machine."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(_CACHE) or Path(cache) / "asymvae")
