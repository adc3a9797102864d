"""How many bytes values and arena slots take when the compiled code runs."""
from __future__ import annotations

from q8c.ir.dims import Dim, Expr, dim_max, floordiv, product
from q8c.ir.graph import Graph, Node, Value
from q8c.ir.types import DType

ROW_GROUP = 4   # kernels read R8 rows in dwords, so an int8 row is padded to a multiple of this
CACHE_LINE = 64
CAPACITY = Expr({("$capacity",): 1})
"""How many tokens the caller's buffers of kept keys and values have room for: the run time says it, no shape does. Its
name is no identifier, so that no size of a model is taken for it."""

WIDE_TILE = 32
"""Wide rows that code reads at a time, as many as there are or not: behind the last one there is room for more."""
KEPT_TOKENS = 16
"""Tokens whose keys lie by turns where they are kept in 8 bits: [capacity / 16][size][16] for each head."""
KEPT_STEP = 64
"""Where rows are kept in 8 bits, the capacity is a multiple of so many tokens."""
SCALE_BYTES = 4
"""Of a row that is kept in 8 bits. A head has its rows, then their scales in float32."""


def stored_bytes(value: Value) -> Dim:
    """Bytes a value takes in the arena: dense, but for int8 rows, which are `r8_pitch` apart, and those with a
    `row_pitch`."""
    shape = value.shape
    if value.dtype is DType.i8 and shape:
        return (product(shape[:-1]) + (WIDE_TILE - 1) * is_wide(value)) * r8_pitch(value)
    pitch = row_pitch(value)
    return product(shape[:-1]) * pitch * value.dtype.itemsize if pitch else value.type.nbytes


def row_pitch(value: Value) -> int:
    """Elements from one row of a value to the next where it lies, if they are more than the row has (pad-rows); else
    0."""
    pitch = value.producer.attrs.get("pitch", 0) if value.producer is not None else 0
    return int(str(pitch))


def r8_pitch(value: Value) -> Dim:
    """Bytes from one int8 row of a value to the next where it lies: whole dwords, or `wide_pitch`."""
    depth = value.shape[-1]
    return wide_pitch(depth) if is_wide(value) and isinstance(depth, int) else round_up(depth, ROW_GROUP)


def wide_pitch(depth: int) -> int:
    """Bytes from one wide row to the next: as many lines as bfloat16 takes, and an odd number of them, so that those of
    neighbouring rows do not compete for a set of the first-level cache."""
    return CACHE_LINE * (-(-2 * depth // CACHE_LINE) | 1)


def is_wide(value: Value) -> bool:
    """Whether int8 rows lie `wide_pitch` apart: code may leave them there in bfloat16 instead (widen-rows)."""
    node = value.producer
    if node is not None and node.body is not None:
        node = node.body.outputs[node.outputs.index(value)].producer
    return value.dtype is DType.i8 and node is not None and bool(node.attrs.get("wide"))


def rows_held(value: Value) -> Dim:
    """Rows from one head to the next where a value [batch, heads, rows, size] lies: the capacity, if it is a cache that
    grows in place."""
    return CAPACITY if _grows(value) else value.shape[-2]


def kept_in_bytes(value: Value) -> bool:
    """Whether a value [batch, heads, rows, size] lies in 8 bits, as a cache that grows in place may."""
    node = _grows(value)
    return node is not None and node.attrs.get("format", "f32") != "f32"


def row_bytes(value: Value) -> int:
    """Bytes of a row of floats [..., size] where it lies; its size is fixed."""
    size = value.shape[-1]
    assert isinstance(size, int)
    return size + SCALE_BYTES if kept_in_bytes(value) else size * value.dtype.itemsize


def _grows(value: Value) -> Node | None:
    """The append in place that a value comes from."""
    node = value.producer
    return node if node is not None and node.op == "append" and node.attrs.get("in_place") else None


def round_up(size: Dim, unit: int) -> Dim:
    """The smallest multiple of `unit` that is not below `size`."""
    return floordiv(size + (unit - 1), unit) * unit


def slot_sizes(graph: Graph) -> list[Dim]:
    """The size in bytes of every arena slot, a multiple of the cache line, for the slots a memory plan gave.

    A slot holds the largest of the values that share it.
    """
    sizes: dict[int, Dim] = {}
    for node in graph.nodes:
        for value in node.outputs:
            if value.slot is not None:
                sizes[value.slot] = dim_max(sizes.get(value.slot, 0), stored_bytes(value))
    return [round_up(sizes.get(slot, 0), CACHE_LINE) for slot in range(max(sizes, default=-1) + 1)]
