"""Machine code in executable memory, called through ctypes; the GIL is free while it runs."""
from __future__ import annotations

import ctypes
import hashlib
import mmap
from collections.abc import Callable

from q8c.errors import ArtifactError
from q8c.runtime.artifact import Artifact
from q8c.runtime.memory import address_of_map, anonymous
from q8c.runtime.sections import CHUNK, ENTRIES

_RUN = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)
_WORKER = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
_LAUNCH = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)


class Code:
    """A part's image for one tier, mapped readable and executable, never writable and executable at once.

    `run(frame, tid)`, `worker(pool, tid)` and `launch(pool, frame)` take addresses. The code is copied out of the file
    before it is checked, so that nobody can change it afterwards. It stays mapped while this object lives.
    """

    run: Callable[[int, int], int]
    worker: Callable[[int, int], None]
    launch: Callable[[int, int], int]

    def __init__(self, artifact: Artifact, tier: str, part: int = 0) -> None:
        image = artifact.image(tier, part)
        size = image.section.size
        self.tier = tier
        self._memory = anonymous(size)
        self._memory[:size] = artifact.read(image.section)
        for index, digest in enumerate(image.section.sha256):
            piece = self._memory[index * CHUNK:min((index + 1) * CHUNK, size)]
            if hashlib.sha256(piece).hexdigest() != digest:
                raise ArtifactError(f"the code for {tier} changed while it was read; load the file again")
        start = address_of_map(self._memory)
        make_executable(start, len(self._memory))
        run, worker, launch = (start + image.entries[name] for name in ENTRIES)
        self.run, self.worker, self.launch = _RUN(run), _WORKER(worker), _LAUNCH(launch)


def make_executable(address: int, size: int) -> None:
    """Make memory readable and executable and no longer writable."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if libc.mprotect(address, size, mmap.PROT_READ | mmap.PROT_EXEC):
        raise ArtifactError(f"the system refuses executable memory (errno {ctypes.get_errno()}); "
                            "allow it for this process (SELinux calls it execmem)")
