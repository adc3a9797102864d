"""What is computed token by token from all that a cache keeps."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from q8c.ir.dims import Dim, product
from q8c.ir.graph import Graph, Node, Value
from q8c.ir.ops.registry import OPS, attributes

_BY_ROW = frozenset({"matmul", "linear", "q8_linear", "q8_matmul", "dynamic_quantize", "dequantize", "rms_norm",
                     "layer_norm", "loop"})


def key_rows(graph: Graph) -> dict[Value, int]:
    """Values computed from what is `kept`, each with the axis along which a row follows from that token's row alone and
    from values that are none of these."""
    found: dict[Value, int] = {}
    for node in graph.nodes:
        if node.op == "kept":
            found[node.output] = 2
            continue
        rows = {v: found[v] for v in node.operands if v in found}
        sizes = {v.shape[axis] for v, axis in rows.items()}
        axes = [_only(value, size) for size in sizes for value in node.outputs]
        if len(sizes) == 1 and _keeps_rows(node, rows, axes):
            found.update((v, axis) for v, axis in zip(node.outputs, axes, strict=True) if axis is not None)
    return found


def _only(value: Value, size: Dim) -> int | None:
    """The one axis of a size."""
    axes = [i for i, d in enumerate(value.shape) if d == size]
    return axes[0] if len(axes) == 1 else None


def _keeps_rows(node: Node, rows: Mapping[Value, int], axes: Sequence[int | None]) -> bool:
    """Whether rows of results, along these axes, follow from the same rows of the operands."""
    if None in axes:
        return False
    first, (place, *_) = node.input(0), axes
    if node.op in ("transpose", "concat", "broadcast_to") or all(
            OPS[n.op].elementwise for n in ([node] if node.body is None else node.body.nodes)):
        return True
    if node.op == "slice":
        return bool(attributes(node)["steps"][place] == 1)
    if node.op == "reshape":
        return place is not None and product(first.shape[rows[first] + 1:]) == product(node.output.shape[place + 1:])
    along = [v for v in rows if rows[v] == v.type.rank - 1]  # a row op would go over all tokens
    if node.op == "loop":
        return not along
    by_float = node.op in ("matmul", "linear")  # in others the operands behind the first belong to its rows
    return node.op in _BY_ROW and first in rows and first not in along and not (by_float and node.input(1) in rows)
