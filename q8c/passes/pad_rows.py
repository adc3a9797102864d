"""Rows that lie whole pages apart, moved off them."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from q8c.ir.graph import Graph, Value
from q8c.ir.memory import CACHE_LINE
from q8c.passes.manager import Pass, Report

SET_BYTES = 4096
"""Lines so far apart compete for one set of the first-level cache (8 to 12 ways)."""


@dataclass(frozen=True)
class PadRows(Pass):
    """y = q8_linear(x) -> q8_linear(x) {pitch}, with rows one cache line further apart, where they would be whole pages
    apart and only loops read them.

    A product writes some columns of many rows at a time: lines that are whole pages apart do not stay in the cache
    until they are whole. On AMX 512 rows of 3072 columns took a quarter longer than those of 3040 or 3104; 128 rows,
    and products with `vpdpbusd`, take no less time.
    """

    name: ClassVar[str] = "pad-rows"

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether rows were moved apart."""
        found = [n for n in graph.nodes if n.op in ("q8_linear", "linear") and not n.attrs.get("pitch")
                 and in_step(n.output) and n.output.users and all(u.op == "loop" for u in n.output.users)
                 and not graph.is_output(n.output)]
        for node in found:
            size = node.output.shape[-1]
            assert isinstance(size, int)
            node.attrs["pitch"] = size + CACHE_LINE // node.output.dtype.itemsize
        return bool(found)


def in_step(value: Value) -> bool:
    """Whether a value's rows lie whole pages apart."""
    size = value.shape[-1]
    return isinstance(size, int) and size * value.dtype.itemsize % SET_BYTES == 0
