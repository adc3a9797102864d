"""The manifest of a compiled file: typed records, how each is written as JSON, and how strictly it is read back.

`Model` is what the compiler knows of the model and its calling convention; `Manifest` adds where everything lies in
the file. The words of a frame (the int64 array a run passes to the code) are fixed by the counts in `Model`.
"""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from q8c.runtime import dims
from q8c.runtime.cache import Cache, read_cache
from q8c.runtime.cpu import TIERS
from q8c.runtime.dims import Program
from q8c.runtime.strict_json import bad, integer, items, mapping, members, string

DTYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
          "float16", "float32", "float64")
"""Element types a file may name, in numpy's spelling."""
ENTRIES = ("q8c_run", "q8c_worker", "q8c_launch")
"""Symbols every code image has."""
ALIGNMENT = 64
CHUNK = 4 << 20
"""Sections are hashed in pieces of this many bytes, so that several cores can check one."""
FRAME_STAMPS = 5
"""The frame word with the address of the run's stamps, int64 [threads][nodes][2], or 0."""
FRAME_ARGUMENTS = 9
"""First frame word after the fixed ones."""
MAX_RANK = 32
MAX_TENSORS = 1024
MAX_SYMBOLS = 256
MAX_FRAME = 1 << 16


@dataclass(frozen=True)
class Tensor:
    """An input or output: `shape` as programs, `text` the same for people (`past + seq`). An input's axes in `stretch`
    may be given as 1."""

    name: str
    dtype: str
    shape: tuple[Program, ...]
    text: tuple[str, ...]
    stretch: tuple[int, ...] = ()


@dataclass(frozen=True)
class Constraint:
    """Two programs that must be equal at run time, and how to say so (`past + seq == total`)."""

    left: Program
    right: Program
    text: str


@dataclass(frozen=True)
class Count:
    """A symbol that no shape tells: how many elements of an input are not 0. Both by number."""

    symbol: int
    input: int


@dataclass(frozen=True)
class Node:
    """A node the code can name in a frame's status; `failure` may contain {detail}, the offending integer."""

    name: str
    op: str
    failure: str


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


@dataclass(frozen=True)
class Frame:
    """Where each part of a frame starts, in int64 words, and how long it is."""

    inputs: int
    outputs: int
    dims: int
    slots: int
    size: int


@dataclass(frozen=True)
class Model:
    """A compiled model's signature and calling convention, and what is worth knowing about how it was made.

    `counts` are the symbols found in what inputs hold, the others follow from their shapes. `dims` are the integers of
    the frame's dims table, `slots` the byte sizes of the arena's slots, `scratch` the bytes each thread needs beside
    them (unless it is the number 0, one more slot word says where they begin), `cost` is about how many nanoseconds a
    run takes on one core, `cache` is what grows in place. `options`, `tools` and `notes` are for people: any JSON.
    """

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    symbols: tuple[str, ...]
    counts: tuple[Count, ...] = ()
    dims: tuple[Program, ...] = ()
    slots: tuple[Program, ...] = ()
    scratch: Program = 0
    cost: Program = 0
    constraints: tuple[Constraint, ...] = ()
    cache: Cache | None = None
    nodes: tuple[Node, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    tools: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def frame(self) -> Frame:
        """The frame's layout: arguments, dims and slots one after the other."""
        outputs = FRAME_ARGUMENTS + len(self.inputs)
        dims = outputs + len(self.outputs)
        slots = dims + len(self.dims)
        return Frame(FRAME_ARGUMENTS, outputs, dims, slots, slots + len(self.slots) + (self.scratch != 0))


@dataclass(frozen=True)
class Manifest:
    """Everything a compiled file says about itself."""

    model: Model
    constants: tuple[Constant, ...]
    weights: Section
    ir: Section
    images: tuple[Image, ...]

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON values."""
        return {
            "model": _model_json(self.model),
            "constants": [vars(c) | {"shape": list(c.shape)} for c in self.constants],
            "weights": _section_json(self.weights),
            "ir": _section_json(self.ir),
            "images": [{"tier": i.tier, "features": list(i.features), "entries": dict(i.entries),
                        "section": _section_json(i.section)} for i in self.images],
        }

    @staticmethod
    def from_json(value: object) -> Manifest:
        """The manifest a JSON value stands for. Raises ArtifactError naming the first member that is wrong."""
        model, constants, weights, ir, images = members(
            value, "manifest", "model", "constants", "weights", "ir", "images")
        section = _section(weights, "manifest.weights")
        result = Manifest(
            _model(model, "manifest.model"),
            tuple(_constant(c, at, section.size) for at, c in items(constants, "manifest.constants")),
            section, _section(ir, "manifest.ir"),
            tuple(_image(i, at) for at, i in items(images, "manifest.images", len(TIERS))))
        _unique([c.name for c in result.constants], "manifest.constants")
        _unique([i.tier for i in result.images], "manifest.images")
        _disjoint(result.constants)
        return result


def constant_layout(tensors: list[tuple[str, str, tuple[int, ...]]]) -> list[Constant]:
    """Where (name, dtype, shape) tensors lie in the weights section when written in this order."""
    placed: list[Constant] = []
    end = 0
    for name, dtype, shape in tensors:
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        placed.append(Constant(name, dtype, tuple(shape), end, nbytes))
        end += -(-nbytes // ALIGNMENT) * ALIGNMENT
    return placed


def _model_json(model: Model) -> dict[str, Any]:
    return {
        "name": model.name, "symbols": list(model.symbols), "counts": [list(vars(c).values()) for c in model.counts],
        "inputs": [_tensor_json(t) for t in model.inputs], "outputs": [_tensor_json(t) for t in model.outputs],
        "dims": [dims.thaw(p) for p in model.dims], "slots": [dims.thaw(p) for p in model.slots],
        "scratch": dims.thaw(model.scratch), "cost": dims.thaw(model.cost),
        "frame": vars(model.frame),
        "constraints": [{"left": dims.thaw(c.left), "right": dims.thaw(c.right), "text": c.text}
                        for c in model.constraints],
        "cache": model.cache and model.cache.to_json(),
        "nodes": [[n.name, n.op, n.failure] for n in model.nodes],
        "options": dict(model.options), "tools": dict(model.tools), "notes": dict(model.notes),
    }


def _tensor_json(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": [dims.thaw(p) for p in tensor.shape],
            "text": list(tensor.text), "stretch": list(tensor.stretch)}


def _section_json(section: Section) -> dict[str, Any]:
    return {"offset": section.offset, "size": section.size, "sha256": list(section.sha256)}


def _model(value: object, where: str) -> Model:
    (name, inputs, outputs, symbols, counts, dim_table, slots, scratch, cost, frame, constraints, kept, nodes, options,
     tools, notes) = members(value, where, "name", "inputs", "outputs", "symbols", "counts", "dims", "slots", "scratch",
                             "cost", "frame", "constraints", "cache", "nodes", "options", "tools", "notes")
    names = tuple(string(s, at, 256) for at, s in items(symbols, f"{where}.symbols", MAX_SYMBOLS))
    count = len(names)
    given, made = (tuple(_tensor(t, at, count) for at, t in items(listed, f"{where}.{what}", MAX_TENSORS))
                   for what, listed in (("inputs", inputs), ("outputs", outputs)))
    model = Model(
        string(name, f"{where}.name"), given, made, names,
        tuple(_count(c, at, count, inputs) for at, c in items(counts, f"{where}.counts", MAX_SYMBOLS)),
        tuple(_program(p, at, count) for at, p in items(dim_table, f"{where}.dims", MAX_FRAME)),
        tuple(_program(p, at, count) for at, p in items(slots, f"{where}.slots", MAX_FRAME)),
        _program(scratch, f"{where}.scratch", count),
        _program(cost, f"{where}.cost", count),
        tuple(_constraint(c, at, count) for at, c in items(constraints, f"{where}.constraints", MAX_FRAME)),
        read_cache(kept, f"{where}.cache", given, made),
        tuple(_node(n, at) for at, n in items(nodes, f"{where}.nodes")),
        mapping(options, f"{where}.options"), mapping(tools, f"{where}.tools"), mapping(notes, f"{where}.notes"))
    for what, listed in (("inputs", [t.name for t in model.inputs]), ("outputs", [t.name for t in model.outputs]),
                         ("symbols", list(names))):
        _unique(listed, f"{where}.{what}")
    if frame != vars(model.frame) or model.frame.size > MAX_FRAME:
        raise bad(f"{where}.frame", f"the layout its counts give, of at most {MAX_FRAME} words", frame)
    return model


def _tensor(value: object, where: str, symbols: int) -> Tensor:
    name, dtype, shape, text, stretch = members(value, where, "name", "dtype", "shape", "text", "stretch")
    tensor = Tensor(
        string(name, f"{where}.name"), _dtype(dtype, where),
        tuple(_program(p, at, symbols) for at, p in items(shape, f"{where}.shape", MAX_RANK)),
        tuple(string(t, at) for at, t in items(text, f"{where}.text", MAX_RANK)),
        tuple(integer(a, at, 0, len(shape) - 1) for at, a in items(stretch, f"{where}.stretch", MAX_RANK)))
    if len(tensor.text) != len(tensor.shape):
        raise bad(f"{where}.text", f"{len(tensor.shape)} strings", text)
    return tensor


def _dtype(value: object, where: str) -> str:
    if value not in DTYPES:
        raise bad(f"{where}.dtype", f"one of {', '.join(DTYPES)}", value)
    return str(value)


def _program(value: object, where: str, symbols: int) -> Program:
    try:
        return dims.freeze(value, symbols)
    except ValueError as error:
        raise bad(where, f"a size expression ({error})", value) from None


def _constraint(value: object, where: str, symbols: int) -> Constraint:
    left, right, text = members(value, where, "left", "right", "text")
    return Constraint(_program(left, f"{where}.left", symbols), _program(right, f"{where}.right", symbols),
                      string(text, f"{where}.text"))


def _count(value: object, where: str, symbols: int, inputs: object) -> Count:
    parts = items(value, where, 2)
    if len(parts) != 2:
        raise bad(where, "[symbol, input]", value)
    assert isinstance(inputs, list)
    (symbol_at, symbol), (input_at, index) = parts
    return Count(integer(symbol, symbol_at, 0, symbols - 1), integer(index, input_at, 0, len(inputs) - 1))


def _node(value: object, where: str) -> Node:
    parts = items(value, where, 3)
    if len(parts) != 3:
        raise bad(where, "[name, op, failure]", value)
    return Node(*(string(part, at) for at, part in parts))


def _constant(value: object, where: str, weights: int) -> Constant:
    name, dtype, shape, offset, nbytes = members(value, where, "name", "dtype", "shape", "offset", "nbytes")
    constant = Constant(
        string(name, f"{where}.name"), _dtype(dtype, where),
        tuple(integer(n, at) for at, n in items(shape, f"{where}.shape", MAX_RANK)),
        integer(offset, f"{where}.offset"), integer(nbytes, f"{where}.nbytes"))
    if constant.offset % ALIGNMENT or constant.offset + constant.nbytes > weights:
        raise bad(f"{where}.offset", f"a multiple of {ALIGNMENT} with {nbytes} bytes left in the section", offset)
    if math.prod(constant.shape) * np.dtype(constant.dtype).itemsize != constant.nbytes:
        raise bad(f"{where}.nbytes", "the size of its dtype and shape", nbytes)
    return constant


def _image(value: object, where: str) -> Image:
    tier, features, entries, section = members(value, where, "tier", "features", "entries", "section")
    if not isinstance(tier, str) or tier not in TIERS:
        raise bad(f"{where}.tier", f"one of {', '.join(TIERS)}", tier)
    image = Image(
        tier, tuple(string(f, at, 64) for at, f in items(features, f"{where}.features", 256)),
        {string(n, f"{where}.entries", 256): integer(o, f"{where}.entries.{n}")
         for n, o in mapping(entries, f"{where}.entries").items()},
        _section(section, f"{where}.section"))
    if not set(ENTRIES) <= set(image.entries):
        raise bad(f"{where}.entries", f"an object with {', '.join(ENTRIES)}", ", ".join(image.entries)[:60])
    for name, offset in image.entries.items():
        integer(offset, f"{where}.entries.{name}", 0, image.section.size - 1)
    return image


def _section(value: object, where: str) -> Section:
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


def _unique(names: list[str], where: str) -> None:
    if len(set(names)) != len(names):
        raise bad(where, "without duplicate names", ", ".join(names))


def _disjoint(constants: tuple[Constant, ...]) -> None:
    end = 0
    for constant in sorted(constants, key=lambda c: (c.offset, c.nbytes)):
        if constant.offset < end:
            raise bad(f"constant {constant.name}", "clear of the constant before it", constant.offset)
        end = constant.offset + constant.nbytes
