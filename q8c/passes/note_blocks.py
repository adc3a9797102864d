"""Remember which weights a file keeps in blocks, before they are balanced and merged."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from q8c.ir import q8
from q8c.ir.graph import Graph
from q8c.ir.spill import release
from q8c.passes.fold_weights import BLOCK_FORMAT, weight_array
from q8c.passes.manager import Pass, Report
from q8c.passes.rewrite import is_product

SMALLEST = 16
"""Steps of depth that share a scale in files at the least; two such blocks become one of 32, with 8 bits."""


@dataclass(frozen=True)
class NoteBlocks(Pass):
    """Changes nothing; puts the products whose weights are integers with a scale for each block into `found`."""

    name: ClassVar[str] = "note-blocks"
    found: set[str] = field(default_factory=set, repr=False, compare=False)

    def run(self, graph: Graph, report: Report) -> bool:
        """False."""
        for node in graph.nodes:
            if is_product(node):
                weight = weight_array(node)
                if any(q8.has_own_blocks(weight, block) for block in (q8.block_size(BLOCK_FORMAT), SMALLEST)):
                    self.found.update(node.source)
                release(weight)
        return False
