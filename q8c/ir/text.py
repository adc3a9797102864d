"""Graphs as text a person can read and a test can write. `parse_graph` (in `parse`) is the inverse of `print_graph`.

    graph @mlp(%x: f32[batch, seq, 384]) {
      const %w: f32[384, 1536] = @w
      const %half: f32[] = 0.5
      %h: f32[batch, seq, 1536] = matmul(%x, %w) from "encoder/MatMul"
      return %h as "hidden"
    }

Constants of up to `INLINE_LIMIT` elements, and uniform ones, print their elements; others print as references to data
that is kept beside the text (`constant_data`). `@3` behind a type is the arena slot of the memory plan. Before the
constants may stand `assume seq == total`, sizes taken to be equal, and `count tokens of %mask`, a size that is how many
elements of an input are not 0, and `stretch %mask on 0`, an axis of an input that may be given as 1.
"""
from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from q8c.ir.graph import Array, Graph, Node, Value
from q8c.ir.types import DType

INLINE_LIMIT = 8
PLAIN_NAME = re.compile(r"[A-Za-z0-9_.]+")


def print_graph(graph: Graph) -> str:
    """The graph as text, ending in a newline."""
    head = ", ".join(f"{value_name(v)}: {v.type}" for v in graph.inputs)
    lines = [f"graph @{_word(graph.name)}({head}) {{", *_block(graph, "  ", top=True), "}"]
    return "\n".join(lines) + "\n"


def constant_data(graph: Graph) -> dict[str, Array]:
    """The elements of the constants that the text holds as references, by name."""
    return {n: v.data for n, v in graph.constants.items() if v.data is not None and not is_inline(v)}


def is_inline(value: Value) -> bool:
    """Whether a constant's elements are printed in the text."""
    data = value.data
    if data is None:
        return False
    return 0 < data.size <= INLINE_LIMIT or (data.size > 0 and _is_uniform(data))


def value_name(value: Value) -> str:
    """How a value is written, quoted if its name has unusual characters."""
    return f"%{_word(value.name)}"


def _word(name: str) -> str:
    return name if PLAIN_NAME.fullmatch(name) else json.dumps(name)


def _is_uniform(data: Array) -> bool:
    flat = data.reshape(-1)
    if flat.size > 1 and flat[0] != flat[1]:  # the usual case, without a pass over the data
        return False
    return bytes(flat[:1].tobytes()) * flat.size == flat.tobytes()


def _block(graph: Graph, indent: str, top: bool) -> Iterator[str]:
    if top:
        yield from (f"{indent}assume {a} == {b}" for a, b in graph.assumptions)
        yield from (f"{indent}count {name} of {value_name(v)}" for name, v in graph.counts.items())
        yield from (f"{indent}stretch {value_name(v)} on {', '.join(map(str, graph.stretches[v]))}"
                    for v in graph.inputs if v in graph.stretches)
    for value in graph.constants.values():
        yield f"{indent}const {value_name(value)}: {value.type} = {_constant(value)}"
    for node in graph.nodes:
        yield from _node(node, indent)
    results = []
    for value, name in zip(graph.outputs, graph.output_names, strict=True):
        results.append(value_name(value) + ("" if name == value.name else f" as {json.dumps(name)}"))
    yield f"{indent}return {', '.join(results)}"


def _node(node: Node, indent: str) -> Iterator[str]:
    results = ", ".join(f"{value_name(v)}: {v.type}" + ("" if v.slot is None else f" @{v.slot}") for v in node.outputs)
    while node.inputs and node.inputs[-1] is None:
        node.inputs.pop()
    operands = ", ".join("-" if v is None else value_name(v) for v in node.inputs)
    attrs = ", ".join(f"{k} = {print_attr(v)}" for k, v in node.attrs.items())
    line = f"{indent}{results} = {node.op}({operands})"
    line += f" {{{attrs}}}" if attrs else ""
    line += f" from {', '.join(map(json.dumps, node.source))}" if node.source else ""
    if node.body is None:
        yield line
        return
    parameters = ", ".join(f"{value_name(v)}: {v.type}" for v in node.body.inputs)
    yield f"{line} body({parameters}) {{"
    yield from _block(node.body, indent + "  ", top=False)
    yield indent + "}"


def _constant(value: Value) -> str:
    if not is_inline(value):
        return f"@{_word(value.name)}"
    data = value.array()
    flat = data.reshape(-1)
    if data.ndim == 0 or (data.size > 1 and _is_uniform(data)):
        return scalar_text(flat[0])
    return f"[{', '.join(map(scalar_text, flat))}]"


def scalar_text(x: Any) -> str:
    """The shortest text that reads back to the same element."""
    if isinstance(x, (bool, np.bool_)):
        return "true" if x else "false"
    if isinstance(x, (int, np.integer)):
        return str(int(x))
    text = repr(float(x)) if isinstance(x, float) else str(x)  # np.float64 is a float whose repr is not a number
    return text if any(c in text for c in ".en") else text + ".0"


def print_attr(value: Any) -> str:
    """An attribute's value as text."""
    if isinstance(value, tuple):
        return f"({', '.join(map(print_attr, value))})"
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, (bool, int, float)):
        return scalar_text(value)
    return value.name if isinstance(value, DType) else str(value)
