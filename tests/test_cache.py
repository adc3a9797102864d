"""`q8c.load` of ONNX files, and of compiled ones whose code is not to be trusted."""
from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import onnx
import pytest

import q8c
from q8c import compiler
from tests import models

X = np.ones((2, 32), np.float32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache."""
    monkeypatch.setenv("Q8C_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An ONNX file of one layer."""
    path = tmp_path / "small.onnx"
    onnx.save(models.mlp((32, 16)), path)
    return path


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the models compiled so far."""
    names: list[str] = []
    original = compiler.compile_model

    def counted(model: Path, *args: object, **more: object) -> compiler.Result:
        names.append(Path(model).name)
        return original(model, *args, **more)  # type: ignore[arg-type]
    monkeypatch.setattr(compiler, "compile_model", counted)
    return names


def test_the_same_content_is_compiled_once(folder: Path, model: Path, compilations: list[str], tmp_path: Path) -> None:
    first = q8c.load(model)(x=X)["y"]
    assert np.array_equal(q8c.load(str(model), threads=1)(x=X)["y"], first)
    moved = model.rename(tmp_path / "small.ONNX")
    assert np.array_equal(q8c.load(moved)(x=X)["y"], first)
    assert compilations == ["small.onnx"] and len(list(folder.iterdir())) == 1
    onnx.save(models.mlp((32, 17)), model)
    assert q8c.load(model)(x=X)["y"].shape == (2, 17)
    assert len(compilations) == 2


def test_external_data_counts_as_content(folder: Path, model: Path, compilations: list[str]) -> None:
    onnx.save(models.mlp((32, 16)), model, save_as_external_data=True, location="w.bin", size_threshold=0)
    first = q8c.load(model)(x=X)["y"]
    weights = model.with_name("w.bin")
    data = bytearray(weights.read_bytes())
    data[:64] = bytes(64)
    weights.write_bytes(data)
    assert not np.array_equal(q8c.load(model)(x=X)["y"], first) and len(compilations) == 2


def test_tiers_are_kept_apart(folder: Path, model: Path, compilations: list[str]) -> None:
    assert q8c.load(model, tier="avx2").tier == "avx2"
    q8c.load(model, tier="avx2")
    q8c.load(model)
    assert len(compilations) == len(list(folder.iterdir()))
    with pytest.raises(q8c.CompileError, match="unknown target 'sse'"):
        q8c.load(model, tier="sse")


def test_a_damaged_file_in_the_cache_is_made_anew(folder: Path, model: Path, compilations: list[str]) -> None:
    first = q8c.load(model)(x=X)["y"]
    [kept] = folder.iterdir()
    kept.write_bytes(kept.read_bytes()[:-100])
    assert np.array_equal(q8c.load(model)(x=X)["y"], first) and len(compilations) == 2


def test_rebuild_does_not_trust_the_cache(folder: Path, model: Path, compilations: list[str]) -> None:
    first = q8c.load(model)(x=X)["y"]
    assert np.array_equal(q8c.load(model, rebuild=True)(x=X)["y"], first) and len(compilations) == 2


def test_a_change_of_the_compiler_is_a_change(folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch,
                                              compilations: list[str]) -> None:
    q8c.load(model)
    monkeypatch.setattr(q8c, "__version__", "9.9")
    q8c.load(model)
    assert len(compilations) == 2


@pytest.mark.parametrize("name", ["passes/fold.py", "compiler.pack"])  # in a clone and in an installation
def test_a_change_of_the_compilers_source_is_a_change(folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch,
                                                      compilations: list[str], tmp_path: Path, name: str) -> None:
    source = tmp_path / "q8c" / name
    source.parent.mkdir(parents=True)
    monkeypatch.setattr(q8c, "__file__", str(tmp_path / "q8c/__init__.py"))
    for content, expected in (("one", 1), ("two", 2), ("one", 2)):
        source.write_text(content)
        q8c.load(model)
        assert len(compilations) == expected


def test_places_that_cannot_be(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("Q8C_CACHE", str(model / "below a file"))
    with pytest.raises(q8c.CompileError, match="cannot make the cache folder .*; set Q8C_CACHE"):
        q8c.load(model)
    monkeypatch.delenv("Q8C_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    q8c.load(model)
    assert (tmp_path / "xdg" / "q8c").stat().st_mode & 0o777 == 0o700

    def homeless(cls: type[Path]) -> Path:
        raise RuntimeError("no home directory")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", classmethod(homeless))
    with pytest.raises(q8c.CompileError, match="set Q8C_CACHE to a folder"):
        q8c.load(model)


def test_sessions_of_cached_and_rebuilt_files_pickle(folder: Path, model: Path, tmp_path: Path) -> None:
    compiled = q8c.compile(model)
    for session in (q8c.load(model), q8c.load(compiled, rebuild=True), q8c.load(compiled)):
        again = pickle.loads(pickle.dumps(session))
        assert np.array_equal(again(x=X)["y"], session(x=X)["y"])


def test_a_rebuilt_file_is_as_the_compiler_would_write_it(folder: Path, model: Path) -> None:
    compiled = q8c.compile(model)
    assert Path(q8c.load(compiled, rebuild=True).path).read_bytes() == compiled.read_bytes()


def test_what_load_refuses(folder: Path, model: Path) -> None:
    with pytest.raises(q8c.ArtifactError, match="sha256 pins a compiled file"):
        q8c.load(model, sha256="0" * 64)
    with pytest.raises(q8c.ArtifactError, match="expected the path of a compiled model, got int"):
        q8c.load(5)  # type: ignore[arg-type]
    with pytest.raises(q8c.CompileError, match="cannot read the model"):
        q8c.load("none.onnx")
    compiled = q8c.compile(model)
    for rebuild in (False, True):
        with pytest.raises(q8c.ArtifactError, match="expected 0000"):
            q8c.load(compiled, sha256="0" * 64, rebuild=rebuild)
