"""How many bytes values and arena slots take when the compiled code runs."""
from __future__ import annotations

from q8c.ir.dims import Dim, dim_max, floordiv, product
from q8c.ir.graph import Graph
from q8c.ir.types import DType, TensorType

ROW_GROUP = 4   # kernels read R8 rows in dwords, so an int8 row is padded to a multiple of this
CACHE_LINE = 64


def stored_bytes(type: TensorType) -> Dim:
    """Bytes a value takes in the arena: dense, but for int8 rows, which are padded to whole dwords."""
    if type.dtype is DType.i8 and type.shape:
        return product(type.shape[:-1]) * round_up(type.shape[-1], ROW_GROUP)
    return type.nbytes


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
                sizes[value.slot] = dim_max(sizes.get(value.slot, 0), stored_bytes(value.type))
    return [round_up(sizes.get(slot, 0), CACHE_LINE) for slot in range(max(sizes, default=-1) + 1)]
