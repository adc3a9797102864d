"""Worker threads: the same bits with any number of them, from any thread and process, and no time burnt."""
from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from q8c.errors import Error
from q8c.runtime import threads
from q8c.runtime.session import Session, load
from tests.runtime import native


def check(session: Session, batch: int = 7, n: int = 9, seed: int = 0) -> None:
    feed = native.feed(batch, n, seed)
    assert np.array_equal(session.run(None, feed)[0], native.reference(**feed))


@pytest.mark.parametrize("count", [1, 2, 3, 8, 16])
def test_any_number_of_threads_gives_the_same_bits(artifact: Path, count: int) -> None:
    with load(artifact, threads=count) as session:
        for seed in range(60):
            check(session, batch=seed % 20, n=seed % 7 * 30, seed=seed)


def test_a_pool_is_as_good_as_new_after_a_run(artifact: Path) -> None:
    with load(artifact, threads=4) as session:
        check(session)
        pool = session._open().runners[0].workers._pool
        assert pool is not None
        words = pool.words
        assert words[16] == native.PHASES and words[24] == words[25] == 0 and threads._CORES.taken == 0


def test_workers_start_with_the_first_run(artifact: Path) -> None:
    def tasks() -> int:
        return len(os.listdir("/proc/self/task"))
    before = tasks()
    with load(artifact, threads=3) as session:
        assert tasks() == before
        check(session)
        check(session)
        assert tasks() == before + 2
    end = time.monotonic() + 10  # the system counts a thread for a moment after it has been joined
    while tasks() != before and time.monotonic() < end:
        time.sleep(0.01)
    assert tasks() == before


def test_more_threads_than_cores_wait_without_burning(artifact: Path) -> None:
    """Pure spinning would cost a scheduler slice, some milliseconds, at each of the 7 waits of a run."""
    with load(artifact, threads=8) as session:
        times = []
        for seed in range(30):
            start = time.perf_counter()
            check(session, seed=seed)
            times.append(time.perf_counter() - start)
        assert sorted(times)[len(times) // 2] < 0.03


def test_idle_workers_cost_nothing(artifact: Path) -> None:
    with load(artifact, threads=8) as session:
        check(session)
        time.sleep(0.02)
        before = time.process_time()
        time.sleep(0.2)
        assert time.process_time() - before < 0.01


def test_many_threads_on_one_session(artifact: Path) -> None:
    failures: list[BaseException] = []

    def use(session: Session, first: int) -> None:
        try:
            for seed in range(first, first + 40):
                check(session, batch=seed % 11, n=seed % 13, seed=seed)
        except BaseException as error:
            failures.append(error)
    with load(artifact, threads=2) as one, load(artifact, threads=3) as two:
        users = [threading.Thread(target=use, args=(s, 100 * i)) for i in range(4) for s in (one, two)]
        for user in users:
            user.start()
        for user in users:
            user.join()
    assert not failures
    assert threads._CORES.taken == 0


def threads_of(session: Session) -> int:
    """How many threads the last run was given."""
    return session._open().runners[0].frames[-1].words[0]


def test_a_run_that_finds_the_workers_busy_goes_alone(artifact: Path) -> None:
    with load(artifact, threads=2) as session:
        check(session)
        assert threads_of(session) == 2
        pool = session._open().runners[0].workers._pool
        assert pool is not None
        pool.words[24] = 1
        check(session)
        assert threads_of(session) == 1
        pool.words[24] = 0
        check(session)
        assert threads_of(session) == 2


def test_sessions_share_the_cores(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("q8c.runtime.cpu.count", lambda: 8)
    cores = threads._CORES
    with load(artifact, threads=6) as session:
        for taken, given in ((0, 6), (1, 6), (2, 6), (3, 5), (7, 1), (8, 1), (100, 1)):
            cores.taken = taken
            check(session)
            assert (threads_of(session), cores.taken) == (given, taken)
        cores.taken = 0
    with load(artifact, threads=12) as session:  # more than there are, as asked for
        check(session)
        assert threads_of(session) == 12


def test_no_run_waits_for_a_worker_that_has_not_come(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    life, late = threads._work, threading.Event()

    def come_late(*args: Any) -> None:
        late.wait(20)
        life(*args)
    monkeypatch.setattr(threads, "_work", come_late)
    with load(artifact, threads=3) as session:
        for seed in range(20):
            check(session, batch=30, seed=seed)
            assert threads_of(session) == 3
        late.set()
        for seed in range(20):
            check(session, batch=30, seed=seed)


def test_runs_of_all_lengths_one_after_the_other(artifact: Path) -> None:
    """Workers that come late to a short run meet the next one, with another frame, at any place."""
    with load(artifact, threads=3) as session:
        for seed in range(400):
            check(session, batch=seed * 7 % 50, n=seed * 13 % 90, seed=seed)


def test_an_interrupt_leaves_no_trace(artifact: Path) -> None:
    """Wherever in a run it comes, the next runs have their workers again."""
    class Interrupted(BaseException):
        """Of no family that a library would catch, as KeyboardInterrupt is not."""

    def interrupt(*_: object) -> None:
        raise Interrupted
    before = signal.signal(signal.SIGALRM, interrupt)
    hits = 0
    try:
        with load(artifact, threads=2) as session:
            check(session)
            for n in range(300):
                try:
                    signal.setitimer(signal.ITIMER_REAL, 1e-6 + n % 60 * 3e-6)
                    while True:
                        check(session, batch=3, n=4)
                except Interrupted:
                    hits += 1
            check(session)
            assert hits == 300
            assert threads_of(session) == 2 and threads._CORES.taken == 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_or_find_closed(session: Session) -> None:
    try:
        check(session, 200, 200)
    except Error as error:
        assert "is closed" in str(error)


def test_close_waits_for_the_run_that_has_the_workers(artifact: Path) -> None:
    for n in range(20):
        session = load(artifact, threads=2)
        check(session)
        user = threading.Thread(target=run_or_find_closed, args=(session,))
        user.start()
        time.sleep(n * 1e-4)
        session.close()
        user.join()


def test_where_no_thread_can_be_started(artifact: Path, monkeypatch: pytest.MonkeyPatch,
                                        caplog: pytest.LogCaptureFixture) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "q8c-worker-2":
            raise RuntimeError("can't start new thread")
        start(thread)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with caplog.at_level(logging.WARNING, "q8c"), load(artifact, threads=4) as session:
        check(session)
        assert session.threads == 1
        check(session)
    assert "runs use one thread" in caplog.text


def in_child(work: Any) -> None:
    """Run `work` in a forked process and expect it to end well."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0
            return
        time.sleep(0.002)
    os.kill(child, 9)
    os.waitpid(child, 0)
    raise AssertionError("the child hangs")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_has_workers_of_its_own(artifact: Path) -> None:
    with load(artifact, threads=3) as session:
        check(session)

        def work() -> None:
            check(session, seed=1)
            assert len(os.listdir("/proc/self/task")) == 3
            session.close()
        in_child(work)
        check(session, seed=2)
        in_child(lambda: in_child(work))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_in_the_middle_of_another_threads_run(artifact: Path) -> None:
    with load(artifact, threads=2) as session:
        stop = threading.Event()

        def use() -> None:
            while not stop.is_set():
                check(session, batch=40, n=40)
        user = threading.Thread(target=use)
        user.start()
        try:
            for _ in range(10):
                in_child(lambda: check(session, seed=3))
        finally:
            stop.set()
            user.join()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_may_drop_the_session(artifact: Path) -> None:
    """The parent's workers must not be told to stop by a child that lets go of its copy."""
    session: Session | None = load(artifact, threads=3)

    def work() -> None:
        nonlocal session
        session = None
    assert session is not None
    check(session)
    in_child(work)
    check(session)


def test_multiprocessing_by_every_method(artifact: Path) -> None:
    script = f"""
        import multiprocessing, sys
        import numpy as np
        from q8c.runtime.session import load
        def work(session):
            return session.run(None, {{"ids": [1, 2], "x": [[1, 2], [3, 4]]}})[0].tolist()
        if __name__ == "__main__":
            session = load({str(artifact)!r}, threads=2)
            expected = work(session)
            for method in ("fork", "spawn"):
                with multiprocessing.get_context(method).Pool(2) as pool:
                    assert pool.map(work, [session] * 4) == [expected] * 4
            print("same")
    """
    folder = Path(__file__).parents[2]
    file = artifact.parent / "main.py"
    file.write_text(textwrap.dedent(script))
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, timeout=60, check=False,
                          env={**os.environ, "PYTHONPATH": str(folder)})
    assert done.stdout == "same\n", done.stderr
