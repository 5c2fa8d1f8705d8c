"""How many bytes of tensors are alive while code runs: what a memory limit is about; the size of a process isn't."""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """``peak``: the most bytes, after any operation, of storages that operations inside the block made.

    Storages are counted whole and once, whatever views there are. What one operation uses and frees within itself (a
    convolution's workspace) isn't seen; what was there before (weights, inputs) isn't counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}  # a weak reference keeps its key from being reused
        self._bytes = 0

    def __enter__(self) -> Self:
        super().__enter__()
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_key(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and _key(leaf) not in given and _key(leaf) not in self._made:
                storage = leaf.untyped_storage()
                self._made[_key(leaf)] = (StorageWeakRef(storage), storage.nbytes())
                self._bytes += storage.nbytes()
        if self._bytes > self.peak:  # else it is none with the dead counted in
            self._made = {key: entry for key, entry in self._made.items() if not entry[0].expired()}
            self._bytes = sum(size for _, size in self._made.values())
            self.peak = max(self.peak, self._bytes)
        return result


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
