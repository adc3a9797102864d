"""Keeps large arrays out of memory while nobody reads them, so that a model larger than memory can be compiled.

What is mapped from a file counts as memory of the process from when it is first read; `release` gives it back. What a
compilation computes itself can lie in a temporary file instead (`spilled`, `assembled`).
"""
from __future__ import annotations

import contextlib
import logging
import mmap
import os
import resource
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from q8c.ir.graph import Array

log = logging.getLogger("q8c.ir")
LARGE = 1 << 20
"""Bytes of an array worth a file: a large model has hundreds of matrices of a few megabytes."""
_AT_ONCE = 1 << 23  # bytes
_limiting = threading.Lock()
_found: list[tuple[int, int]] = []  # limits of open files, of each who is within `many_files` those it met
_ON_DISK = "/var/tmp"  # where files larger than memory may go, by the Filesystem Hierarchy Standard


def spilled(array: Array) -> Array:
    """The same elements, mapped from a temporary file that goes when they do; a small array as it is, and any where
    there is no room for files."""
    if array.nbytes < LARGE:
        return array
    flat = _in_file([array], array.nbytes, array.dtype)
    return array if flat is None else flat.reshape(array.shape)


def assembled(rows: int, part: Callable[[slice], Array]) -> Array:
    """The array whose rows `part` gives, which is asked for a few at a time and twice at most; spilled."""
    first = part(slice(0, 1))
    size = first.nbytes * rows
    if size < LARGE:
        return part(slice(0, rows))
    step = max(1, _AT_ONCE // first.nbytes)
    slices = [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
    flat = _in_file((part(s) for s in slices), size, first.dtype)
    return np.concatenate([part(s) for s in slices]) if flat is None else flat.reshape(rows, *first.shape[1:])


def _in_file(parts: Iterable[Array], size: int, dtype: np.dtype[Any]) -> Array | None:
    """The elements of arrays of `size` bytes in all, one after the other in a file; None where there is no room."""
    try:
        with tempfile.TemporaryFile(dir=folder()) as file:
            for part in parts:
                file.write(np.ascontiguousarray(part).reshape(-1).data.cast("B"))
            file.flush()
            mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    except OSError as error:
        log.info("an array of %d bytes stays in memory: %s", size, error)
        return None
    return np.frombuffer(mapped, dtype=dtype)


@contextlib.contextmanager
def many_files() -> Iterator[None]:
    """Lets this process have as many files open as it may ask for: each array in a file keeps one open. The limit is
    the process's: of threads that are within at once, the last to leave puts back what the first found."""
    with _limiting:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        _found.append((soft, hard))
        with contextlib.suppress(OSError, ValueError):  # a system may allow less than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        with _limiting:
            resource.setrlimit(resource.RLIMIT_NOFILE, _found.pop())


def folder() -> str | None:
    """The folder for such files: the one the environment names (None), else /var/tmp, as /tmp may lie in memory."""
    named = any(os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    return None if named or not os.access(_ON_DISK, os.W_OK | os.X_OK) else _ON_DISK


def release(array: Array) -> None:
    """Give back the memory of an array that is mapped from a file and can be read again; nothing for any other."""
    mapped = _mapping(array) if array.nbytes >= LARGE else None
    if mapped is None:
        return
    start = array.__array_interface__["data"][0] - np.frombuffer(mapped, np.uint8).__array_interface__["data"][0]
    first = start // mmap.PAGESIZE * mmap.PAGESIZE
    mapped.madvise(mmap.MADV_DONTNEED, first, start + array.nbytes - first)


def _mapping(array: Array) -> mmap.mmap | None:
    """The read-only file mapping that an array with all its elements in one piece lies in."""
    base: object = array
    while isinstance(base, (np.ndarray, memoryview)):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    whole = array.flags.c_contiguous or array.flags.f_contiguous
    return base if isinstance(base, mmap.mmap) and whole and not array.flags.writeable else None
