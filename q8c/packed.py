"""Imports modules from one compressed file, as an installation has all but the run time (see setup.py).

A zip file, which Python could import from by itself, compresses each module alone and is almost twice as large.
"""
from __future__ import annotations

import json
import lzma
import os
from collections.abc import Sequence
from functools import cached_property
from importlib.abc import SourceLoader
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType


def pack(sources: dict[str, str]) -> bytes:
    """The file of these sources by path below the package; the same bytes for the same sources."""
    return lzma.compress(json.dumps(sources, ensure_ascii=False, sort_keys=True).encode(), preset=9)


class Packed(SourceLoader):
    """Finds and loads the modules of a package that are in a packed file; it is read when the first is asked for."""

    def __init__(self, package: str, path: str) -> None:
        self._package = package
        self._path = path

    def find_spec(self, fullname: str, path: Sequence[str] | None = None,
                  target: ModuleType | None = None) -> ModuleSpec | None:
        """The module, if the file has it."""
        if not fullname.startswith(self._package + "."):
            return None
        name = self._name(fullname)
        return None if name is None else spec_from_loader(fullname, self, is_package=name.endswith("/__init__.py"))

    def get_filename(self, fullname: str) -> str:
        """Where the module seems to lie: a path within the file."""
        name = self._name(fullname)
        if name is None:
            raise ImportError(f"{self._path} has no module {fullname}", name=fullname)
        return os.path.join(self._path, name)

    def get_data(self, path: bytes | str) -> bytes:
        """The source at a path that `get_filename` gave. Raises OSError for others."""
        name = os.path.relpath(os.fsdecode(path), self._path)
        if name not in self._sources:
            raise FileNotFoundError(path)
        return self._sources[name].encode()

    def _name(self, fullname: str) -> str | None:
        name = fullname[len(self._package) + 1:].replace(".", "/")
        return next((n for n in (f"{name}.py", f"{name}/__init__.py") if n in self._sources), None)

    @cached_property
    def _sources(self) -> dict[str, str]:
        try:
            with open(self._path, "rb") as file:
                found: dict[str, str] = json.loads(lzma.decompress(file.read()))
            return found
        except (lzma.LZMAError, EOFError, ValueError) as error:
            raise ImportError(f"{self._path} is damaged ({error}); install q8c again") from None
