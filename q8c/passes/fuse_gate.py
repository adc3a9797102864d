"""Gates of a feed-forward network, such as SwiGLU, in the registers of their product."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from q8c.ir.graph import Graph, Node, Value
from q8c.ir.ops.fused import GATE_COLS
from q8c.ir.spill import assembled, release
from q8c.passes.manager import Pass, Report
from q8c.passes.merge_matmuls import ACTIVATIONS
from q8c.passes.rewrite import sole_reader, sources, substitute
from q8c.passes.rules import attr

OF_COLUMNS = (3, 4, 5, 8)
"""The operands of q8_linear that have the weight's columns last."""
RESIDUAL = 6


class Gate(NamedTuple):
    """activation(one half of a product) * the other: the nodes from the slices on, and which half is activated."""

    nodes: list[Node]
    activation: str
    first: int


@dataclass(frozen=True)
class FuseGate(Pass):
    """y = q8_linear(x), act(y[..., :n]) * y[..., n:] -> q8_linear(x) {activation = act, gated}, and the other way
    around, with the columns of both halves in turns.

    Half of what the product gave is never written, nor read again.
    """

    name: ClassVar[str] = "fuse-gate"

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether a gate was fused."""
        changed = False
        for node in list(graph.nodes):
            if node.op == "q8_linear" and is_plain(node):
                found = gate_behind(graph, node)
                if isinstance(found, str):
                    report.decline(node, found)
                elif found is not None:
                    fuse(graph, node, found, report)
                    changed = True
        if changed:
            graph.prune()
        return changed


def is_plain(node: Node) -> bool:
    """Whether nothing but a bias is done to a product, of which all rows have all columns."""
    more = [v for n, v in enumerate(node.inputs) if n == RESIDUAL or n > max(OF_COLUMNS)]
    return attr(node, "activation") == "none" and not any(more)


def gate_behind(graph: Graph, product: Node) -> Gate | str | None:
    """The gate that reads all of a product, why it stays apart, or None if there is none."""
    result, readers = product.output, list(product.output.users)
    if graph.is_output(result) or len(readers) != 2 or any(n.op != "slice" for n in readers):
        return None
    cols = int(str(result.shape[-1]))
    halves = sorted(readers, key=lambda n: int(str(attr(n, "starts")[-1])))
    lead = (0,) * (result.type.rank - 1)
    for place, part in enumerate(halves):
        if attr(part, "starts") != (*lead, place * cols // 2) or set(attr(part, "steps")) != {1} \
                or part.output.shape != (*result.shape[:-1], cols // 2):
            return None
    ends = [sole_reader(graph, part.output) for part in halves]
    activations = [end for end in ends if end is not None and end.op in ACTIVATIONS]
    if len(activations) == 1:
        first = ends.index(activations[0])
        ends[first] = sole_reader(graph, activations[0].output)
    else:
        first = 0
    end = ends[0]
    if end is None or ends[1] is not end or end.op != "mul" or len(activations) > 1:
        return None
    if cols % (2 * GATE_COLS):
        return f"the gate behind it has {cols // 2} columns, not a multiple of {GATE_COLS}"
    return Gate([*halves, *activations, end], name_of(activations), first)


def name_of(activations: list[Node]) -> str:
    """The name a linear op has for an activation."""
    if not activations:
        return "none"
    node = activations[0]
    return "gelu_tanh" if node.op == "gelu" and attr(node, "approximate") == "tanh" else node.op


def fuse(graph: Graph, product: Node, found: Gate, report: Report) -> None:
    """Replace a product and its gate by one node, put where the gate stands."""
    cols, end = int(str(product.output.shape[-1])), found.nodes[-1]
    order = in_turns(cols, found.first)
    inputs = [v if v is None or n not in OF_COLUMNS else in_order(graph, v, order)
              for n, v in enumerate(product.inputs)]
    attrs = {**product.attrs, "activation": found.activation, "gated": True}
    node = graph.add("q8_linear", inputs, attrs, source=sources([product, *found.nodes]), before=end)
    node.output.type = end.output.type
    substitute(graph, end.output, node.output)
    report.rewrote(node, " + ".join(n.op for n in found.nodes))


def in_turns(cols: int, first: int) -> NDArray[np.intp]:
    """The columns of two halves, GATE_COLS of each in turn; those of half `first` come first."""
    halves = np.arange(cols).reshape(2, -1, GATE_COLS)
    return np.stack([halves[first], halves[1 - first]], axis=1).reshape(-1)


def in_order(graph: Graph, value: Value, order: NDArray[np.intp]) -> Value:
    """A constant with its columns in another order."""
    data = value.array()
    if data.ndim == 1:
        return graph.constant(np.ascontiguousarray(data[order]), f"{value.name}.turns")
    made = graph.constant(assembled(len(data), lambda rows: data[rows][:, order]), f"{value.name}.turns")
    release(data)
    return made
