"""The constants a compiled model carries, in the layout its kernels read."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from q8c.codegen import layout
from q8c.ir.graph import Graph, Node, Value, view_root
from q8c.ir.types import DType


@dataclass(frozen=True)
class Layout:
    """A way to lay a constant out: the packed shape of a plain shape, and the packing itself."""

    name: str
    shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    pack: Callable[[NDArray[Any]], NDArray[Any]]


_PLAIN = Layout("", lambda s: s, lambda a: a)
_Q8 = Layout("q8", lambda s: (layout.panels(s[1]), layout.groups(s[0]), layout.PANEL, layout.GROUP), layout.pack_q8)
_Q4 = Layout("q4", lambda s: (layout.panels(s[1]), layout.groups(s[0]) // 2, layout.PANEL, layout.GROUP),
             layout.pack_q4)
_F32 = Layout("f32", lambda s: (layout.panels(s[1]), s[0], layout.PANEL), layout.pack_f32)
_SCALES = Layout("scales", lambda s: (layout.panels(s[-1]), s[0] if len(s) == 2 else 1, layout.PANEL),
                 layout.pack_scales)
_SUMS = Layout("sums", _SCALES.shape, layout.pack_sums)
_COLS = Layout("cols", lambda s: (layout.panels(s[0]) * layout.PANEL,), layout.pad_cols)

_OPERAND_LAYOUTS: dict[str, dict[int, Layout]] = {
    "q8_linear": {3: _Q8, 4: _SCALES, 5: _COLS, 8: _SUMS, 9: _SCALES},
    "linear": {1: _F32, 2: _COLS},
    "lookup": {0: _Q8, 1: _SCALES},
}


@dataclass(frozen=True)
class Packed:
    """One tensor of the weights section: its name, dtype and packed shape, and what it is made from."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    value: Value
    layout: Layout

    def array(self) -> NDArray[Any]:
        """The packed elements. Raises CompileError where the graph was read without them."""
        return np.asarray(self.layout.pack(self.value.array()), order="C")  # a scalar stays one


def packed_name(node: Node | None, operand: int, value: Value) -> str:
    """The name under which an operand's constant is kept; a graph output (node None) is kept plain."""
    found = _layout(node, operand)
    return f"{value.name}:{found.name}" if found.name else value.name


def packed_constants(graph: Graph) -> list[Packed]:
    """Every constant in every layout some node reads, in order of first use; needs types only, no elements."""
    found: dict[str, Packed] = {}
    for node, operand, value in _uses(graph):
        name = packed_name(node, operand, value)
        if name not in found:
            chosen = _layout(node, operand)
            shape = chosen.shape(tuple(int(str(d)) for d in value.shape))
            found[name] = Packed(name, value.dtype, shape, value, chosen)
    return list(found.values())


def _uses(graph: Graph) -> Iterator[tuple[Node | None, int, Value]]:
    for node in graph.nodes:
        for operand, value in enumerate(node.inputs):
            if value is not None and view_root(value).is_constant:
                yield node, operand, view_root(value)
    for value in graph.outputs:
        if value.is_constant:
            yield None, 0, value


def _layout(node: Node | None, operand: int) -> Layout:
    found = _PLAIN if node is None else _OPERAND_LAYOUTS.get(node.op, {}).get(operand, _PLAIN)
    return _Q4 if found is _Q8 and node is not None and node.attrs.get("bits") == 4 else found
