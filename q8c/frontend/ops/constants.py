"""Constants, and tensors that follow from sizes: ConstantOfShape, Range, OneHot, Trilu."""
from __future__ import annotations

import numpy as np

from q8c.frontend.extent import ceil_div, difference
from q8c.frontend.registry import Call, importer
from q8c.frontend.tensor import Tensor, constant, from_size
from q8c.frontend.truncated import settled
from q8c.frontend.weights import compute_type
from q8c.ir.dims import Dim, dim_max
from q8c.ir.types import DType, TensorType

_NUMBER = TensorType(DType.i64, ())


@importer("Constant")
def constant_node(c: Call) -> Tensor:
    """A constant in any of its attribute forms."""
    given = [a.name for a in c.node.attribute if a.name.startswith(("value", "sparse_value"))]
    if len(given) != 1:
        c.fail(f"expected one attribute that holds the value, got {', '.join(given) or 'none'}")
    form = given[0]
    if form == "value":
        return constant(c.weights.tensor(c.attr(form, "TENSOR")), c.node.output[0])
    if form == "sparse_value":
        return constant(c.weights.sparse(c.attr(form, "SPARSE_TENSOR")), c.node.output[0])
    kinds = {"value_int": ("INT", np.int64), "value_ints": ("INTS", np.int64),
             "value_float": ("FLOAT", np.float32), "value_floats": ("FLOATS", np.float32)}
    if form not in kinds:
        c.unsupported(f"a constant given as {form}; expected a tensor or numbers")
    kind, dtype = kinds[form]
    return constant(np.array(c.attr(form, kind), dtype=dtype))


@importer("ConstantOfShape")
def constant_of_shape(c: Call) -> Tensor:
    """One element repeated over a shape."""
    shape = c.sizes(0, "the shape")
    data = c.attr("value", "TENSOR")
    element = np.zeros(1, dtype=np.float32) if data is None else c.weights.tensor(data)
    if element.size != 1:
        c.fail(f"value has {element.size} elements, expected 1")
    return c.builder.broadcast(constant(element.reshape(())), shape)


@importer("Range")
def range_node(c: Call) -> Tensor:
    """start, start + delta, … below limit."""
    start, limit, delta = c.input(0), c.input(1), c.input(2)
    if start.dtype is not limit.dtype or start.dtype is not delta.dtype:
        c.fail(f"start, limit and delta are {start.dtype}, {limit.dtype}, {delta.dtype}; expected one type")
    if (start.known is None or limit.known is None) and _is(delta, 1) and start.type == limit.type == _NUMBER:
        return c.emit("span", start, limit, count=c.builder.fresh_size("span"))
    count = _range_count(c, start, limit, delta)
    indices = c.emit("iota", size=count, dtype=start.dtype)
    step, first = (c.builder.reshape(t, ()) for t in (delta, start))
    if not _is(step, 1):
        indices = c.emit("mul", indices, step)
    return indices if _is(first, 0) else c.emit("add", indices, first)


def _range_count(c: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Dim:
    known = [t.known for t in (start, limit, delta)]
    if any(k is not None and k.size != 1 for k in known):
        c.fail("expected scalars")
    for tensor in (start, limit, delta):
        if tensor.known is None:
            c.unknown(tensor, "its length")
    first, last, step = (k.reshape(-1)[0] for k in known if k is not None)
    if step == 0:
        c.fail("delta is 0")
    if not any(t.is_symbolic for t in (start, limit, delta)):
        with np.errstate(all="ignore"):
            count = np.ceil((np.float64(last) - np.float64(first)) / np.float64(step)) if start.dtype.is_float \
                else -((int(first) - int(last)) // int(step))
        if not np.isfinite(float(count)) or count > 2**47:
            c.fail(f"a range of {count} elements")
        return max(0, int(count))
    if delta.is_symbolic or step != int(step):
        c.unsupported(f"delta is {step}; it must be a fixed integer where start or limit are sizes")
    first, last, step = (k.item() if isinstance(k, np.generic) else k for k in (first, last, step))
    if any(isinstance(k, float) and k != int(k) for k in (first, last)):
        c.unsupported("a range from fractions to sizes")
    first, last = (int(k) if isinstance(k, float) else k for k in (first, last))
    step = int(step)
    span = difference(last, first) if step > 0 else difference(first, last)
    return ceil_div(dim_max(0, settled(c.builder.graph, span)), abs(step))


def _is(tensor: Tensor, number: int) -> bool:
    return tensor.known is not None and not tensor.is_symbolic and bool(np.all(tensor.known == number))


@importer("Trilu", since=14)
def trilu(c: Call) -> Tensor:
    """The upper or lower triangle of the last two axes, zeros elsewhere."""
    x = c.input(0)
    if x.rank < 2:
        c.fail(f"expected rank >= 2, got {x.type}")
    k = c.optional(1)
    rows = c.builder.reshape(c.emit("iota", size=x.shape[-2], dtype=DType.i64), (x.shape[-2], 1))
    cols = c.emit("iota", size=x.shape[-1], dtype=DType.i64)
    if k is not None:  # of which a sum with a position may be beyond its type
        cols, rows = c.emit("sub", cols, rows), c.builder.reshape(k, ())
    keep = c.emit("greater_equal" if c.attr_int("upper", 1) else "less_equal", cols, rows)
    return c.emit("where", keep, x, c.scalar(0, x))


@importer("EyeLike", since=9)
def eye_like(c: Call) -> Tensor:
    """Ones on a diagonal of a matrix of the operand's shape, zeros elsewhere."""
    x = c.input(0)
    if x.rank != 2:
        c.fail(f"expected a matrix, got {x.type}")
    wanted = c.attr("dtype", "INT")
    dtype = x.dtype if wanted is None else compute_type(int(wanted), "dtype")
    rows = c.builder.reshape(c.emit("iota", size=x.shape[0], dtype=DType.i64), (x.shape[0], 1))
    cols = c.emit("iota", size=x.shape[1], dtype=DType.i64)
    return c.builder.cast(c.emit("equal", cols, c.emit("add", rows, c.scalar(c.attr_int("k", 0), rows))), dtype)


@importer("OneHot")
def one_hot(c: Call) -> Tensor:
    """on where an index equals the position along a new axis, off elsewhere; indices from -depth to depth - 1."""
    indices, values = c.builder.cast(c.input(0), DType.i64), c.input(2)
    depths = c.sizes(1, "the depth")
    if len(depths) != 1 or values.shape != (2,):
        c.fail(f"expected one depth and two values, got {len(depths)} and {values.type}")
    depth = depths[0]
    axis = c.axis(c.attr_int("axis", -1), indices.rank + 1)
    size = from_size(depth)
    wrapped = c.emit("where", c.emit("less", indices, c.scalar(0, indices)), c.emit("add", indices, size), indices)
    rows = c.builder.reshape(wrapped, (*indices.shape[:axis], 1, *indices.shape[axis:]))
    positions = c.builder.reshape(c.emit("iota", size=depth, dtype=DType.i64),
                                  (depth, *[1] * (indices.rank - axis)))
    hot = c.emit("equal", rows, positions)
    off, on = (c.builder.reshape(c.builder.slice_axis(values, 0, i, 1), ()) for i in (0, 1))
    return c.emit("where", hot, on, off)
