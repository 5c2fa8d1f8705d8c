"""Which items share a batch: a pure function of the shard's content and the settings. No clock, no queue's state."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from asymvae.pipeline.kinds.base import Work


@dataclass(slots=True)
class _Group:
    items: list[Any] = field(default_factory=list)
    costs: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)  # what had been admitted before each item, in bytes


class Batcher:
    """Collects items by shape and gives batches out.

    A batch is given out when it is full; when what waits costs more than ``waiting_bytes`` (the fullest shape
    first); and when more than ``span_bytes`` were admitted since the oldest item that still waits (its shape).
    The last rule bounds how long a finished row must be kept for an earlier one: rows are written in input order.
    What is given out before it is full is a power of two of the oldest, which needs no padding; the rest waits on.

    Args:
        batch_size: how many make a full batch of an item's shape.
    """

    def __init__(self, batch_size: Callable[[Work], int], *, waiting_bytes: int, span_bytes: int) -> None:
        self.batch_size = batch_size
        self.waiting_bytes = waiting_bytes
        self.span_bytes = span_bytes
        self._groups: OrderedDict[Hashable, _Group] = OrderedDict()
        self._waiting = 0
        self._admitted = 0

    @property
    def waiting(self) -> int:
        """Bytes of the samples that wait for company now."""
        return self._waiting

    def admit(self, items: Sequence[Any], cost: int) -> list[list[Any]]:
        """The batches that are ready once a sample of ``cost`` bytes and its items (none, if it needs no device)
        have come. The cost is counted once, on its last item."""
        start = self._admitted
        self._admitted += cost
        ready = []
        for position, item in enumerate(items):
            group = self._groups.setdefault(item.shape_key, _Group())
            share = cost if position == len(items) - 1 else 0
            group.items.append(item)
            group.costs.append(share)
            group.starts.append(start)
            self._waiting += share
            if len(group.items) == self.batch_size(item):
                ready.append(self._give(item.shape_key))
        while self._waiting > self.waiting_bytes:
            ready.append(self._give_early(max(self._groups, key=lambda key: len(self._groups[key].items))))
        while self._groups and self._admitted - self._oldest()[0] > self.span_bytes:
            ready.append(self._give_early(self._oldest()[1]))
        return ready

    def flush(self) -> list[list[Any]]:
        """What still waits when the shard has ended, oldest shape first."""
        ready = []
        while self._groups:
            ready.append(self._give(self._oldest()[1]))
        return ready

    def _oldest(self) -> tuple[int, Hashable]:
        return min(((group.starts[0], key) for key, group in self._groups.items()), key=lambda pair: pair[0])

    def _give_early(self, key: Hashable) -> list[Any]:
        whole = self._groups[key]
        count = 1 << len(whole.items).bit_length() - 1
        rest = _Group(whole.items[count:], whole.costs[count:], whole.starts[count:])
        self._groups[key] = _Group(whole.items[:count], whole.costs[:count], whole.starts[:count])
        items = self._give(key)
        if rest.items:
            self._groups[key] = rest
        return items

    def _give(self, key: Hashable) -> list[Any]:
        group = self._groups.pop(key)
        self._waiting -= sum(group.costs)
        return group.items
