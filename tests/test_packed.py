"""Modules in one packed file are found, run and shown in tracebacks as those in folders are."""
from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from q8c.packed import Packed, pack

SOURCES = {
    "__init__.py": "never read: the package itself is a folder",
    "one.py": "from whole.deep.two import answer\n\ndef fail():\n    raise ValueError(answer)\n",
    "deep/__init__.py": "",
    "deep/two.py": "answer = 'é'\n",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `whole` whose modules are in a packed file beside its own, which is plain."""
    package = tmp_path / "whole"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "rest.pack").write_bytes(pack(SOURCES))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Packed("whole", str(package / "rest.pack"))])
    yield package
    for name in [n for n in sys.modules if n.partition(".")[0] == "whole"]:
        del sys.modules[name]


def test_modules_and_packages_are_imported(folder: Path) -> None:
    one = importlib.import_module("whole.one")
    assert one.__file__ == str(folder / "rest.pack/one.py") and sys.modules["whole.deep"].__path__
    with pytest.raises(ValueError, match="é") as caught:
        one.fail()
    assert traceback.extract_tb(caught.tb)[-1].line == "raise ValueError(answer)"
    with pytest.raises(ModuleNotFoundError, match=r"whole\.three"):
        importlib.import_module("whole.three")


def test_a_damaged_file_is_told(folder: Path) -> None:
    whole = (folder / "rest.pack").read_bytes()
    (folder / "rest.pack").write_bytes(whole[:-9])
    with pytest.raises(ImportError, match=r"rest\.pack is damaged \(.*\); install q8c again"):
        importlib.import_module("whole.one")
