"""What lies in an OUT of a million shards, held in little more than its names."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import groupby
from math import isnan, nan

from asymvae.storage.filesystem import FileInfo


class Inventory:
    """Sizes (in bytes) and times of change (s since 1970; None where unknown) of files, by path.

    150 bytes a file whose path has 30 letters, where a dictionary of :class:`FileInfo` takes 300.
    """

    def __init__(self, files: Iterable[tuple[str, FileInfo]]) -> None:
        self._places: dict[str, int] = {}
        self._sizes = array("q")
        self._changed = array("d")
        for place, (where, file) in enumerate(files):
            self._places[where] = place
            self._sizes.append(file.size)
            self._changed.append(nan if file.changed is None else file.changed)

    def size(self, where: str) -> int | None:
        """None: it isn't there."""
        place = self._places.get(where)
        return None if place is None else self._sizes[place]

    def strike(self, where: str) -> bool:
        """Take a file off the list; False: it isn't on it."""
        return self._places.pop(where, None) is not None

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def items(self) -> Iterator[tuple[str, int, float | None]]:
        """(path, size, time of change) of each."""
        for where, place in self._places.items():
            changed = self._changed[place]
            yield where, self._sizes[place], None if isnan(changed) else changed


class CommitNames:
    """``"<shard>.<id>"`` of many commits, those of a shard side by side."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = sorted(names)
        self._names.sort(key=_shard)

    def of(self, shard: str) -> list[str]:
        """Those of one shard."""
        start = end = bisect_left(self._names, shard, key=_shard)
        while end < len(self._names) and _shard(self._names[end]) == shard:
            end += 1
        return self._names[start:end]

    def by_shard(self) -> Iterator[tuple[str, list[str]]]:
        return ((shard, list(names)) for shard, names in groupby(self._names, _shard))

    def chunks(self, size: int) -> Iterator[list[str]]:
        return (self._names[start : start + size] for start in range(0, len(self._names), size))

    def __len__(self) -> int:
        return len(self._names)


def _shard(name: str) -> str:
    return name.rpartition(".")[0]
