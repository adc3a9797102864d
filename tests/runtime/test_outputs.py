"""Memory of outputs: whose it is, and when it is used again."""
from __future__ import annotations

import gc
import math
import os
import sys
import threading
import weakref
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from q8c.runtime import outputs
from q8c.runtime.arrays import Array
from q8c.runtime.outputs import Outputs, Pool
from q8c.runtime.session import Session, load
from tests.runtime import native


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is large begins at some pages."""
    monkeypatch.setattr(outputs, "_LEASED", 1 << 14)
    monkeypatch.setattr(outputs, "_ALIGNED", 1 << 12)
    monkeypatch.setattr(outputs, "_KEPT", 1 << 17)


@pytest.fixture
def made() -> Outputs:
    """Outputs of the small native model."""
    return Outputs(native.model())


def array(made: Outputs, *shape: int) -> Array:
    """One such array of floats."""
    return made._array(shape, np.dtype(np.float32))


@pytest.mark.parametrize("shape", [(0, 3), (), (3, 100), (13, 99), (60, 99)])
def test_large_arrays_begin_a_cache_line(made: Outputs, shape: tuple[int, ...]) -> None:
    for _ in range(3):
        y = array(made, *shape)
        y[...] = 1
        assert y.shape == shape and y.flags.c_contiguous and y.flags.writeable and y.dtype == np.float32
        assert math.prod(shape) < 1024 or y.ctypes.data % 64 == 0


def test_memory_is_used_again_once_no_view_is_left(made: Outputs) -> None:
    first = array(made, 64, 128)
    place = first.ctypes.data
    views: list[Any] = [first[3:], memoryview(first.data), first.reshape(-1).view(np.int32)[::2],
                        np.asarray(first.base)]
    views[0][...] = 5
    del first
    while views:
        other = array(made, 64, 128)
        other[...] = 0
        assert other.ctypes.data != place and np.asarray(views[0]).max() > 0
        views.pop()
    assert place in {y.ctypes.data for y in (array(made, 64, 128), array(made, 40, 128))}


def test_memory_much_larger_than_asked_for_is_left_for_others(made: Outputs) -> None:
    large = array(made, 256, 64)
    place = large.ctypes.data
    del large
    little = array(made, 65, 64)
    assert little.ctypes.data != place
    assert array(made, 200, 64).ctypes.data == place


def test_only_so_much_is_kept(made: Outputs) -> None:
    taken = [array(made, 64, 128) for _ in range(20)]
    assert made._pool.nbytes == 0
    taken.clear()
    assert made._pool.nbytes == 1 << 17


def test_memory_goes_with_the_session(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", failures.append)
    session = load(artifact, threads=1)
    feed = native.feed(70, 70)
    for _ in range(3):
        [y] = session.run(None, feed)
    pool = weakref.ref(session._open().runners[0]._outputs._pool)
    assert (found := pool()) is not None and found.nbytes > 0
    del found
    session.close()
    assert pool() is None
    assert np.array_equal(y, native.reference(**feed))
    del y
    gc.collect()
    assert not failures


def test_threads_never_get_what_another_has(session: Session) -> None:
    feeds = [native.feed(70, 70, seed=n) for n in range(3)]
    expected = [native.reference(**feed) for feed in feeds]
    wrong: list[int] = []

    def work(n: int) -> None:
        held: deque[Array] = deque(maxlen=2)
        for _ in range(30):
            held.append(session.run(None, feeds[n])[0])
            if any(not np.array_equal(y, expected[n]) for y in held):
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and session._open().runners[0]._outputs._pool.nbytes > 0


def test_a_fork_has_its_own(made: Outputs) -> None:
    y = array(made, 64, 128)
    y[...] = 7
    child = os.fork()
    if not child:
        del y
        array(made, 64, 128)[...] = 0
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert (y == 7).all()


def test_where_the_system_has_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", failures.append)
    with pytest.raises((OSError, OverflowError)):
        Pool().take(1 << 62)
    assert not failures
