"""Which nodes a loop over rows can take, and the space of rows each works in."""
from __future__ import annotations

from q8c.ir.dims import Dim
from q8c.ir.graph import Graph, Node
from q8c.ir.ops import OPS

ROW_OPS = ("layer_norm", "rms_norm", "softmax", "dynamic_quantize", "reduce_sum", "reduce_mean", "reduce_max",
           "reduce_min", "reduce_prod")


def takes_rows(node: Node) -> bool:
    """Whether a node is elementwise, or works along the last axis and gives whole rows or one element per row."""
    definition = OPS.get(node.op)
    if definition is not None and definition.elementwise:
        return True
    if node.op not in ROW_OPS:
        return False
    rank = node.input(0).type.rank
    if node.op == "softmax":
        return node.attrs.get("axis", -1) in (-1, rank - 1)
    if node.op.startswith("reduce_"):
        return node.attrs["axes"] in ((-1,), (rank - 1,)) and node.attrs.get("keepdims", True) is True
    return True


def row_space(node: Node) -> tuple[Dim, ...]:
    """The rows (leading sizes) and row length (last size) a node goes over; empty for a scalar."""
    return node.output.shape if OPS[node.op].elementwise else node.input(0).shape


def join_spaces(graph: Graph, a: tuple[Dim, ...], b: tuple[Dim, ...]) -> tuple[Dim, ...] | None:
    """The space of one loop that goes over both, or None if there is none.

    The rows must be the same; the row lengths too, unless one has a single element per row.
    """
    if len(a) != len(b) or not all(graph.known_equal(x, y) for x, y in zip(a[:-1], b[:-1], strict=True)):
        return None
    if not a or b[-1] == 1 or graph.known_equal(a[-1], b[-1]):
        return a
    return b if a[-1] == 1 else None
