"""Pieces of transformers as exporters spell them: attention under masks, rotary, norms, gates, embeddings, pooling."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.fuzz.grower import Discard, Grower, Val

MASKED = (-1e4, float(np.finfo(np.float32).min), -np.inf)


def _f(g: Grower, x: float) -> Val:
    return g.const(np.float32(x))


def _linear(g: Grower, x: Val, cols: int, bias: bool = True) -> Val:
    depth = x.sizes(-1)[0]
    y, = g.add("MatMul", x, g.const(g.fill((depth, cols)) / np.float32(depth ** 0.5)))
    return g.add("Add", y, g.const(g.fill((cols,))))[0] if bias else y


def hidden(g: Grower) -> Val:
    """A value [batch, seq, width] of some heads' width; a new input if there is none."""
    def fits(v: Val) -> bool:
        return v.static(-1) and v.sizes(-1)[0] in (8, 16, 32)
    try:
        return g.pick(low=3, high=3, where=fits)
    except Discard:
        first = g.input(rank=2)
        return g.input_of([first.sizes(0), first.sizes(1), [g.choice([8, 16, 32])] * 3])


def size_of(g: Grower, x: Val, axis: int) -> Val:
    """The size of an axis, a scalar."""
    return g.add("Gather", g.add("Shape", x)[0], g.const(np.array(axis)), axis=0)[0]


def vector(g: Grower, *parts: Val | int) -> Val:
    """Sizes one after the other, as a shape."""
    made = [g.const(np.array([p])) if isinstance(p, int) else
            g.add("Unsqueeze", p, g.const(np.array([0])), exact=True)[0] for p in parts]
    return g.add("Concat", *made, axis=0, exact=True)[0]


def ranged(g: Grower, size: Val) -> Val:
    """0, 1, … below a size."""
    return g.add("Range", g.const(np.array(0)), size, g.const(np.array(1)), exact=True)[0]


def _unsqueezed(g: Grower, x: Val, *axes: int) -> Val:
    return g.add("Unsqueeze", x, g.const(np.array(axes)), exact=True)[0]


def _mask(g: Grower, rows: Val, keys: Val) -> Val | None:
    """A mask for scores [batch, heads, rows, keys]: true where a key is seen; or None."""
    way = g.integer(0, 5)
    if way == 0:
        return None
    if way == 1:  # padding
        padding = g.input_of([keys.sizes(0), keys.sizes(1)], g.choice([np.int64, np.bool_, np.float32]))
        return _unsqueezed(g, g.add("Cast", padding, to=9, exact=True)[0], 1, 2)
    if way == 2:  # one for each pair
        seen = g.input_of([rows.sizes(0), rows.sizes(1), keys.sizes(1)], np.bool_)
        return _unsqueezed(g, seen, 1)
    i, j = (ranged(g, size_of(g, x, 1)) for x in (rows, keys))
    behind, = g.add("Sub", _unsqueezed(g, i, 1), _unsqueezed(g, j, 0), exact=True)
    if way == 3:
        return g.add("GreaterOrEqual" if g.opset >= 12 else "Greater", behind, g.const(np.array(0)))[0]
    if way == 4:  # a window
        return g.add("Less", g.add("Abs", behind, exact=True)[0], g.const(np.array(2)))[0]
    if g.opset < 14:
        raise Discard
    shape = vector(g, size_of(g, rows, 1), size_of(g, keys, 1))
    whole, = g.add("Expand", g.const(np.array(1.0, np.float32)), shape, exact=True)
    return g.add("Cast", g.add("Trilu", whole, upper=0, exact=True)[0], to=9, exact=True)[0]


def _masked(g: Grower, scores: Val, mask: Val | None) -> Val:
    if mask is None:
        return scores
    least = g.choice(MASKED)
    way = g.integer(0, 2)
    if way == 0:
        return g.add("Where", mask, scores, _f(g, least))[0]
    if way == 1:
        bias, = g.add("Where", mask, _f(g, 0), _f(g, least), exact=True)
    else:
        seen, = g.add("Cast", mask, to=1, exact=True)
        bias, = g.add("Mul", g.add("Sub", _f(g, 1), seen, exact=True)[0], _f(g, -1e4), exact=True)
    return g.add("Add", *([scores, bias] if g.chance(0.7) else [bias, scores]))[0]


def _heads(g: Grower, x: Val, heads: int, order: list[int]) -> Val:
    """[batch, seq, width] as heads, in an order of (batch, seq, head, width of a head)."""
    width = x.sizes(-1)[0] // heads
    if g.chance(0.4):
        shape = vector(g, size_of(g, x, 0), size_of(g, x, 1), heads, width)
    else:
        shape = g.const(np.array(g.choice([[0, 0, heads, width], [0, -1, heads, width], [0, 0, heads, -1]])))
    return g.add("Transpose", g.add("Reshape", x, shape)[0], perm=order)[0]


def masked_attention(g: Grower) -> None:
    """Self or cross attention, perhaps fewer heads of keys than of queries, with a mask of some kind."""
    if g.special:  # as in attention_op
        raise Discard
    x = hidden(g)
    other = x if g.chance(0.6) else g.input_of([x.sizes(0), g.choice([[1, 4, 3], [5, 5, 5]]), [16] * 3])
    width, heads = x.sizes(-1)[0], g.choice([1, 2, 4])
    groups = g.choice([1, 2]) if heads > 1 else 1
    q = _heads(g, _linear(g, x, width), heads, [0, 2, 1, 3])
    k = _heads(g, _linear(g, other, width // groups, g.chance(0.5)), heads // groups, [0, 2, 1, 3])
    v = _heads(g, _linear(g, other, width // groups), heads // groups, [0, 2, 1, 3])
    if groups > 1:
        k, v = (_repeated(g, t, groups) for t in (k, v))
    scale = (width // heads) ** -0.5
    if g.chance(0.3):
        q, k = (g.add("Mul", t, _f(g, scale ** 0.5))[0] for t in (q, k))
    scores, = g.add("MatMul", q, g.add("Transpose", k, perm=[0, 1, 3, 2])[0])
    scores, = g.add("Mul", scores, _f(g, scale)) if g.chance(0.5) else g.add("Div", scores, _f(g, 1 / scale))
    probabilities, = g.add("Softmax", _masked(g, scores, _mask(g, x, other)), axis=g.choice([-1, 3]))
    if g.opset >= 9 and g.chance(0.2):
        probabilities, = g.add("Where", g.add("IsNaN", probabilities)[0], _f(g, 0), probabilities)
    out, = g.add("Transpose", g.add("MatMul", probabilities, v)[0], perm=[0, 2, 1, 3])
    out, = g.add("Reshape", out, vector(g, size_of(g, x, 0), size_of(g, x, 1), width))
    if g.chance(0.5):
        g.add("Add", _linear(g, out, width), x)


def _repeated(g: Grower, x: Val, times: int) -> Val:
    """Every head as many times, as grouped queries need."""
    batch, seq = size_of(g, x, 0), size_of(g, x, 2)
    heads, width = x.sizes(1)[0], x.sizes(3)[0]
    apart, = g.add("Expand", _unsqueezed(g, x, 2), vector(g, batch, heads, times, seq, width))
    return g.add("Reshape", apart, vector(g, batch, heads * times, seq, width))[0]


def attention_op(g: Grower) -> None:
    """The op Attention."""
    if g.special:  # which keys a mask leaves is told by adding to scores, and by leaving them out
        raise Discard
    x = hidden(g)
    width, heads, groups = x.sizes(-1)[0], g.choice([2, 4]), g.choice([1, 2])
    parts = [_linear(g, x, cols) for cols in (width, width // groups, width // groups)]
    attrs = {k: v for k, v in {"scale": g.choice([None, None, 0.0, 0.3]), "softcap": g.choice([None, None, 2.0]),
                               "is_causal": g.choice([None, 0, 1])}.items() if v is not None}
    mask = g.choice([None, g.input_of([x.sizes(1), x.sizes(1)], g.choice([np.bool_, np.float32]))])
    g.add("Attention", *parts, *([mask] if mask else []), q_num_heads=heads, kv_num_heads=heads // groups, **attrs)


def rotary(g: Grower) -> None:
    """Rotated halves or pairs, angles from positions."""
    x = hidden(g)
    width = x.sizes(-1)[0]
    half = g.const(np.float32(1.0) / 100 ** (np.arange(width // 2) / np.float32(width)).astype(np.float32))
    places, = g.add("Cast", ranged(g, size_of(g, x, 1)), to=1, exact=True)
    angles, = g.add("Mul", _unsqueezed(g, places, 1), half)
    if g.opset >= 23 and g.chance(0.5):
        cos, sin = (g.add(op, angles)[0] for op in ("Cos", "Sin"))
        positions, = g.add("Expand", _unsqueezed(g, ranged(g, size_of(g, x, 1)), 0),
                           vector(g, size_of(g, x, 0), size_of(g, x, 1)), exact=True)
        g.add("RotaryEmbedding", _heads(g, x, 1, [0, 2, 1, 3]), cos, sin, positions, interleaved=g.integer(0, 1))
        return
    both, = g.add("Concat", angles, angles, axis=-1)
    middle = g.const(np.array([width // 2]))
    first, = g.add("Slice", x, g.const(np.array([0])), middle, g.const(np.array([-1])), exact=True)
    second, = g.add("Slice", x, middle, g.const(np.array([2**63 - 1])), g.const(np.array([2])), exact=True)
    turned, = g.add("Concat", g.add("Neg", second, exact=True)[0], first, axis=-1, exact=True)
    g.add("Add", g.add("Mul", x, g.add("Cos", both)[0])[0], g.add("Mul", turned, g.add("Sin", both)[0])[0])


def layer_norm_by_hand(g: Grower) -> None:
    x = g.pick(low=1, where=lambda v: v.static(-1) and v.sizes(-1)[0] > 1)
    last = g.const(np.array([-1]))
    mean, = g.add("ReduceMean", x, last, keepdims=1)
    away, = g.add("Sub", x, mean)
    square, = g.add("Mul", away, away) if g.chance(0.4) else g.add("Pow", away, _f(g, 2))
    root, = g.add("Sqrt", g.add("Add", g.add("ReduceMean", square, last, keepdims=1)[0], _f(g, 0.05))[0])
    y, = g.add("Div", away, root) if g.chance(0.6) else g.add("Mul", away, g.add("Reciprocal", root)[0])
    width = x.sizes(-1)[0]
    y, = g.add("Mul", y, g.const(g.fill((width,))))
    g.add("Add", y, g.const(g.fill((width,))))


def gelu_by_tanh(g: Grower) -> None:
    x = g.pick()
    cube, = g.add("Pow", x, _f(g, 3)) if g.chance(0.5) else g.add("Mul", g.add("Mul", x, x)[0], x)
    inner, = g.add("Add", x, g.add("Mul", cube, _f(g, 0.044715))[0])
    bent, = g.add("Tanh", g.add("Mul", inner, _f(g, 0.7978845608))[0])
    plus, = g.add("Add", bent, _f(g, 1))
    if g.chance(0.5):
        g.add("Mul", g.add("Mul", x, _f(g, 0.5))[0], plus)
    else:
        g.add("Mul", x, g.add("Mul", plus, _f(g, 0.5))[0])


def feed_forward(g: Grower) -> None:
    """Up, a gate or an activation, down, and the residual."""
    x = hidden(g)
    width, wide = x.sizes(-1)[0], g.choice([16, 24, 48])
    if g.chance(0.5):
        gate = _linear(g, x, wide, bias=False)
        y, = g.add("Mul", g.add("Mul", gate, g.add("Sigmoid", gate)[0])[0], _linear(g, x, wide, bias=False))
    else:
        y, = g.add(g.choice(["Relu", "Tanh", "Softplus", "HardSwish", "Mish"]), _linear(g, x, wide))
    g.add("Add", _linear(g, y, width), x)


def embedding(g: Grower) -> None:
    """Rows of a table by ids, and of another by places."""
    ids = g.input(np.int64, rank=2)
    width = g.choice([8, 16, 32])
    table = g.const(g.fill((12, width)))
    found, = g.add("Gather", table, g.add("Mod", ids, g.const(np.array(12)))[0])
    sizes = max(ids.sizes(1))
    if g.chance(0.5) and sizes <= 40:
        places = g.const(g.fill((40, width)))
        if g.chance(0.5):
            rows, = g.add("Gather", places, ranged(g, size_of(g, ids, 1)))
        else:
            end = vector(g, size_of(g, ids, 1))
            rows, = g.add("Slice", places, g.const(np.array([0])), end, g.const(np.array([0])))
        g.add("Add", found, _unsqueezed(g, rows, 0))


def pooling(g: Grower) -> None:
    """The mean of rows that a mask leaves, and perhaps of length one."""
    x = hidden(g)
    mask = g.input_of([x.sizes(0), x.sizes(1)], np.bool_)
    seen, = g.add("Cast", _unsqueezed(g, mask, 2), to=1, exact=True)
    if g.chance(0.5):
        seen, = g.add("Expand", seen, g.add("Shape", x)[0], exact=True)
    axis = g.const(np.array([1]))
    total, = g.add("ReduceSum", g.add("Mul", x, seen)[0], axis, keepdims=0)
    count, = g.add("ReduceSum", seen, axis, keepdims=0, exact=True)
    y, = g.add("Div", total, g.add("Clip", count, _f(g, 0.5), exact=True)[0])
    if g.chance(0.5):
        size, = g.add("ReduceL2", y, g.const(np.array([-1])), keepdims=1)
        g.add("Div", y, g.add("Max", size, _f(g, 0.1))[0])


def first_token(g: Grower) -> None:
    """One row of a sequence, by Gather or Slice, and a head on it."""
    x = hidden(g)
    if not min(x.sizes(1)) or g.special:  # as in the step softmax
        raise Discard
    y, = g.add("Gather", x, g.const(np.array(g.choice([0, -1]))), axis=1)
    g.add(g.choice(["Softmax", "LogSoftmax"]), _linear(g, y, g.choice([2, 17])), axis=-1)


def joined_projections(g: Grower) -> None:
    """One product for queries, keys and values, taken apart by Split or by Reshape and Gather."""
    x = hidden(g)
    width = x.sizes(-1)[0]
    y = _linear(g, x, 3 * width)
    if g.chance(0.5):
        q, k, v = g.add("Split", y, g.const(np.array([width] * 3)), count=3, axis=-1)
    else:
        apart, = g.add("Reshape", y, g.const(np.array([0, 0, 3, width])))
        order, = g.add("Transpose", apart, perm=[2, 0, 1, 3])
        q, k, v = (g.add("Gather", order, g.const(np.array(i)), axis=0)[0] for i in range(3))
    scores, = g.add("MatMul", q, g.add("Transpose", k, perm=[0, 2, 1])[0])
    scores, = g.add("Mul", scores, _f(g, width ** -0.5))
    g.add("MatMul", g.add("Softmax", scores, axis=-1)[0], v)


def cache(g: Grower) -> None:
    """Keys of before and new ones, one after the other."""
    x = hidden(g)
    past = g.input_of([x.sizes(0), g.choice([[0, 3, 5], [2, 2, 2]]), x.sizes(2)])
    g.add("Concat", past, x, axis=1, exact=True)


def einsum(g: Grower) -> None:
    equation = g.choice(["bsw,wo->bso", "bsw,btw->bst", "bsw,bsw->bs", "bsw->wsb", "bsw,bsv->bwv", "bsw->b",
                         "...w,wo->...o", "bsw,bsw,w->b"])
    x = hidden(g)
    width = x.sizes(-1)[0]
    others = {"wo": g.const(g.fill((width, 5)) / np.float32(width)), "w": g.const(g.fill((width,)) / np.float32(width))}
    terms = equation.split("->")[0].split(",")
    y, = g.add("Einsum", x, *(others.get(t, x) for t in terms[1:]), equation=equation)
    g.add("Mul", y, _f(g, 0.125))


FRAGMENTS: dict[Callable[[Grower], None], int] = {
    masked_attention: 6, attention_op: 1, rotary: 2, layer_norm_by_hand: 2, gelu_by_tanh: 2, feed_forward: 2,
    embedding: 2, pooling: 1, first_token: 1, joined_projections: 1, cache: 1, einsum: 2}
