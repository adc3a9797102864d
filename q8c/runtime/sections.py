"""What lies where in a compiled file: sections of bytes, constants in the weights, images of code."""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from q8c.runtime.cpu import TIERS
from q8c.runtime.strict_json import bad, integer, items, mapping, members, string

DTYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
          "float16", "float32", "float64")
"""Element types a file may name, in numpy's spelling."""
ENTRIES = ("q8c_run", "q8c_worker", "q8c_launch")
"""Symbols every code image has."""
ALIGNMENT = 64
CHUNK = 4 << 20
"""Sections are hashed in pieces of this many bytes, so that several cores can check one."""
MAX_RANK = 32


@dataclass(frozen=True)
class Constant:
    """A tensor in the weights section, `offset` bytes from its start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Section:
    """A range of the file and the SHA-256 of each `CHUNK` bytes of it, in hexadecimal."""

    offset: int
    size: int
    sha256: tuple[str, ...]


@dataclass(frozen=True)
class Image:
    """The machine code of one tier: CPU features it uses beyond the tier's (LLVM's names), where its entries are."""

    tier: str
    features: tuple[str, ...]
    entries: Mapping[str, int]
    section: Section


def constant_layout(tensors: list[tuple[str, str, tuple[int, ...]]]) -> list[Constant]:
    """Where (name, dtype, shape) tensors lie in the weights section when written in this order, none in another."""
    placed: list[Constant] = []
    end = 0
    for name, dtype, shape in tensors:
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        placed.append(Constant(name, dtype, tuple(shape), end, nbytes))
        end += -(-nbytes // ALIGNMENT) * ALIGNMENT
    return placed


def image_json(image: Image) -> dict[str, Any]:
    """An image as JSON values."""
    return {"tier": image.tier, "features": list(image.features), "entries": dict(image.entries),
            "section": section_json(image.section)}


def section_json(section: Section) -> dict[str, Any]:
    """A section as JSON values."""
    return {"offset": section.offset, "size": section.size, "sha256": list(section.sha256)}


def read_dtype(value: object, where: str) -> str:
    """The element type a JSON value names, as all `read_` functions: ArtifactError for what is none."""
    if value not in DTYPES:
        raise bad(f"{where}.dtype", f"one of {', '.join(DTYPES)}", value)
    return str(value)


def read_constants(value: object, where: str, weights: int) -> tuple[Constant, ...]:
    """The constants of a part, in `weights` bytes; some may lie in others."""
    found = tuple(_constant(c, at, weights) for at, c in items(value, where))
    unique([c.name for c in found], where)
    return found


def _constant(value: object, where: str, weights: int) -> Constant:
    name, dtype, shape, offset, nbytes = members(value, where, "name", "dtype", "shape", "offset", "nbytes")
    constant = Constant(
        string(name, f"{where}.name"), read_dtype(dtype, where),
        tuple(integer(n, at) for at, n in items(shape, f"{where}.shape", MAX_RANK)),
        integer(offset, f"{where}.offset"), integer(nbytes, f"{where}.nbytes"))
    if constant.offset % ALIGNMENT or constant.offset + constant.nbytes > weights:
        raise bad(f"{where}.offset", f"a multiple of {ALIGNMENT} with {nbytes} bytes left in the section", offset)
    if math.prod(constant.shape) * np.dtype(constant.dtype).itemsize != constant.nbytes:
        raise bad(f"{where}.nbytes", "the size of its dtype and shape", nbytes)
    return constant


def read_image(value: object, where: str) -> Image:
    """The code of a tier."""
    tier, features, entries, section = members(value, where, "tier", "features", "entries", "section")
    if not isinstance(tier, str) or tier not in TIERS:
        raise bad(f"{where}.tier", f"one of {', '.join(TIERS)}", tier)
    image = Image(
        tier, tuple(string(f, at, 64) for at, f in items(features, f"{where}.features", 256)),
        {string(n, f"{where}.entries", 256): integer(o, f"{where}.entries.{n}")
         for n, o in mapping(entries, f"{where}.entries").items()},
        read_section(section, f"{where}.section"))
    if not set(ENTRIES) <= set(image.entries):
        raise bad(f"{where}.entries", f"an object with {', '.join(ENTRIES)}", ", ".join(image.entries)[:60])
    for name, offset in image.entries.items():
        integer(offset, f"{where}.entries.{name}", 0, image.section.size - 1)
    return image


def read_section(value: object, where: str) -> Section:
    """A section."""
    offset, size, sha256 = members(value, where, "offset", "size", "sha256")
    section = Section(integer(offset, f"{where}.offset"), integer(size, f"{where}.size"),
                      tuple(_digest(h, at) for at, h in items(sha256, f"{where}.sha256")))
    if section.offset % ALIGNMENT or len(section.sha256) != -(-section.size // CHUNK):
        raise bad(where, f"a section aligned to {ALIGNMENT} with a hash for every {CHUNK} bytes", value)
    return section


def _digest(value: object, where: str) -> str:
    if not isinstance(value, str) or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
        raise bad(where, "64 hexadecimal digits", value)
    return value


def unique(names: list[str], where: str) -> None:
    """Raise ArtifactError for names of which two are the same."""
    if len(set(names)) != len(names):
        raise bad(where, "without duplicate names", ", ".join(names))
