"""What the passes that rewrite by hand share: readers, replacement, shapes of constants."""
from __future__ import annotations

from collections.abc import Iterable

from q8c.ir.graph import Array, Graph, Node, Value
from q8c.ir.types import DType

PRODUCTS = ("matmul", "expert_matmul")
"""Float products whose weights may be quantized: of rows with a matrix, and with that of each row's expert."""


def sources(nodes: Iterable[Node]) -> tuple[str, ...]:
    """The names of the model's nodes that any of the nodes stand for, each once, in order."""
    return tuple(dict.fromkeys(name for node in nodes for name in node.source))


def sole_reader(graph: Graph, value: Value) -> Node | None:
    """The one node that reads a value, None if there are more, or none, or the graph returns it."""
    return value.users[0] if len(value.users) == 1 and not graph.is_output(value) else None


def substitute(graph: Graph, old: Value, new: Value) -> None:
    """Make every reader of `old` read `new`, which takes over its name."""
    graph.replace_uses(old, new)
    old.name, new.name = new.name, old.name


def vector(value: Value, size: int) -> bool:
    """Whether a value is a constant that broadcasts as f32[size] (or a scalar) along the last axis."""
    if not value.is_constant or not value.dtype.is_float:
        return False
    return value.shape[-1:] in ((size,), (1,), ()) and all(d == 1 for d in value.shape[:-1])


def is_uniform(data: Array) -> bool:
    """Whether an array has elements and all of them are the same bits."""
    flat = data.reshape(-1)
    if flat.size == 0 or bool(flat[0] != flat[-1]):  # the usual case, without a pass over the data
        return False
    return flat[:1].tobytes() * flat.size == flat.tobytes()


def is_product(node: Node) -> bool:
    """Whether a node is a float product with one constant matrix, which has elements."""
    if node.op != "matmul" or node.input(0).dtype is not DType.f32:
        return False
    x, w = node.input(0), node.input(1)
    return w.is_constant and w.type.size != 0 and x.type.rank >= w.type.rank and all(d == 1 for d in w.shape[:-2])


def is_linear(node: Node) -> bool:
    """Whether a node is a product with one constant matrix, or with the columns of it that are a row's expert's."""
    return is_product(node) or node.op == "expert_matmul"


def other_operand(add: Node, value: Value) -> Value:
    """What is added to a value."""
    return add.input(1) if add.input(0) is value else add.input(0)
