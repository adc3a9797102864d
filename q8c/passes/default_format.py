"""The format of weights where none is asked for."""
from __future__ import annotations

from q8c.ir import q4, q8
from q8c.ir.graph import Graph, Node
from q8c.passes.rules import attr

DEFAULT = "default"
"""Names `q8-block32` for decoders and `q8-channel` for other models.

Each token of a decoder is chosen from what all before it left, so that errors add up; and where it computes one token
at a time, the time goes into reading weights, of which scales per block are a sixteenth more.
"""


def check_format(name: str) -> None:
    """Raise CompileError for a name that is neither a format's nor `default` nor that of weights rounded to 4 bits."""
    if name not in (DEFAULT, q4.FORMAT):
        q8.block_size(name)


def format_for(graph: Graph, name: str) -> str:
    """A format's name, `default` replaced by the one for this graph, and that of 4 bits by the one that keeps them."""
    if name != DEFAULT:
        return q4.KEPT_AS if name == q4.FORMAT else name
    return "q8-block32" if any(decodes(graph, node) for node in graph.nodes) else "q8-channel"


def decodes(graph: Graph, node: Node) -> bool:
    """Whether a node shows that a model writes one token after the other: attention that sees no later ones, or keys
    and values of earlier ones, an input, that are put before new ones and returned."""
    if node.op == "attention":
        return bool(attr(node, "causal"))
    if node.op not in ("concat", "append"):
        return False
    return node.output.type.rank == 4 and node.input(0) in graph.inputs and graph.is_output(node.output)
