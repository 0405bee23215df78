"""The bytes of tensors that a computation holds, counted without any data in them.

    with without_data():
        model = ...                       # its weights have shapes, and take no memory
        with LiveBytes() as held:
            loss = model(ids)
            held.now, held.most           # what autograd keeps for the backward pass; the most at any time

PyTorch runs each operation on shapes only (`FakeTensorMode`), and `LiveBytes` sees each new storage when it appears
and when it is freed. So the count holds for any model, with adapters, gradient checkpointing and autocast, and follows
what the installed versions do: no formula per architecture. It does not see what a kernel allocates inside.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from rlkd.memory.heap import HeapReplay


def without_data() -> FakeTensorMode:
    """A context in which tensors have shapes and no data."""
    return FakeTensorMode(allow_non_fake_inputs=True)


class LiveBytes(TorchDispatchMode):
    """Counts the storages made inside this context: `now` those that still exist, `most` at any time, in bytes.

    `heap`: counts what the C library takes for them, with the holes between them, where that is more
    (`rlkd.memory.heap`).
    """

    def __init__(self, heap: HeapReplay | None = None) -> None:
        super().__init__()
        self.heap = heap
        self.most = self._now = 0
        self._known: dict[int, int | None] = {}

    @property
    def now(self) -> int:
        """The bytes at this moment."""
        # A heap that had free blocks before gives those first.
        return self._now if self.heap is None else max(self._now, self.heap.taken)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor):
                self._add(value.untyped_storage())
        return result

    def know(self, tensor: torch.Tensor) -> None:
        """Leave a tensor from before out of the count, also where an operation returns it."""
        storage = tensor.untyped_storage()
        self._known[storage._cdata] = None
        _when_freed(storage, self._known.pop, storage._cdata, None)

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known or not size:
            return
        self._known[key] = None if self.heap is None else self.heap.request(size)
        self._now += size
        self.most = max(self.most, self.now)
        _when_freed(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        address = self._known.pop(key)
        self._now -= size
        if self.heap is not None and address is not None:
            self.heap.free(address)


def _when_freed(storage: torch.UntypedStorage, call: Any, *arguments: Any) -> None:
    weakref.finalize(storage, call, *arguments).atexit = False  # the interpreter's end frees nothing of interest
