"""ONNX Runtime's RotaryEmbedding."""
from __future__ import annotations

from q8c.frontend.registry import MICROSOFT, Call, importer
from q8c.frontend.tensor import Tensor
from q8c.ir.types import DType


@importer("RotaryEmbedding", domain=MICROSOFT)
def rotary_embedding(c: Call) -> Tensor:
    """Pairs of channels of [batch, seq, heads * size] or [batch, heads, seq, size] turned by their position's angles.

    Position ids are [batch, seq], or [1]: the first position of every row.
    """
    if c.attr_int("is_packed_batching", 0):
        c.unsupported("is_packed_batching")
    x, positions, cos, sin = (c.input(i) for i in range(4))
    heads, interleaved = c.attr_int("num_heads", 0), bool(c.attr_int("interleaved", 0))
    if x.rank == 4:
        seq = x.shape[2]
    else:
        seq, width, half = x.shape[1], x.shape[-1], cos.shape[-1]
        if not heads and isinstance(width, int) and isinstance(half, int) and half:
            heads = width // (2 * half)
        if not isinstance(width, int) or heads <= 0 or width % heads:
            c.fail(f"{x.type} does not split into {heads} heads")
    if positions.rank == 1:
        positions = c.emit("add", c.builder.cast(positions, DType.i64), c.emit("iota", size=seq, dtype=DType.i64))
    if x.rank == 4:
        return rotate(c, x, positions, cos, sin, interleaved)
    apart = c.builder.reshape(x, (*x.shape[:2], heads, width // heads))
    turned = rotate(c, c.builder.transpose(apart, (0, 2, 1, 3)), positions, cos, sin, interleaved)
    return c.builder.reshape(c.builder.transpose(turned, (0, 2, 1, 3)), x.shape)


def rotate(c: Call, x: Tensor, positions: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """The first 2 * n channels of x [batch, heads, seq, size] turned pair by pair, the others as they are.

    `cos` and `sin` are [positions, n]; `positions` is [seq] or [batch, seq]. A pair is two neighbours (`interleaved`)
    or channels i and i + n.
    """
    half, size = cos.shape[-1], x.shape[-1]
    if not isinstance(half, int) or not isinstance(size, int) or 2 * half > size:
        c.fail(f"{cos.type} angles do not fit {x.type}")
    cos, sin = (_angles(c, t, positions) for t in (cos, sin))
    if interleaved:
        pairs = c.builder.reshape(c.builder.slice_axis(x, 3, 0, 2 * half), (*x.shape[:3], half, 2))
        first, second = (c.builder.reshape(c.builder.slice_axis(pairs, 4, i, 1), (*x.shape[:3], half))
                         for i in range(2))
    else:
        first, second = (c.builder.slice_axis(x, 3, i * half, half) for i in range(2))
    turned = (c.emit("sub", c.emit("mul", first, cos), c.emit("mul", second, sin)),
              c.emit("add", c.emit("mul", first, sin), c.emit("mul", second, cos)))
    if interleaved:
        stacked = [c.builder.reshape(t, (*t.shape, 1)) for t in turned]
        done = c.builder.reshape(c.emit("concat", *stacked, axis=4), (*x.shape[:3], 2 * half))
    else:
        done = c.emit("concat", *turned, axis=3)
    return done if 2 * half == size else c.emit(
        "concat", done, c.builder.slice_axis(x, 3, 2 * half, size - 2 * half), axis=3)


def _angles(c: Call, table: Tensor, positions: Tensor) -> Tensor:
    """The rows of a table for the positions: [batch or 1, 1, seq, n]."""
    rows = c.emit("gather", table, positions, axis=0)
    batch = rows.shape[0] if rows.rank == 3 else 1
    return c.builder.reshape(rows, (batch, 1, *rows.shape[-2:]))
