"""Running a model: results, what a feed may and may not be, and a session's life."""
from __future__ import annotations

import ctypes
import gc
import os
import pickle
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from q8c.errors import ArtifactError, Error, InputError
from q8c.runtime import memory
from q8c.runtime.model import Constraint
from q8c.runtime.session import Session, load
from q8c.runtime.signature import _CACHED_PLANS
from tests.runtime import native

quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check(session: Session, feed: Mapping[str, npt.NDArray[Any]]) -> None:
    """One run against the reference, bit for bit."""
    [y] = session.run(None, feed)
    assert y.dtype == np.float32 and np.array_equal(y, native.reference(feed["ids"], feed["x"]))


@quick
@given(st.integers(0, 40), st.integers(0, 70), st.integers(0, 2**30))
def test_any_shape_from_one_file(session: Session, batch: int, n: int, seed: int) -> None:
    check(session, native.feed(batch, n, seed))


def test_what_a_session_tells(session: Session, artifact: Path) -> None:
    ids, x = session.get_inputs()
    assert (ids.name, ids.shape, ids.type, ids.dtype) == ("ids", ["batch"], "tensor(int64)", np.dtype(np.int64))
    assert (x.name, x.shape, x.type, x.dtype) == ("x", ["batch", "n"], "tensor(float)", np.dtype(np.float32))
    assert [o.name for o in session.get_outputs()] == ["y"]
    assert session.tier == "avx2" and session.threads == 2 and session.path == str(artifact)
    assert "avx2" in repr(session)


def test_outputs_by_name(session: Session) -> None:
    feed = native.feed(3, 5)
    expected = native.reference(**feed)
    assert np.array_equal(session(**feed)["y"], expected)
    assert [a.tolist() for a in session.run(["y", "y"], feed)] == [expected.tolist()] * 2
    assert len(session.run([], feed)) == 1
    with pytest.raises(InputError, match="no outputs named 'z'; the outputs are y"):
        session.run(["y", "z"], feed)
    for names in ("y", [1], [["y"]]):
        with pytest.raises(InputError, match="list of strings or None"):
            session.run(names, feed)  # type: ignore[arg-type]


def test_outputs_belong_to_the_caller(session: Session) -> None:
    feed = native.feed(3, 5)
    [first] = session.run(None, feed)
    kept = first.copy()
    first[:] = 0
    [second] = session.run(None, feed)
    session.run(None, native.feed(3, 5, seed=1))
    assert second.flags.owndata and second.flags.writeable and np.array_equal(second, kept)


def strided(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    wide = np.zeros((*array.shape[:-1], 3 * array.shape[-1]), array.dtype)
    turned: npt.NDArray[Any] = wide[..., ::-3]
    turned[...] = array
    return turned


def misaligned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    moved: npt.NDArray[Any] = np.ndarray(array.shape, array.dtype, b"\0" + array.tobytes(), offset=1)
    return moved


def frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    copy = np.array(array)
    copy.flags.writeable = False
    return copy


class Foreign:
    """Something of another library that numpy can read."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self._array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> npt.NDArray[Any]:
        return self._array


@pytest.mark.parametrize("form", [
    strided, misaligned, frozen, Foreign, np.asfortranarray, lambda a: a.astype(a.dtype.newbyteorder(">")),
    lambda a: strided(a.astype(a.dtype.newbyteorder(">"))), lambda a: a.view(np.recarray), lambda a: a.tolist(),
    lambda a: tuple(a.tolist()), lambda a: np.ma.masked_array(a)],
    ids=["strided", "misaligned", "read-only", "foreign", "fortran", "big-endian", "strided big-endian", "subclass",
         "list", "tuple", "masked"])
def test_arrays_of_any_make_are_taken(session: Session, form: Any) -> None:
    feed = native.feed(4, 6)
    [y] = session.run(None, {name: form(a) for name, a in feed.items()})
    assert np.array_equal(y, native.reference(**feed))


def test_lists_are_taken_where_every_value_fits(session: Session) -> None:
    some: dict[str, Any] = {"ids": [1, 2], "x": [[1, 2, 3], [0.5, 1e-40, -7]]}
    [y] = session.run(None, some)
    assert np.array_equal(y, native.reference(np.array([1, 2]), np.array([[1, 2, 3], [0.5, 1e-40, -7]], np.float32)))
    [y] = session.run(None, {"ids": [], "x": np.zeros((0, 3), np.float32)})
    assert y.shape == (0, 3)
    refused: list[tuple[Any, str]] = [
        ([1.5], "got a list of float64"), ([True], "got a list of bool"), (["1"], "list of <U1"),
        ([[1], [1, 2]], "not a regular list"), ([2**63], "does not fit"), ([2**70], "list of object"),
        ([None], "list of object"), (3, "must have 1 dimensions")]
    for ids, message in refused:
        with pytest.raises(InputError, match=message):
            session.run(None, {"ids": ids, "x": np.zeros((1, 3), np.float32)})
    with pytest.raises(InputError, match="does not fit"):
        session.run(None, {"ids": [1], "x": [[1e300]]})


class Broken:
    def __array__(self, dtype: Any = None, copy: Any = None) -> npt.NDArray[Any]:
        raise RuntimeError("tensor lives\non a device")


@pytest.mark.parametrize(("feed", "message"), [
    ({}, "the feed lacks 'ids', 'x'; the inputs are ids, x"),
    ({"ids": np.zeros(1, np.int64)}, "the feed lacks 'x'"),
    ({"ids": 1, "x": 1, "y": 1, 3: 4}, "has the unknown 'y', 3"),
    ({"id": 1, "x": 1}, "lacks 'ids' and has the unknown 'id'"),
    ([1, 2], "must be a dict from names to arrays, got a list"), (None, "got a NoneType"),
    ({"ids": np.zeros(2, np.int32), "x": np.zeros((2, 3), np.float32)},
     r"'ids' must be int64, got int32; convert it with \.astype\(np\.int64\)"),
    ({"ids": np.zeros(2, np.int64), "x": np.zeros((2, 3))}, "'x' must be float32, got float64"),
    ({"ids": np.zeros(2, ">i4"), "x": np.zeros((2, 3), np.float32)}, "got >i4"),
    ({"ids": np.zeros(2, object), "x": np.zeros((2, 3), np.float32)}, "got object; pass a numpy array of that type"),
    ({"ids": np.array(["a"]), "x": np.zeros((2, 3), np.float32)}, "got <U1"),
    ({"ids": "text", "x": np.zeros((2, 3), np.float32)}, "got a str of <U4"),
    ({"ids": np.zeros(2, "m8[s]"), "x": np.zeros((2, 3), np.float32)}, "got timedelta64"),
    ({"ids": np.zeros(2, [("a", "i8")]), "x": np.zeros((2, 3), np.float32)}, "must be int64, got"),
    ({"ids": Broken(), "x": np.zeros((2, 3), np.float32)}, "cannot be read as an array .tensor lives on a device"),
    ({"ids": np.zeros((2, 1), np.int64), "x": np.zeros((2, 3), np.float32)},
     r"'ids' must have 1 dimensions, int64\[batch\], got shape \(2, 1\)"),
    ({"ids": np.zeros(2, np.int64), "x": np.zeros((3, 3), np.float32)},
     r"'x': dimension 0 must be batch, which is 2 as batch = 2 in dimension 0 of 'ids', got 3 \(shape \(3, 3\), "
     r"expected float32\[batch, n\]\)"),
    ({"ids": np.array([3, 99999]), "x": np.zeros((2, 3), np.float32)},
     r"node 'tok' \(gather\): token id 99999 is out of range \[0, 10\)"),
    ({"ids": np.array([3, -1]), "x": np.zeros((2, 3), np.float32)}, "token id -1 is out of range"),
])
def test_a_feed_that_does_not_fit_is_told_so_in_one_line(session: Session, feed: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        session.run(None, feed)
    assert "\n" not in str(caught.value)
    check(session, native.feed(3, 4))


ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3), st.binary(max_size=3),
    st.lists(st.one_of(st.integers(), st.floats(), st.none(), st.lists(st.integers(), max_size=2)), max_size=3),
    hnp.arrays(st.one_of(hnp.integer_dtypes(), hnp.floating_dtypes(), hnp.boolean_dtypes(),
                         hnp.complex_number_dtypes()),
               hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)),
    hnp.arrays(np.int64, st.integers(0, 4), elements=st.integers(0, 9)),
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=4)))


@quick
@given(st.dictionaries(st.sampled_from(["ids", "x", "y"]), ANYTHING))
def test_any_feed_runs_or_is_refused(session: Session, feed: dict[str, Any]) -> None:
    try:
        session.run(None, feed)
    except InputError as error:
        assert "\n" not in str(error)


def test_constraints_hold_at_run_time(tmp_path: Path) -> None:
    broken = Constraint(("max", native.BATCH, 1), native.BATCH, "batch >= 1")
    session = load(native.write(tmp_path / "m.q8c", described=native.model((broken,))))
    check(session, native.feed(1, 3))
    with pytest.raises(InputError, match="break batch >= 1, as batch = 0 in dimension 0 of 'ids', n = 3"):
        session.run(None, native.feed(0, 3))


def test_memory_that_is_not_there_is_an_error_before_it_is_asked_for(
        session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broadcast arrays stand for far more than they take."""
    ids, x = np.broadcast_to(np.int64(1), 1 << 20), np.broadcast_to(np.float32(1), (1 << 20, 1 << 19))
    with pytest.raises(InputError, match="a dense copy of input 'x' needs 2,097,152 MiB"):
        session.run(None, {"ids": ids, "x": x})
    with pytest.raises(InputError, match="as batch = 1073741824 in dimension 0"):
        session.run(None, {"ids": np.broadcast_to(np.int64(1), 1 << 30), "x": np.broadcast_to(
            np.float32(1), (1 << 30, 1 << 28))})
    monkeypatch.setattr(memory, "available_memory", lambda: 100 << 20)
    with pytest.raises(InputError, match="this run's working memory needs 128 MiB and 100 MiB are left"):
        session.run(None, {"ids": np.zeros(1 << 12, np.int64), "x": np.zeros((1 << 12, 1 << 13), np.float32)})
    check(session, native.feed(2, 2))


def test_where_the_system_refuses_memory(artifact: Path) -> None:
    done = _python(artifact, """
        import resource
        x = np.zeros((1 << 13, 1 << 13), np.float32)
        session = load(path, threads=1)
        size = int(open("/proc/self/statm").read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (size + (384 << 20), -1))
        try:
            session.run(None, {"ids": np.zeros(1 << 13, np.int64), "x": x})
        except InputError as error:
            assert "no memory" in str(error), error
            print("refused")
        print(session.run(None, {"ids": [1], "x": [[1]]})[0].shape)
    """)
    assert done.stdout == "refused\n(1, 1)\n", done.stderr


def test_large_arenas_are_given_back(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_KEPT", 1 << 20)
    check(session, native.feed(600, 600))
    assert session._open().runners[0].frames[-1]._arena is None
    check(session, native.feed(300, 300))
    assert session._open().runners[0].frames[-1]._arena is not None


def test_inputs_that_grow_step_by_step_do_not_each_mean_a_new_arena() -> None:
    frame = memory.Frame(32)
    places = set()
    for size in range(1 << 20, 2 << 20, 1 << 14):
        frame.reserve(size)
        assert frame._arena is not None and len(frame._arena) >= size
        places.add(len(frame._arena))
    assert len(places) <= 5


def test_plans_are_made_once_per_shape(session: Session) -> None:
    signature = session._open().runners[0].signature
    for _ in range(3):
        for n in (4, 5):
            check(session, native.feed(2, n))
    assert signature._plans.cache_info().misses == 2
    for n in range(300):
        signature.plan((2,), (2, n))
    assert signature._plans.cache_info().currsize == _CACHED_PLANS


def test_threads_must_be_a_sane_number(artifact: Path) -> None:
    for threads in (0, -1, 257, True, 1.0, "2"):
        with pytest.raises(InputError, match="integer from 1 to 256 or None"):
            load(artifact, threads=threads)  # type: ignore[arg-type]
    assert load(artifact).threads == load(artifact, threads=None).threads >= 1


def test_a_closed_session_says_so(artifact: Path) -> None:
    with load(artifact, threads=3) as session:
        check(session, native.feed(4, 4))
    session.close()
    for use in (lambda: session.run(None, {}), session.get_inputs, lambda: session.threads,
                lambda: pickle.dumps(session)):
        with pytest.raises(Error, match="is closed; load the file again"):
            use()
    assert "closed" in repr(session)


def test_pickling_goes_by_path_and_pin(artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.q8c"
    path.write_bytes(artifact.read_bytes())
    with load(path, threads=2, tier="avx2") as session:
        pickled = pickle.dumps(session)
    again = pickle.loads(pickled)
    assert (again.path, again.threads, again.tier) == (str(path), 2, "avx2")
    check(again, native.feed(3, 3))
    assert len(pickled) < 1000
    native.write(path)
    with pytest.raises(ArtifactError, match="another file"):
        pickle.loads(pickled)


def test_a_session_survives_its_file(artifact: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.q8c"
    path.write_bytes(artifact.read_bytes())
    session = load(path)
    native.write(path, extra=[np.zeros(5)])
    path.unlink()
    check(session, native.feed(3, 3))


def test_nothing_is_left_when_sessions_go(artifact: Path) -> None:
    def resources() -> tuple[int, int]:
        maps = Path("/proc/self/maps").read_text()
        return maps.count(str(artifact)), len(os.listdir("/proc/self/task"))
    gc.collect()
    before = resources()
    for _ in range(5):
        session = load(artifact, threads=4)
        check(session, native.feed(5, 5))
        assert resources() == (before[0] + 1, before[1] + 3)
        del session
        deadline = time.monotonic() + 5
        while resources() != before and time.monotonic() < deadline:
            time.sleep(0.002)
        assert resources() == before


def test_code_is_never_writable_and_executable(session: Session) -> None:
    check(session, native.feed(5, 5))
    entry = ctypes.cast(session._open().runners[0].code.run, ctypes.c_void_p).value  # type: ignore[arg-type]
    assert entry is not None
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= entry < end:
            assert line.split()[1] == "r-xp"
            return
    raise AssertionError("the code is mapped nowhere")


def test_running_needs_numpy_and_nothing_of_the_compiler(artifact: Path) -> None:
    done = _python(artifact, """
        import sys
        print(load(path).run(None, {"ids": [1], "x": [[1]]})[0].shape)
        heavy = {"llvmlite", "onnx", "networkx", "q8c.ir", "q8c.passes", "q8c.codegen", "q8c.frontend",
                 "multiprocessing", "asyncio", "concurrent"}
        print(sorted(heavy & {name if name.startswith("q8c") else name.split(".")[0] for name in sys.modules}))
    """)
    assert done.stdout == "(1, 1)\n[]\n", done.stderr


@pytest.mark.parametrize("ending", [
    "sys.exit(7)", "os._exit(7)", "del session; sys.exit(7)", "session.close(); sys.exit(7)",
    "os.kill(os.getpid(), 15)", "raise RuntimeError"])
def test_a_process_with_sleeping_workers_ends_at_once(artifact: Path, ending: str) -> None:
    start = time.monotonic()
    done = _python(artifact, f"""
        import os, sys
        session = load(path, threads=4)
        session.run(None, {{"ids": [1], "x": [[1]]}})
        {ending}
    """)
    assert done.returncode == {"os.kill(os.getpid(), 15)": -15, "raise RuntimeError": 1}.get(ending, 7), done.stderr
    assert time.monotonic() - start < 10


def _python(artifact: Path, script: str) -> subprocess.CompletedProcess[str]:
    head = ("import numpy as np\nfrom q8c.errors import InputError\nfrom q8c.runtime.session import load\n"
            f"path = {str(artifact)!r}\n")
    return subprocess.run([sys.executable, "-c", head + textwrap.dedent(script)], capture_output=True, text=True,
                          timeout=60, cwd=Path(__file__).parents[2], check=False)
