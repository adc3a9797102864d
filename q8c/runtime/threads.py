"""Worker threads of a session: daemon threads that stay inside the compiled code's `q8c_worker` between runs.

They hold no GIL there and sleep when there is nothing to do. A run has all of a session's workers or none: one that
comes while they are busy runs on its own thread alone, and one that comes while other sessions' runs have the cores
gets as many threads as there are cores left for. That is decided in the compiled code, where no signal comes between
taking the workers and giving them back. How many threads took part never changes a bit of the results.
"""
from __future__ import annotations

import logging
import os
import threading
import weakref
from contextlib import suppress
from mmap import mmap

from q8c.runtime import cpu
from q8c.runtime.code import Code
from q8c.runtime.memory import Frame, address_of_map, anonymous

MAX_THREADS = 256
_POOL_WORDS, _THREAD_WORDS = 32, 8
_LOG = logging.getLogger(__name__)


class Workers:
    """Runs frames on up to `threads` threads, this one included. Workers start with the first run that needs them."""

    def __init__(self, code: Code, count: int) -> None:
        self.threads = count
        self._code = code
        self._lock = threading.Lock()
        self._pool: _Pool | None = None
        _ALL.add(self)

    def run(self, frame: Frame, threads: int) -> None:
        """Execute a frame on at most so many threads and return when it is done; its status is in the frame, and how
        many threads it was given."""
        threads = min(threads, self.threads)
        pool = self._pool or self._start() if threads > 1 else None
        if pool is None:
            frame.words[0] = 1
            self._code.run(frame.address, 0)
        else:
            frame.words[0] = threads
            self._code.launch(pool.address, frame.address)

    def close(self) -> None:
        """End the workers, after the run that has them."""
        with self._lock:
            pool, self._pool = self._pool, None
            self.threads = 1
            if pool is not None:
                pool.stop()
                pool.join()

    def _start(self) -> _Pool | None:
        with self._lock:
            if self._pool is not None or self.threads == 1:
                return self._pool
            pool = _Pool(self._code, self.threads, _CORES)
            try:
                pool.start(self.threads - 1)
            except BaseException as error:
                pool.stop()
                if not isinstance(error, RuntimeError):  # the system's limit on threads
                    raise
                _LOG.warning("cannot start %d worker threads (%s); runs use one thread", self.threads - 1, error)
                self.threads = 1
                return None
            # Not at exit: threads that leave native code while the interpreter shuts down can only be stopped by
            # force, and those that sleep on end with the process.
            weakref.finalize(self, pool.stop).atexit = False
            self._pool = pool
            return pool

    def forget(self) -> None:
        """Drop workers and lock, which do not come along into a forked process."""
        self._lock = threading.Lock()
        self._pool = None


class _Cores:
    """How many threads of this process are inside runs that may use several: a word that the compiled code counts in,
    so that sessions do not crowd each other."""

    def __init__(self) -> None:
        self._memory = anonymous(8)
        self._word = memoryview(self._memory).cast("q")
        self.address = address_of_map(self._memory)

    @property
    def taken(self) -> int:
        """The count."""
        return self._word[0]

    @taken.setter
    def taken(self, count: int) -> None:
        self._word[0] = count


class _Pool:
    """Started workers and the memory they wait on; the layout is in `q8c.codegen.threads`."""

    def __init__(self, code: Code, threads: int, cores: _Cores) -> None:
        self._code = code
        self._cores = cores
        self._memory = anonymous(8 * (_POOL_WORDS + threads * _THREAD_WORDS))
        self.words = memoryview(self._memory).cast("q")
        self.words[2], self.words[3] = cores.address, cpu.count()
        self._process = os.getpid()
        self._threads: list[threading.Thread] = []
        self._stopped = False
        self.address = address_of_map(self._memory)

    def start(self, count: int) -> None:
        """Start workers 1 to `count`. Raises RuntimeError if the system has no room for one."""
        for tid in range(1, count + 1):
            thread = threading.Thread(target=_work, args=(self._code, self._memory, self.address, tid),
                                      name=f"q8c-worker-{tid}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Tell the workers to return, after the run that has them; does not wait for them."""
        if os.getpid() == self._process and not self._stopped:
            self._stopped = True
            self._code.launch(self.address, 0)

    def join(self) -> None:
        """Wait for the workers to be gone."""
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()


def _work(code: Code, memory: mmap, address: int, tid: int) -> None:
    """A worker's life; its arguments keep code and pool mapped until it is over.

    As a batch thread it takes a free core as soon as any thread does, but pushes nobody off a core when it wakes up: on
    a busy machine that would mostly be the thread that runs the model.
    """
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    code.worker(address, tid)


def _after_fork() -> None:
    global _CORES
    _CORES = _Cores()
    for workers in list(_ALL):
        workers.forget()


_CORES = _Cores()
_ALL: weakref.WeakSet[Workers] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
