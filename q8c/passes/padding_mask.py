"""The input that says which positions of a batch are tokens and which are padding."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from q8c.errors import OptionError
from q8c.ir.dims import Dim, as_symbol, evaluate, symbols
from q8c.ir.graph import Array, Graph, Node, Value
from q8c.ir.interpret import run_node
from q8c.passes.row_layout import ROWS, Layouts, aligned

PADDED = -1e4
"""What exporters add to a score that shall count for nothing is this at most; exp() of it is 0."""


@dataclass(frozen=True)
class PaddingMask:
    """A graph input [batch, seq] that is not 0 where there is a token."""

    input: Value
    batch: Dim
    seq: Dim


def find_mask(graph: Graph, attention: Node, name: str) -> PaddingMask | str:
    """The padding mask of an attention, or why there is none it can be shown to be.

    Its mask [batch, 1, 1, seq] must be computed element by element from one input [batch, seq] (the one of that name,
    if `name` is not empty), 0 where that is 1 and at most `PADDED` where it is 0.
    """
    if name and all(v.name != name for v in graph.inputs):
        raise OptionError(f"pack-rows: the model has no input {name!r}; its inputs are "
                           f"{', '.join(v.name for v in graph.inputs)}")
    if any(v is not None for v in attention.inputs[4:]):
        return "it has a mask of keys or lengths"
    mask = attention.inputs[3] if len(attention.inputs) > 3 else None
    if mask is None:
        return "its keys are not masked, so that it would miss the padding"
    path, inputs = _origin(graph, mask)
    if len(inputs) != 1 or (name and inputs[0].name != name):
        return f"its mask is computed from {_names(inputs)}, not from {name or 'one input'} alone"
    source = inputs[0]
    if source.type.rank != 2:
        return f"its mask comes from {source!r}, expected [batch, seq]"
    found = PaddingMask(source, *source.shape)
    layouts = Layouts(graph, found.batch, found.seq, {source: ROWS})
    for node in path:
        layout = _elementwise(layouts, node)
        if layout is None:
            return f"its mask is not computed from %{source.name} element by element ({node})"
        layouts.found[node.output] = layout
    if layouts.found[mask] != (0, 3) or mask.shape[1:3] != (1, 1):
        return f"its mask {mask!r} differs from head to head or from query to query"
    return _check_values(found, mask, path) or found


def _origin(graph: Graph, value: Value) -> tuple[list[Node], list[Value]]:
    """The nodes that compute a value, in order, and the inputs they compute it from."""
    needed, waiting = {value}, [value]
    while waiting:
        node = waiting.pop().producer
        new = [] if node is None else [v for v in node.operands if v not in needed]
        needed.update(new)
        waiting.extend(new)
    return [n for n in graph.nodes if needed & set(n.outputs)], [v for v in graph.inputs if v in needed]


def _elementwise(layouts: Layouts, node: Node) -> tuple[int, int] | None:
    """The layout of a node's result, if its other operands are the same for all rows."""
    layout = layouts.after(node)
    rank = node.output.type.rank
    others = [v for v in node.operands if v not in layouts.found]
    if layout is None or any(not v.is_constant or aligned(v, axis, rank) != 1 for v in others for axis in layout):
        return None
    return layout


def _check_values(found: PaddingMask, mask: Value, path: Sequence[Node]) -> str:
    """Why the mask's numbers are not those of a padding mask, empty if they are."""
    names = {as_symbol(found.batch): 2, as_symbol(found.seq): 6}
    sizes = {name: size for name, size in names.items() if name is not None}
    if {s for n in [found.input, *(n.output for n in path)] for d in n.shape for s in symbols(d)} - set(sizes):
        return f"its mask has sizes other than those of {found.input!r}"
    batch, seq = evaluate(found.batch, sizes), evaluate(found.seq, sizes)
    elements = np.arange(batch * seq).reshape(batch, seq) % 2
    arrays: dict[Value, Array] = {found.input: elements.astype(found.input.dtype.numpy)}
    for node in path:
        args = [None if v is None else v.array() if v.is_constant else arrays[v] for v in node.inputs]
        arrays.update(zip(node.outputs, run_node(node, args, sizes), strict=True))
    there = np.broadcast_to((elements != 0)[:, None, None, :], arrays[mask].shape)
    kept, padded = arrays[mask][there], arrays[mask][~there]
    if kept.any():
        return f"its mask adds {kept[kept != 0][0]:g} where %{found.input.name} is 1, expected 0"
    if not (padded <= PADDED).all():
        return f"its mask adds {padded.max():g} where %{found.input.name} is 0, expected {PADDED:g} or less"
    return ""


def _names(values: Sequence[Value]) -> str:
    return " and ".join(v.name for v in values) or "no input"
