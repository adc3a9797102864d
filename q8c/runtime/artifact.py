"""Opens a compiled file: every byte is checked before anything in it is used, and weights stay in the file's pages."""
from __future__ import annotations

import hashlib
import mmap
import os
import stat
import threading
from collections import deque
from functools import cached_property

import numpy as np
import numpy.typing as npt

from q8c.errors import ArtifactError
from q8c.runtime import cpu, header, strict_json
from q8c.runtime.header import Header
from q8c.runtime.manifest import Manifest
from q8c.runtime.memory import ask_huge_pages
from q8c.runtime.sections import CHUNK, Image, Section

_HASH_THREADS = 4
_PER_THREAD = 8 << 20  # bytes of hashing (some 5 ms) that make one more thread worth its start


class Artifact:
    """A compiled file that was opened and found whole. Its pages stay mapped read-only while this object lives.

    Never change a compiled file in place while it is open: write a new one and rename it, as the compiler does.
    """

    def __init__(self, path: str | os.PathLike[str], sha256: str | None = None) -> None:
        """Open and check the file. `sha256`, 64 hexadecimal digits, is what the whole file must hash to.

        Raises ArtifactError if it cannot be read, is not a compiled file, or differs in any byte from what the
        compiler wrote.
        """
        self.path = os.path.abspath(os.fsdecode(path))
        pin = None if sha256 is None else _checked_pin(sha256)
        self._map, self.size = _map(self.path)
        self._view = memoryview(self._map)
        head = Header.unpack(self._view[:header.SIZE].tobytes(), self.size)
        if head.manifest_size > strict_json.MAX_BYTES:
            raise ArtifactError(f"{self.path} has a manifest of {head.manifest_size} bytes, "
                                f"the longest allowed is {strict_json.MAX_BYTES}; compile the model again")
        text = self._view[head.manifest_offset:].tobytes()
        if hashlib.sha256(text).digest() != head.manifest_sha256:
            raise _damaged("manifest")
        self.digest = head.manifest_sha256
        self.manifest = Manifest.from_json(strict_json.loads(text))
        self._check_layout(head)
        if pin is None:
            self._check_sections()
        elif self.sha256 != pin:
            raise ArtifactError(f"{self.path} has SHA-256 {self.sha256}, expected {pin}: it is another file; "
                                "get the right one or drop the pin")

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the whole file, as `sha256sum` prints it."""
        self.require_whole()
        return hashlib.sha256(self._view).hexdigest()

    def require_whole(self) -> None:
        """Raise ArtifactError if the file was cut short in place since it was opened: to read what is gone would end
        the process. Costs a quarter of a microsecond."""
        if self._map.size() < self.size:
            raise ArtifactError(f"{self.path} was cut short from {self.size} to {self._map.size()} bytes while it was "
                                "open; load the file again once it is whole, and replace files by renaming")

    @cached_property
    def weights_address(self) -> int:
        """Where the weights section is mapped; valid while this object lives."""
        start: int = np.frombuffer(self._map, np.uint8).__array_interface__["data"][0]
        return start + self.manifest.weights.offset

    def ir(self, part: int = 0) -> str:
        """The final IR of a part as text. Raises ArtifactError if it is not UTF-8."""
        try:
            return self.read(self.manifest.parts[part].ir).decode("utf-8")
        except UnicodeDecodeError:
            raise ArtifactError(f"{self.path}: the IR is not UTF-8 text; compile the model again") from None

    def image(self, tier: str, part: int = 0) -> Image:
        """The manifest's entry for a part's code for a tier. Raises ArtifactError if the file has none."""
        images = self.manifest.parts[part].images
        for image in images:
            if image.tier == tier:
                return image
        raise ArtifactError(f"{self.path} has no code for tier {tier!r}; "
                            f"it has {', '.join(i.tier for i in images) or 'none'}")

    def read(self, section: Section) -> bytes:
        """A copy of a section's bytes."""
        self.require_whole()
        return self._view[section.offset:section.offset + section.size].tobytes()

    def constant(self, name: str, part: int = 0) -> npt.NDArray[np.generic]:
        """A part's constant as a read-only array over the file's pages. Raises ArtifactError if it has none of that
        name."""
        for constant in self.manifest.parts[part].constants:
            if constant.name == name:
                start = self.manifest.weights.offset + constant.offset
                raw = np.frombuffer(self._map, np.uint8, constant.nbytes, start)
                typed: npt.NDArray[np.generic] = raw.view(np.dtype(constant.dtype).newbyteorder("<"))
                return typed.reshape(constant.shape)
        raise ArtifactError(f"{self.path} has no constant {name!r}")

    def _sections(self) -> list[tuple[str, Section]]:
        parts = [[*((f"code for {i.tier}", i.section) for i in part.images), ("IR", part.ir)]
                 for part in self.manifest.parts]
        return [("weights", self.manifest.weights), *(section for part in parts for section in part)]

    def _check_layout(self, head: Header) -> None:
        """The sections must fill the file from the header to the manifest, with short gaps of zeros between them."""
        end = header.SIZE
        ordered = sorted(self._sections(), key=lambda s: (s[1].offset, s[1].size))
        manifest = Section(head.manifest_offset, head.manifest_size, ())
        for name, section in [*ordered, ("manifest", manifest)]:
            gap = self._view[end:max(end, section.offset)]
            if section.offset < end or gap.nbytes >= header.PAGE or any(gap):
                raise ArtifactError(f"{self.path}: the {name} section does not lie where it must; "
                                    "compile the model again")
            end = section.offset + section.size
        if end != self.size:
            raise ArtifactError(f"{self.path}: the sections do not fill the file; compile the model again")

    def _check_sections(self) -> None:
        """Hash every section, on several threads where that pays."""
        pieces: deque[tuple[str, int, int, str]] = deque()
        for name, section in self._sections():
            for index, digest in enumerate(section.sha256):
                start = section.offset + index * CHUNK
                pieces.append((name, start, min(start + CHUNK, section.offset + section.size), digest))
        damaged: list[str] = []

        def work() -> None:
            while True:
                try:
                    name, start, end, digest = pieces.popleft()
                except IndexError:
                    return
                if hashlib.sha256(self._view[start:end]).hexdigest() != digest:
                    damaged.append(name)

        wanted = min(cpu.count(), _HASH_THREADS, self.size // _PER_THREAD)
        helpers = [threading.Thread(target=work) for _ in range(wanted - 1)]
        for helper in helpers:
            helper.start()
        work()
        for helper in helpers:
            helper.join()
        if damaged:
            raise _damaged(f"{damaged[0]} section")


def _map(path: str) -> tuple[mmap.mmap, int]:
    """The file's bytes, mapped read-only, and how many. Devices and pipes are refused before they can block."""
    cpu.require_platform()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ArtifactError(f"{path} is not a regular file; give the path of a compiled model")
            if status.st_size == 0:
                raise ArtifactError(f"{path} is empty; compile the model again")
            memory = mmap.mmap(descriptor, status.st_size, mmap.MAP_PRIVATE, mmap.PROT_READ)
            ask_huge_pages(memory)  # of a file that is not in the system's cache yet; see `Writer` for one that is
            return memory, status.st_size
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot open {path!r}: {getattr(error, 'strerror', None) or error}") from error


def _checked_pin(sha256: str) -> str:
    digits = sha256.lower() if isinstance(sha256, str) else ""
    if len(digits) != 64 or not set(digits) <= set("0123456789abcdef"):
        raise ArtifactError(f"sha256 must be 64 hexadecimal digits, got {sha256!r}")
    return digits


def _damaged(what: str) -> ArtifactError:
    return ArtifactError(f"the file's {what} is damaged (its SHA-256 does not match); compile or copy the model again")
