"""Keeps large arrays out of memory while nobody reads them, so that a model larger than memory can be compiled.

What is mapped from a file counts as memory of the process from when it is first read; `release` gives it back. What a
compilation computes itself can lie in a temporary file instead (`spilled`).
"""
from __future__ import annotations

import logging
import mmap
import os
import tempfile

import numpy as np

from q8c.ir.graph import Array

log = logging.getLogger("q8c.ir")
LARGE = 1 << 23
"""Bytes of an array worth a file: the weights of models of a few hundred megabytes stay in memory."""
_ON_DISK = "/var/tmp"  # where files larger than memory may go, by the Filesystem Hierarchy Standard


def spilled(array: Array) -> Array:
    """The same elements, mapped from a temporary file that goes when they do; a small array as it is, and any where
    there is no room for files."""
    if array.nbytes < LARGE:
        return array
    try:
        with tempfile.TemporaryFile(dir=folder()) as file:
            file.write(np.ascontiguousarray(array).reshape(-1).data.cast("B"))
            file.flush()
            mapped = mmap.mmap(file.fileno(), array.nbytes, access=mmap.ACCESS_READ)
    except OSError as error:
        log.info("an array of %d bytes stays in memory: %s", array.nbytes, error)
        return array
    return np.frombuffer(mapped, dtype=array.dtype).reshape(array.shape)


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
