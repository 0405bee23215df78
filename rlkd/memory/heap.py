"""What the C library takes from the system for a sequence of blocks, measured by asking it for them.

On a CPU, PyTorch gets each tensor from `posix_memalign`. glibc looks for more than the block, to align it, and gives
the rest back, so that the hole of a freed block is too small for the next block of the same size: the heap grows by
more than the tensors that exist at a time. `HeapReplay` requests and frees the same blocks and never touches them, so
that they take addresses and no memory.
"""

from __future__ import annotations

import ctypes
from typing import Any

# PyTorch's alignment of tensors on a CPU.
_ALIGNMENT = 64
# glibc: freeing a block of up to 32 MiB raises the size from which blocks get pages of their own to its size.
_LARGEST_IN_HEAP = 32 * 2**20 - 2**16


class _MallInfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


class HeapReplay:
    """Blocks as PyTorch requests them; `taken` is what the process has got from the system for them, in bytes.

    Raises OSError outside glibc 2.33 or newer.
    """

    def __init__(self) -> None:
        try:
            self._c: Any = ctypes.CDLL(None)
            self._info = self._c.mallinfo2
        except (AttributeError, TypeError) as error:
            raise OSError("the C library is not glibc 2.33 or newer") from error
        self._info.restype = _MallInfo
        self._c.free.argtypes = [ctypes.c_void_p]
        self._c.posix_memalign.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_size_t]
        # In a run, freed blocks have long raised the size from which glibc gives each block pages of its own.
        self.free(self.request(_LARGEST_IN_HEAP))
        self._before = self._total()

    @property
    def taken(self) -> int:
        """Bytes that the process has taken from the system since this object was made."""
        return self._total() - self._before

    def request(self, size: int) -> int:
        """The address of a new block. Raises OSError where the system gives none."""
        address = ctypes.c_void_p()
        if self._c.posix_memalign(ctypes.byref(address), _ALIGNMENT, size) or not address.value:
            raise OSError(f"no block of {size} bytes")
        return address.value

    def free(self, address: int) -> None:
        """Give a block back."""
        self._c.free(address)

    def _total(self) -> int:
        found = self._info()
        return int(found.arena + found.hblkhd)
