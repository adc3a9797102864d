"""What a compiled file says of a model: typed records, how each is written as JSON, and how strictly it is read back.

`Model` is what the compiler knows of the model and its calling convention. The words of a frame (the int64 array a run
passes to the code) are fixed by the counts in it.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from q8c.runtime import dims
from q8c.runtime.cache import Cache, read_cache
from q8c.runtime.dims import Program
from q8c.runtime.sections import MAX_RANK, read_dtype, unique
from q8c.runtime.strict_json import bad, integer, items, mapping, members, string

FRAME_STAMPS = 5
"""The frame word with the address of the run's stamps, int64 [threads][nodes][2], or 0."""
FRAME_ARGUMENTS = 9
"""First frame word after the fixed ones."""
MAX_TENSORS = 1 << 14
MAX_SYMBOLS = 1 << 10
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


def model_json(model: Model) -> dict[str, Any]:
    """A model as JSON values."""
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


def read_model(value: object, where: str) -> Model:
    """The model a JSON value stands for. Raises ArtifactError naming the first member that is wrong."""
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
    unique([t.name for t in model.inputs], f"{where}.inputs")
    unique(list(names), f"{where}.symbols")
    if frame != vars(model.frame) or model.frame.size > MAX_FRAME:
        raise bad(f"{where}.frame", f"the layout its counts give, of at most {MAX_FRAME} words", frame)
    return model


def _tensor(value: object, where: str, symbols: int) -> Tensor:
    name, dtype, shape, text, stretch = members(value, where, "name", "dtype", "shape", "text", "stretch")
    tensor = Tensor(
        string(name, f"{where}.name"), read_dtype(dtype, where),
        tuple(_program(p, at, symbols) for at, p in items(shape, f"{where}.shape", MAX_RANK)),
        tuple(string(t, at) for at, t in items(text, f"{where}.text", MAX_RANK)),
        tuple(integer(a, at, 0, len(shape) - 1) for at, a in items(stretch, f"{where}.stretch", MAX_RANK)))
    if len(tensor.text) != len(tensor.shape):
        raise bad(f"{where}.text", f"{len(tensor.shape)} strings", text)
    return tensor


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
