"""Common subexpression elimination, over constants and nodes."""
from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from q8c.ir import Array, Graph, Node, Value
from q8c.ir.ops import attributes
from q8c.ir.spill import release
from q8c.passes.manager import Pass, Report

COMMUTATIVE = frozenset({"add", "mul", "min", "max", "equal", "and", "or", "xor"})
_SAMPLES = 16


@dataclass(frozen=True)
class ShareCommon(Pass):
    """Keeps the first of constants with equal elements and of nodes with equal op, operands and attributes."""

    name: ClassVar[str] = "share-common"

    def run(self, graph: Graph, report: Report) -> bool:
        """Merge equals; whether there were any."""
        constants = _share_constants(graph)
        return _share_nodes(graph) or constants


def _share_constants(graph: Graph) -> bool:
    known: dict[Hashable, list[Value]] = {}
    kept: dict[str, Value] = {}
    for name, value in graph.constants.items():
        data = value.data
        group = [] if data is None else known.setdefault((value.type, _sample(data)), [])
        first = next((v for v in group if data is not None and _same_bits(v.array(), data)), None)
        for read in (data, None if first is None else first.data):
            if read is not None:
                release(read)
        if first is None:
            kept[name] = value
            group.append(value)
        else:
            graph.replace_uses(value, first)
    changed = len(kept) != len(graph.constants)
    graph.constants = kept
    return changed


def _sample(data: Array) -> bytes:
    """A few elements: enough to tell most constants apart without reading them."""
    flat = data.reshape(-1)
    return flat[::max(1, flat.size // _SAMPLES)].tobytes()


def _same_bits(a: Array, b: Array) -> bool:
    """Equality of bits: 0.0 is not -0.0, and NaN is itself."""
    if a is b or a.size == 0:
        return True
    x, y = (np.ascontiguousarray(v).reshape(-1).view(np.uint8) for v in (a, b))
    return bool(np.array_equal(x, y))


def _share_nodes(graph: Graph) -> bool:
    known: dict[Hashable, Node] = {}
    shared: set[Node] = set()
    for node in graph.nodes:
        if node.body is not None:
            continue
        operands = [id(v) for v in node.inputs]
        if node.op in COMMUTATIVE:
            operands.sort()
        first = known.setdefault((node.op, tuple(operands), tuple(sorted(attributes(node).items()))), node)
        if first is not node:
            first.source = tuple(dict.fromkeys(first.source + node.source))
            for old, new in zip(node.outputs, first.outputs, strict=True):
                graph.replace_uses(old, new)
            for value in node.operands:
                value.users.remove(node)
            shared.add(node)
    graph.nodes = [n for n in graph.nodes if n not in shared]
    return bool(shared)
