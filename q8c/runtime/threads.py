"""Worker threads of a session: daemon threads that stay inside the compiled code's `q8c_worker` between runs.

They hold no GIL there and sleep when there is nothing to do. A run takes all of a session's workers or none: one that
comes while they are busy, here or in so many other sessions that the cores are taken, runs on its own thread alone.
How many threads took part never changes a bit of the results.
"""
from __future__ import annotations

import logging
import os
import threading
import weakref
from mmap import mmap

from q8c.runtime import cpu
from q8c.runtime.code import Code
from q8c.runtime.memory import Frame, address_of_map, anonymous

MAX_THREADS = 256
_POOL_BYTES = 32 * 8
_LOG = logging.getLogger(__name__)


class Workers:
    """Runs frames on up to `threads` threads, this one included. Workers start with the first run that needs them."""

    def __init__(self, code: Code, count: int) -> None:
        self.threads = count
        self._code = code
        self._busy = threading.Lock()
        self._pool: _Pool | None = None
        _ALL.add(self)

    def run(self, frame: Frame) -> None:
        """Execute a frame and return when it is done; its status is in the frame."""
        if self.threads > 1 and self._busy.acquire(blocking=False):
            try:
                if self._pool is None and self.threads > 1:
                    self._start()
                if self._pool is not None and _CORES.take(self.threads):
                    try:
                        frame.words[0] = self.threads
                        self._code.launch(self._pool.address, frame.address)
                        return
                    finally:
                        _CORES.give_back(self.threads)
            finally:
                self._busy.release()
        frame.words[0] = 1
        self._code.run(frame.address, 0)

    def close(self) -> None:
        """End the workers, after the run that has them."""
        with self._busy:
            pool, self._pool = self._pool, None
            self.threads = 1
            if pool is not None:
                pool.stop()
                pool.join()

    def _start(self) -> None:
        pool = _Pool(self._code)
        try:
            pool.start(self.threads - 1)
        except RuntimeError as error:  # the system's limit on threads
            pool.stop()
            _LOG.warning("cannot start %d worker threads (%s); runs use one thread", self.threads - 1, error)
            self.threads = 1
            return
        self._pool = pool
        # Not at exit: threads that leave native code while the interpreter shuts down can only be stopped by force,
        # and those that sleep on end with the process.
        weakref.finalize(self, pool.stop).atexit = False

    def forget(self) -> None:
        """Drop workers and lock, which do not come along into a forked process."""
        self._busy = threading.Lock()
        self._pool = None


class _Pool:
    """Started workers and the memory they wait on."""

    def __init__(self, code: Code) -> None:
        self._code = code
        self._memory = anonymous(_POOL_BYTES)
        self._process = os.getpid()
        self._threads: list[threading.Thread] = []
        self.address = address_of_map(self._memory)

    def start(self, count: int) -> None:
        """Start workers 1 to `count`. Raises RuntimeError if the system has no room for one."""
        for tid in range(1, count + 1):
            thread = threading.Thread(target=_work, args=(self._code, self._memory, self.address, tid),
                                      name=f"q8c-worker-{tid}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Tell the workers to return; does not wait. No run may be under way."""
        if os.getpid() == self._process:
            self._code.launch(self.address, 0)

    def join(self) -> None:
        """Wait for the workers to be gone."""
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()


def _work(code: Code, memory: mmap, address: int, tid: int) -> None:
    """A worker's life; its arguments keep code and pool mapped until it is over."""
    code.worker(address, tid)


class _Cores:
    """How many threads of this process are inside runs that use several, so that sessions do not crowd each other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = 0
        self._count: int | None = None

    def take(self, threads: int) -> bool:
        """Whether that many threads may run now: yes if nobody else does, or if there are cores for all."""
        with self._lock:
            if self._taken:
                self._count = self._count or cpu.count()
                if self._taken + threads > self._count:
                    return False
            self._taken += threads
            return True

    def give_back(self, threads: int) -> None:
        """The run is over."""
        with self._lock:
            self._taken -= threads


def _after_fork() -> None:
    global _CORES
    _CORES = _Cores()
    for workers in list(_ALL):
        workers.forget()


_CORES = _Cores()
_ALL: weakref.WeakSet[Workers] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
