"""Computes at compile time what depends on constants only."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from q8c.errors import Error
from q8c.ir import Array, Graph, Node
from q8c.ir.interpret import run_node
from q8c.ir.nested import sizes_in
from q8c.ir.spill import release, spilled
from q8c.passes.manager import Pass, Report

KIB = 1024


@dataclass(frozen=True)
class FoldConstants(Pass):
    """f(constants) becomes a constant, computed by the op's reference.

    Declines results that are larger than `limit_kib` and than their operands together: a file must not grow by what
    a few bytes of code can make.
    """

    name: ClassVar[str] = "fold-constants"
    limit_kib: int = 16 * KIB

    def run(self, graph: Graph, report: Report) -> bool:
        """Replace every such node; whether there was any."""
        folded: set[Node] = set()
        for node in graph.nodes:
            if _is_static(node):
                reason = self._too_large(node)
                found = reason if reason else _evaluate(node)
                if isinstance(found, str):
                    report.decline(node, found)
                    continue
                for output, data in zip(node.outputs, found, strict=True):
                    constant = graph.constant(data, output.name)
                    graph.replace_uses(output, constant)
                    graph.constants[output.name] = graph.constants.pop(constant.name)
                    constant.name, output.name = output.name, constant.name
                folded.add(node)
        for node in folded:
            for value in node.operands:
                value.users.remove(node)
        graph.nodes = [n for n in graph.nodes if n not in folded]
        if folded:
            graph.constants = {n: v for n, v in graph.constants.items() if v.users or graph.is_output(v)}
        return bool(folded)

    def _too_large(self, node: Node) -> str | None:
        size = sum(v.type.nbytes for v in node.outputs)
        given = sum(v.type.nbytes for v in node.operands)
        assert isinstance(size, int) and isinstance(given, int)
        if size <= max(self.limit_kib * KIB, given):
            return None
        return f"the constant would take {size / KIB:.0f} KiB, expected at most {self.limit_kib}"


def _is_static(node: Node) -> bool:
    return node.body is None and all(v.data is not None for v in node.operands) and not any(
        sizes_in([*(v.shape for v in node.outputs), node.attrs.values()]))


def _evaluate(node: Node) -> list[Array] | str:
    """The node's results, or why there are none (an index out of range fails when the model runs, if it gets there)."""
    try:
        results = run_node(node, [None if v is None else v.array() for v in node.inputs], {})
    except Error as error:
        return f"its value cannot be computed: {error}"
    finally:
        for operand in node.operands:
            release(operand.array())
    return [spilled(np.ascontiguousarray(r).reshape(r.shape)) for r in results]
