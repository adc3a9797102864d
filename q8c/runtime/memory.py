"""Memory that compiled code works in: frames and arenas, and the guard against asking for more than there is."""
from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from q8c.errors import InputError
from q8c.runtime.cgroup import available_memory

_UNCHECKED = 64 << 20  # requests below this are not worth the 0.3 ms of asking the system what is left
_KEPT = 256 << 20
"""An arena above this size is given back after its run: faulting it in again costs little beside so large a run."""
HUGE_PAGE = 2 << 20
"""From this size on they fit, and first use of the memory was measured 5 times as fast."""
_DENSE = 0x101  # numpy's flags C_CONTIGUOUS | ALIGNED


def anonymous(size: int, huge: bool = True) -> mmap.mmap:
    """Zeroed private memory of at least `size` bytes, in whole pages, huge ones where they fit if they may be. Raises
    OSError if there is no room for it."""
    rounded = max(mmap.PAGESIZE, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
    memory = mmap.mmap(-1, rounded, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE)
    if huge and rounded >= HUGE_PAGE:
        ask_huge_pages(memory)
    return memory


def ask_huge_pages(memory: mmap.mmap) -> None:
    """Have the system use huge pages for a map where it can."""
    with suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)


def address_of_map(memory: mmap.mmap) -> int:
    """Where a writable map begins."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def address_of(array: npt.NDArray[np.generic]) -> int:
    """Where a dense array's data begins. Twice as fast as `array.ctypes.data` for the arrays that come often."""
    buffer: Any = array
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    except (TypeError, ValueError, BufferError):  # read-only or empty
        address: int = array.__array_interface__["data"][0]
        return address


def is_dense(array: npt.NDArray[np.generic]) -> bool:
    """Whether compiled code can read the array where it is."""
    return array.flags.num & _DENSE == _DENSE


def require_memory(nbytes: int, what: str) -> None:
    """Raise InputError if `nbytes` more would exceed what the system or this process's cgroup has left."""
    if nbytes < _UNCHECKED:
        return
    left = available_memory()
    if left is not None and nbytes > left:
        raise InputError(f"{what} needs {nbytes / 2**20:,.0f} MiB and {left / 2**20:,.0f} MiB are left; "
                         "use smaller inputs or raise the memory limit")


class Frame:
    """One frame and its arena: what a single run works in.

    `memory` is the frame itself, `address` where it lies; the arena grows as runs need it.
    """

    __slots__ = ("_arena", "address", "arena_address", "memory", "words")

    def __init__(self, words: int) -> None:
        self.memory = anonymous(8 * words)
        self.address = address_of_map(self.memory)
        self.words = memoryview(self.memory).cast("q")
        self._arena: mmap.mmap | None = None
        self.arena_address = 0

    def reserve(self, size: int) -> None:
        """Make the arena at least `size` bytes. Raises InputError where that much memory is not to be had."""
        had = 0 if self._arena is None else len(self._arena)
        if had >= size and had:
            return
        self._arena = None
        require_memory(size, "this run's working memory")
        try:
            # A quarter more than before, so that inputs that grow step by step do not each mean fresh pages.
            self._arena = anonymous(max(size, had + had // 4))
        except (OSError, OverflowError) as error:
            raise InputError(f"no memory for a run that needs {size / 2**20:,.0f} MiB ({error}); "
                             "use smaller inputs") from None
        self.arena_address = address_of_map(self._arena)

    def trim(self) -> None:
        """Give a very large arena back to the system."""
        if self._arena is not None and len(self._arena) > _KEPT:
            self._arena = None
