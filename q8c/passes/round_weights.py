"""Round weights of products to what 4 bits hold."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from q8c.ir import q4, q8
from q8c.ir.graph import Graph
from q8c.ir.spill import release, spilled
from q8c.passes.fold_weights import FoldWeights, Names, weight_array, weight_shape
from q8c.passes.manager import Pass, Report
from q8c.passes.quantize_embeddings import embeddings, is_tied
from q8c.passes.rewrite import PRODUCTS


@dataclass(frozen=True)
class RoundWeights(Pass):
    """Replaces constant weights of products by the nearest of 16 steps, for each column and block of 32 steps of depth,
    as a file with 4-bit weights has them. `keep` names nodes of the model that stay float.
    """

    name: ClassVar[str] = "round-weights"
    lossy: ClassVar[bool] = True
    keep: Names = Names()

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether a weight was rounded."""
        changed = False
        candidates, tables = FoldWeights(keep=self.keep), [n.input(0).array() for n in embeddings(graph)]
        for node in [n for n in graph.nodes if n.op in PRODUCTS and candidates.reason_to_keep(n) is None]:
            weight = weight_array(node)
            if weight_shape(node)[0] % q4.DEPTH_STEP or is_tied(weight, tables):
                report.decline(node, f"its weight keeps 8 bits: its depth is no multiple of {q4.DEPTH_STEP}, or it is "
                                     "the table of embeddings as well")
                continue
            rounded = q4.round_weight(weight, q8.FORMATS[q4.KEPT_AS])
            release(weight)
            rounded = spilled(np.ascontiguousarray(rounded))
            graph.set_inputs(node, [node.input(0), graph.constant(rounded, node.input(1).name), *node.inputs[2:]])
            node.attrs.pop("transpose_b", None)
            report.rewrote(node, "weight rounded to 4 bits")
            changed = True
        graph.prune()
        return changed
