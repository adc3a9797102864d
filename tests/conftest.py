"""What holds for all tests."""
from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Before anything imports numpy: the threads of its matrix products spin while they wait, which costs most where several
# tests run at once.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def _threads_for_small_models() -> Iterator[None]:
    """Models of tests are too small to be worth a second thread, which is no reason not to test them with several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("q8c.runtime.planner.THREAD_COST", 1)
        yield
