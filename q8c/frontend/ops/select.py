"""The best elements along an axis: TopK, Hardmax."""
from __future__ import annotations

from q8c.frontend.ops.scatter import position
from q8c.frontend.registry import Call, importer
from q8c.frontend.tensor import Tensor
from q8c.ir.dims import Dim, product


@importer("TopK")
def old_top_k(c: Call) -> list[Tensor]:
    """TopK of opset 9 and before, k as an attribute."""
    return _top_k(c, c.attr_int("k"))


@importer("TopK", since=10)
def top_k(c: Call) -> list[Tensor]:
    """The k largest or smallest elements along an axis, the best first, and where they are."""
    sizes = c.sizes(1, "k")
    if len(sizes) != 1:
        c.fail(f"{len(sizes)} numbers for k, expected 1")
    return _top_k(c, sizes[0])


def _top_k(c: Call, k: Dim) -> list[Tensor]:
    x = c.input(0)
    axis = c.axis(c.attr_int("axis", -1), x.rank)
    found = c.emit("top_k", x, k=k, axis=axis, largest=bool(c.attr_int("largest", 1)))
    return [c.emit("gather_elements", x, found, axis=axis), found]


@importer("Hardmax")
def old_hardmax(c: Call) -> Tensor:
    """Hardmax of opset 12 and before: over all axes from `axis` on, taken as one."""
    x = c.input(0)
    axis = c.axis(c.attr_int("axis", 1), x.rank)
    rows = c.builder.reshape(x, (*x.shape[:axis], product(x.shape[axis:])))
    return c.builder.reshape(_hardmax(c, rows, axis), x.shape)


@importer("Hardmax", since=13)
def hardmax(c: Call) -> Tensor:
    """1 where the first largest element of an axis is, 0 elsewhere."""
    x = c.input(0)
    return _hardmax(c, x, c.axis(c.attr_int("axis", -1), x.rank))


def _hardmax(c: Call, x: Tensor, axis: int) -> Tensor:
    best = c.emit("argmax", x, axes=(axis,), keepdims=True)
    return c.builder.cast(c.emit("equal", position(c, x.shape, axis), best), x.dtype)
