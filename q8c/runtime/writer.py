"""Writes a compiled file: constants as they come, then the code and the IR's text of its parts, then the manifest."""
from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from q8c.errors import ArtifactError
from q8c.runtime import strict_json
from q8c.runtime.atomic import replacing
from q8c.runtime.header import PAGE, SIZE, Header
from q8c.runtime.manifest import Choice, Manifest, Part
from q8c.runtime.memory import HUGE_PAGE
from q8c.runtime.model import Model
from q8c.runtime.planner import Planner
from q8c.runtime.sections import ALIGNMENT, CHUNK, Constant, Image, Section, constant_layout

Bytes = bytes | memoryview


class Writer:
    """A compiled file in the making; used in a `with` block, which leaves a file only if `finish` was called in it.

        with Writer("model.q8c") as writer:
            constants = [writer.constant(name, array) for name, array in weights]
            image = writer.image("avx2", features, code, entries)
            writer.finish([writer.part(model, constants, [image], ir_text)])

    Constants come first, so that memory never holds more than one. One whose bytes are there already, or of three axes
    or more, as packed weights are, some of the panels of another, is not written again. The same calls write the same
    bytes.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fsdecode(path)
        self._stack = ExitStack()
        self._places: dict[bytes, list[int]] = {}  # of a panel, by its digest
        self._panels: dict[int, bytes] = {}
        self._weights: Section | None = None
        self._finished = False

    def __enter__(self) -> Writer:
        try:
            self._file: BinaryIO = self._stack.enter_context(replacing(self._path))
        except OSError as error:
            raise self._failure(error) from error
        self._block = bytearray(PAGE)
        self._section = _Section(PAGE)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        if error is None and not self._finished:
            kind, error = _Abandoned, _Abandoned()
        try:
            self._stack.__exit__(kind, error, traceback)
        except OSError as problem:
            raise self._failure(problem) from problem

    def constant(self, name: str, array: npt.NDArray[np.generic]) -> Constant:
        """Append a tensor, little-endian and dense, unless its bytes are there, and say where it lies."""
        if self._weights is not None:
            raise ArtifactError(f"constant {name!r} comes after code was written")
        array = np.asarray(array, array.dtype.newbyteorder("<"), order="C")
        placed = constant_layout([(name, array.dtype.name, array.shape)])[0]
        apart = array.ndim > 2 and array.nbytes > 0 and array[0].nbytes % ALIGNMENT == 0
        panels = [panel.reshape(-1).view(np.uint8) for panel in (array if apart else [array])]
        digests = [hashlib.sha256(panel.data).digest() for panel in panels]
        for start in self._places.get(digests[0], ()):
            if all(self._panels.get(start + i * panels[0].nbytes) == digest for i, digest in enumerate(digests)):
                return replace(placed, offset=start)
        start = -(-self._section.size // ALIGNMENT) * ALIGNMENT
        self._write(bytes(start - self._section.size))
        for panel, digest in zip(panels, digests, strict=True):
            self._places.setdefault(digest, []).append(self._section.size)
            self._panels[self._section.size] = digest
            self._write(panel.data)
        return replace(placed, offset=start)

    def image(self, tier: str, features: Iterable[str], code: bytes, entries: Mapping[str, int]) -> Image:
        """Append a code image for a tier; `features` are those it uses beyond the tier's own, in LLVM's names."""
        self._close_weights()
        self._write(code)
        return Image(tier, tuple(sorted(features)), dict(sorted(entries.items())), self._next_section())

    def part(self, model: Model, constants: Iterable[Constant], images: Iterable[Image], ir: str,
             when: str = "") -> Part:
        """Append the IR's text of a part, and return all the manifest says of it."""
        self._close_weights()
        self._write(ir.encode("utf-8"))
        return Part(when, model, tuple(constants), self._next_section(), tuple(images))

    def finish(self, parts: Sequence[Part], choice: Choice = 0) -> None:
        """Write the manifest. Raises ArtifactError if no session could be made of it."""
        text = strict_json.dumps(Manifest(tuple(parts), choice, self._close_weights()).to_json())
        for part in Manifest.from_json(strict_json.loads(text)).parts:
            Planner(part.model)
        offset = self._section.offset
        self._write(text)
        header = Header(offset, len(text), offset + len(text), hashlib.sha256(text).digest())
        self._flush()
        try:
            self._file.seek(0)
            self._file.write(header.pack().ljust(SIZE, b"\0"))
        except OSError as error:
            raise self._failure(error) from error
        self._finished = True

    def _close_weights(self) -> Section:
        if self._weights is None:
            self._weights = self._next_section()
        return self._weights

    def _next_section(self) -> Section:
        """End the section being written and start another at the next aligned offset."""
        done = self._section.done()
        end = done.offset + done.size
        start = -(-end // ALIGNMENT) * ALIGNMENT
        self._write(bytes(start - end))
        self._section = _Section(start)
        return done

    def _write(self, data: Bytes) -> None:
        """In blocks of a huge page each, which Linux then keeps and maps as such where its file system can: a step of
        decoding took 8 percent less time, 64 tokens of a prompt 6."""
        view = memoryview(data)
        self._section.update(view)
        while view.nbytes:
            part = view[:HUGE_PAGE - len(self._block)]
            self._block += part
            view = view[part.nbytes:]
            if len(self._block) == HUGE_PAGE:
                self._flush()

    def _flush(self) -> None:
        try:
            self._file.write(self._block)
        except OSError as error:
            raise self._failure(error) from error
        self._block = bytearray()

    def _failure(self, error: OSError) -> ArtifactError:
        return ArtifactError(f"cannot write {self._path!r}: {error.strerror or error}; nothing was left there")


class _Abandoned(Exception):
    """Makes the file vanish when its block ends without `finish`."""


class _Section:
    """A section being written: its place and the hashes of its chunks so far."""

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.size = 0
        self._digests: list[str] = []
        self._hash = hashlib.sha256()

    def update(self, view: memoryview) -> None:
        """Take in the bytes that were appended."""
        while view.nbytes:
            part = view[:CHUNK - self.size % CHUNK]
            self._hash.update(part)
            self.size += part.nbytes
            view = view[part.nbytes:]
            if self.size % CHUNK == 0:
                self._digests.append(self._hash.hexdigest())
                self._hash = hashlib.sha256()

    def done(self) -> Section:
        """The finished section."""
        rest = [self._hash.hexdigest()] if self.size % CHUNK else []
        return Section(self.offset, self.size, (*self._digests, *rest))
