"""What holds for all tests."""
from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator

import pytest

# Before anything imports numpy: the threads of its matrix products spin while they wait, which costs most where several
# tests run at once.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# In a shell's background job Ctrl-C is ignored, and so it would be in the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _files_need_not_outlive_a_power_cut() -> Iterator[None]:
    """Some three thousand models are compiled, each into a file that would be waited for twice, milliseconds each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def _threads_for_small_models() -> Iterator[None]:
    """Models of tests are too small to be worth a second thread, which is no reason not to test them with several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("q8c.runtime.planner.THREAD_COST", 1)
        yield


def pytest_collection_finish() -> None:
    """Lets Python look for garbage seldom, and never among the tests: that took a tenth of the suite's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)


def pytest_sessionfinish() -> None:
    """Lets pytest's own collections at the end, five of them, pass over what is alive: millions of objects.

    They took more than the 5 s after which execnet interrupts a worker of xdist.
    """
    gc.collect()
    gc.freeze()
