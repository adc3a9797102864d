"""The Python face: what `q8c.compile` and `q8c.load` take and refuse, and how sessions live."""
from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import q8c
from q8c.runtime import cpu
from tests import models
from tests.models import Array

MODEL = models.mlp((32, 64, 16))
X = np.random.default_rng(0).standard_normal((5, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return q8c.compile(MODEL, tmp_path_factory.mktemp("api") / "m.q8c")


@pytest.fixture(scope="module")
def y(compiled: Path) -> Array:
    """What the model makes of X."""
    return q8c.load(compiled, threads=1)(x=X)["y"]


def test_models_in_every_form(tmp_path: Path, compiled: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(MODEL, path)
    data = path.read_bytes()
    assert q8c.compile(path) == q8c.compile(str(path)) == tmp_path / "m.q8c"
    expected = compiled.read_bytes()
    assert (tmp_path / "m.q8c").read_bytes() == expected
    forms: list[Any] = [MODEL, data, bytearray(data), memoryview(data)]
    for form in forms:
        output = q8c.compile(form, os.fspath(tmp_path / "other.q8c"))
        assert isinstance(output, Path) and output.read_bytes() == expected
    assert MODEL.SerializeToString() == models.mlp((32, 64, 16)).SerializeToString()


@pytest.mark.parametrize(("model", "says"), [
    (5, "expected a path, bytes or a ModelProto, got int"), (None, "got NoneType"), ([b""], "got list"),
    (b"", "no graph in 0 bytes"), ("none.onnx", "no such file"), ("a\0b.onnx", "cannot read the model"),
    ("", "is a folder"), ("/", "is a folder")], ids=repr)
def test_what_is_no_model(model: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(q8c.CompileError, match=says):
        q8c.compile(model, tmp_path / "m.q8c")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("output", "says"), [
    (None, "state the output file"), ("", "is a folder"), (".", "is a folder"), ("none/m.q8c", "none does not exist"),
    (5, "name a file"), ("a\0b", "name a file"), ("x" * 300, "name a file")], ids=repr)
def test_what_is_no_output(output: Any, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(q8c.CompileError, match=says):
        q8c.compile(MODEL, output)
    assert not list(tmp_path.iterdir())


def test_devices_and_pipes_are_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(q8c.CompileError, match="is a device, a pipe or the like"):
        q8c.compile(MODEL, pipe)
    assert pipe.is_fifo()


def test_a_link_is_followed(tmp_path: Path, compiled: Path) -> None:
    (tmp_path / "link.q8c").symlink_to("real.q8c")
    q8c.compile(MODEL, tmp_path / "link.q8c")
    assert (tmp_path / "link.q8c").is_symlink() and (tmp_path / "real.q8c").read_bytes() == compiled.read_bytes()


@pytest.mark.parametrize(("options", "says"), [
    ({"target": None}, "target must be"), ({"target": ["avx2"]}, "target must be"), ({"target": "avx3"}, "'avx3'"),
    ({"weights": None}, "weights must be"), ({"weights": ["q8-channel"]}, "weights must be"),
    ({"weights": "q2"}, "weight format 'q2'"), ({"quantize": "no"}, "quantize must be True or False, got 'no'"),
    ({"balance": 1}, "balance must be True or False"), ({"numerics": None}, "numerics None"),
    ({"keep": "matmul0"}, "keep must be a list of names"), ({"keep": [5]}, "keep must be a list of names"),
    ({"keep": ["nobody"]}, "'nobody'")], ids=repr)
def test_wrong_options(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(q8c.CompileError, match=says):
        q8c.compile(MODEL, tmp_path / "m.q8c", **options)
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_the_file_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from q8c.runtime.writer import Writer

    def fail(*args: object) -> None:
        raise KeyboardInterrupt
    output = tmp_path / "m.q8c"
    output.write_bytes(b"before")
    monkeypatch.setattr(Writer, "image", fail)
    with pytest.raises(KeyboardInterrupt):
        q8c.compile(MODEL, output)
    assert output.read_bytes() == b"before" and list(tmp_path.iterdir()) == [output]


def test_a_cpu_that_lacks_tiers(tmp_path: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "features", lambda: frozenset(cpu.TIERS["avx2"]))
    path = q8c.compile(MODEL, tmp_path / "m.q8c")
    assert q8c.load(path).tier == "avx2"
    q8c.compile(MODEL, tmp_path / "other.q8c", target="avx512-vnni")
    with pytest.raises(q8c.ArtifactError, match="avx512-vnni needs .*avx512vnni.*compile the model for avx2"):
        q8c.load(tmp_path / "other.q8c")
    monkeypatch.setattr(cpu, "features", frozenset)
    with pytest.raises(q8c.CompileError, match="this CPU has none of the tiers; name a target: avx2"):
        q8c.compile(MODEL, tmp_path / "none.q8c")


def test_pins(compiled: Path, y: Array) -> None:
    digest = hashlib.sha256(compiled.read_bytes()).hexdigest()
    assert np.array_equal(q8c.load(compiled, sha256=digest.upper())(x=X)["y"], y)
    with pytest.raises(q8c.ArtifactError, match="expected 0000"):
        q8c.load(compiled, sha256="0" * 64)


def _child(session: q8c.runtime.session.Session, pipe: Any) -> None:
    pipe.send(session(x=X)["y"])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_sessions_go_along_into_other_processes(compiled: Path, y: Array, method: str) -> None:
    session = q8c.load(compiled, threads=2)
    assert np.array_equal(session(x=X)["y"], y)
    context: Any = multiprocessing.get_context(method)
    mine, theirs = context.Pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 warns of forks among threads, which is the point
        child = context.Process(target=_child, args=(session, theirs))
        child.start()
    assert mine.poll(60) and np.array_equal(mine.recv(), y)
    child.join(60)
    assert child.exitcode == 0 and np.array_equal(session(x=X)["y"], y)


def test_a_pickled_session_wants_the_very_same_file(tmp_path: Path) -> None:
    path = q8c.compile(MODEL, tmp_path / "m.q8c")
    pickled = pickle.dumps(q8c.load(path, threads=1))
    assert pickle.loads(pickled).threads == 1
    q8c.compile(MODEL, path, quantize=False)
    with pytest.raises(q8c.ArtifactError, match="it is another file"):
        pickle.loads(pickled)


def test_many_threads_and_sessions_at_once(compiled: Path) -> None:
    sessions = [q8c.load(compiled, threads=n) for n in (1, 2, 2)]
    feeds = [np.random.default_rng(n).standard_normal((1 + 37 * n, 32)).astype(np.float32) for n in range(6)]
    expected = [sessions[0](x=feed)["y"] for feed in feeds]
    wrong: list[int] = []

    def work(seed: int) -> None:
        choose = np.random.default_rng(seed)
        for _ in range(60):
            which = int(choose.integers(len(feeds)))
            if not np.array_equal(sessions[choose.integers(3)](x=feeds[which])["y"], expected[which]):
                wrong.append(which)
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
