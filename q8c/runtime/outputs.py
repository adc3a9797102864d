"""The arrays runs give their callers. The memory of large ones is used again once nobody has them."""
from __future__ import annotations

import math
import mmap
import weakref
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from q8c.errors import InputError
from q8c.runtime.arrays import Array
from q8c.runtime.memory import address_of, address_of_map, anonymous, require_memory
from q8c.runtime.model import Model
from q8c.runtime.planner import Plan, Shape

_LINE = 64
_ALIGNED = 256 << 10
"""An array below this size stays in the second-level cache."""
_LEASED = 32 << 20
"""From this size on the C library would give memory back to the system, and each run would fault it in again: 6 percent
of a run that makes 100 MB of logits."""
_KEPT = 256 << 20
"""As much memory is kept that nobody has."""


class Outputs:
    """Makes the arrays for the outputs of a model's runs. Safe in threads."""

    def __init__(self, model: Model) -> None:
        self._dtypes = [np.dtype(t.dtype) for t in model.outputs]
        self._pool = Pool()

    def allocate(self, plan: Plan, only: Sequence[int] | None = None) -> list[Array]:
        """Arrays of anything for a run's outputs, or those of the numbers `only`. Raises InputError where there is no
        memory for them."""
        shapes, dtypes, nbytes = plan.outputs, self._dtypes, plan.output_bytes
        if only is not None:
            shapes, dtypes = tuple([shapes[n] for n in only]), [dtypes[n] for n in only]
            nbytes = sum(math.prod(shape) * dtype.itemsize for shape, dtype in zip(shapes, dtypes, strict=True))
        try:
            require_memory(nbytes - self._pool.nbytes, "the outputs of this run")
            return [self._array(shape, dtype) for shape, dtype in zip(shapes, dtypes)]  # noqa: B905
        except (MemoryError, OSError, ValueError, OverflowError) as error:
            raise InputError(f"no memory for outputs of {nbytes} bytes ({error}); use smaller inputs") from None

    def _array(self, shape: Shape, dtype: np.dtype[Any]) -> Array:
        """Large ones begin a cache line, so that code can write whole lines past the caches."""
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes < _ALIGNED:
            return np.empty(shape, dtype)
        if nbytes >= _LEASED:
            array: Array = np.asarray(Lease(self._pool, self._pool.take(nbytes), shape, dtype))
        else:
            memory = np.empty(nbytes + _LINE, np.uint8)
            array = np.ndarray(shape, dtype, memory, -address_of(memory) % _LINE)
        return array


class Lease:
    """Memory of a pool for one array, whose base it is: the array and all views of it keep it alive, and when the last
    of them is gone the memory goes back to the pool, or to the system if the pool is gone."""

    def __init__(self, pool: Pool, memory: mmap.mmap, shape: Shape, dtype: np.dtype[Any]) -> None:
        self._pool = weakref.ref(pool)
        self._memory = memory
        self.__array_interface__ = {"version": 3, "shape": shape, "typestr": dtype.str,
                                    "data": (address_of_map(memory), False)}

    def __del__(self) -> None:
        pool = self._pool()
        if pool is not None:
            pool.give(self._memory)


class Pool:
    """Memory that nobody has, what is unused longest first. Safe in threads.

    An array may go at any time, as the garbage collector finds it, in the middle of a method here too: so there is no
    lock, and a list that is changed by single operations.
    """

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        return sum(map(len, self._free.copy()))

    def take(self, nbytes: int) -> mmap.mmap:
        """Memory of at least so many bytes: what is kept, if it is not twice as large. Raises as `anonymous` does."""
        for memory in self._free.copy():
            if nbytes <= len(memory) <= 2 * nbytes:
                with suppress(ValueError):  # another thread has just taken it
                    self._free.remove(memory)
                    return memory
        return anonymous(nbytes)

    def give(self, memory: mmap.mmap) -> None:
        """Keep memory. The system may have its pages if it is short of them."""
        with suppress(OSError):  # a kernel that does not know of it
            memory.madvise(mmap.MADV_FREE)
        self._free.append(memory)
        while self.nbytes > _KEPT:
            with suppress(IndexError):
                del self._free[0]
