"""What a random model grows by: ops of transformers, one or a few nodes at a time."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.fuzz.grower import Discard, Grower, Val

UNARY = ("Tanh", "Sigmoid", "Erf", "Softplus", "Sin", "Cos", "Exp", "HardSigmoid", "Softsign", "Elu", "LeakyRelu",
         "HardSwish", "Mish", "Selu", "Celu")
EXACT_UNARY = ("Neg", "Abs", "Relu", "Identity")
BINARY = ("Add", "Sub", "Mul")
COMPARE = ("Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Equal")
INTEGERS = (np.int64, np.int64, np.int32)


def _partner(g: Grower, x: Val, kinds: str | None = None) -> Val:
    """A second operand of x's type: another value, itself, an input or a constant of a broadcast shape, or a scalar."""
    way = g.integer(0, 6)
    dtype = x.arrays[0].dtype
    if way < 3:
        return g.pick(kinds or x.kind, where=lambda v: v.arrays[0].dtype == dtype)
    if way == 3:
        return x
    rank = g.integer(0, x.rank)
    if way == 4:
        return g.input_of([[size if size == 0 or g.chance(0.6) else 1 for size in x.sizes(a)]
                           for a in range(x.rank - rank, x.rank)], dtype)
    shape = [x.sizes(a)[0] if x.static(a) and g.chance(0.7) else 1 for a in range(x.rank - rank, x.rank)]
    if g.chance(0.1):
        shape = [1, *shape]
    return g.const(g.fill(shape, dtype))


def unary(g: Grower) -> None:
    x = g.pick()
    op = g.choice(UNARY)
    if op == "Exp":
        x, = g.add("Clip", x, g.const(np.float32(-9)), g.const(np.float32(3)), exact=True)
    g.add(op, x)


def exact_unary(g: Grower) -> None:
    g.add(g.choice(EXACT_UNARY), g.pick("fi"), exact=True)


def gelu(g: Grower) -> None:
    x = g.pick()
    if g.opset >= 20 and g.chance(0.5):
        g.add("Gelu", x, approximate=g.choice(["none", "tanh"]))
        return
    inner, = g.add("Erf", g.add("Div", x, g.const(np.float32(np.sqrt(2))))[0])
    plus, = g.add("Add", inner, g.const(np.float32(1)))
    g.add("Mul", g.add("Mul", x, plus)[0], g.const(np.float32(0.5)))


def binary(g: Grower) -> None:
    x = g.pick("fi")
    pair = [x, _partner(g, x)]
    g.add(g.choice(BINARY), *(pair if g.chance(0.5) else pair[::-1]))


def extremes(g: Grower) -> None:
    x = g.pick("fi")
    g.add(g.choice(["Min", "Max"]), x, *[_partner(g, x) for _ in range(g.integer(0, 2))], exact=True)


def divide(g: Grower) -> None:
    x = g.pick("fi")
    if x.kind == "f":
        by, = g.add("Add", g.add("Abs", g.pick())[0], g.const(np.float32(0.5)))
        g.add("Div", x, by)
        return
    dtype = x.arrays[0].dtype
    by = g.const(np.array(g.choice([1, 2, 3, 7, -2]), dtype))
    if g.chance(0.5):
        g.add("Mod", x, by, fmod=g.choice([0, 1]))
    else:
        g.add("Div", g.add("Abs", x)[0], g.const(np.abs(by.arrays[0])))


def power(g: Grower) -> None:
    x = g.pick()
    way = g.integer(0, 3)
    if way == 0:
        g.add("Pow", x, g.const(np.float32(g.choice([2, 3, 1]))))
    elif way == 1:
        g.add("Sqrt", g.add("Add", g.add("Abs", x)[0], g.const(np.float32(0.1)))[0])
    elif way == 2:
        g.add("Log", g.add("Add", g.add("Abs", x)[0], g.const(np.float32(0.1)))[0])
    else:
        g.add("Reciprocal", g.add("Add", g.add("Mul", x, x)[0], g.const(np.float32(0.5)))[0])


def step_functions(g: Grower) -> None:
    """Where a rounding more would make a jump: of exact values only."""
    x = g.pick(exact=True)
    g.add(g.choice(["Floor", "Ceil", "Round", "Sign"]), x, exact=True)


def compare(g: Grower) -> None:
    x = g.pick("fi", exact=True)
    other = _partner(g, x)
    if not other.exact:
        raise Discard
    g.add(g.choice(COMPARE), x, other)


def logic(g: Grower) -> None:
    x = g.pick("b")
    if g.chance(0.3):
        g.add("Not", x)
    else:
        g.add(g.choice(["And", "Or", "Xor"]), x, _partner(g, x))


def where(g: Grower) -> None:
    x = g.pick("fi")
    g.add("Where", g.pick("b"), x, _partner(g, x), exact=True)


def cast(g: Grower) -> None:
    x = g.pick("fib")
    to = g.choice([np.float32, np.float32, np.int64, np.int32, np.bool_, np.uint8, np.int8])
    if x.kind == "f" and not (x.exact or to == np.float32):
        raise Discard
    if g.special and x.kind == "f" and to not in (np.float32, np.bool_):
        raise Discard
    if to in (np.uint8, np.int8) and not all(((a >= 0) & (a < 128)).all() for a in x.arrays):
        raise Discard
    from onnx.helper import np_dtype_to_tensor_dtype
    g.add("Cast", x, to=np_dtype_to_tensor_dtype(np.dtype(to)), exact=True)


def matmul_constant(g: Grower) -> None:
    x = g.pick(low=1)
    if not x.static(-1):
        raise Discard
    depth, cols = x.sizes(-1)[0], g.choice([1, 3, 8, 16, 17, 32, 40])
    w = g.const(g.fill((depth, cols)) / np.float32(max(depth, 1) ** 0.5))
    y, = g.add("MatMul", x, w)
    if g.chance(0.5):
        y, = g.add("Add", y, g.const(g.fill((cols,))))
        if g.chance(0.4):
            g.add(g.choice(["Relu", "Sigmoid", "Tanh"]), y)


def matmul(g: Grower) -> None:
    x = g.pick(low=1)
    y = g.pick(low=1)
    if g.chance(0.5) and x.rank >= 2:
        order = [*range(x.rank - 2), x.rank - 1, x.rank - 2]
        y, = g.add("Transpose", g.choice([x, y if y.rank == x.rank else x]), perm=order, exact=True)
    g.add("Mul", g.add("MatMul", x, y)[0], g.const(np.float32(0.125)))


def gemm(g: Grower) -> None:
    x = g.pick(low=2, high=2)
    flip_a, flip_b = g.integer(0, 1), g.integer(0, 1)
    axis = 0 if flip_a else 1
    if not x.static(axis):
        raise Discard
    depth, cols = x.sizes(axis)[0], g.choice([1, 4, 16, 19])
    w = g.const(g.fill((cols, depth) if flip_b else (depth, cols)) / np.float32(max(depth, 1) ** 0.5))
    bias = g.choice([None, g.const(g.fill((cols,))), g.const(g.fill(())), g.const(g.fill((1, cols)))])
    g.add("Gemm", x, w, *([bias] if bias else []), alpha=g.choice([1.0, 0.5]), beta=g.choice([1.0, 2.0]),
          transA=flip_a, transB=flip_b)


def layer_norm(g: Grower) -> None:
    x = g.pick(low=1)
    axis = -1 if g.chance(0.8) else g.axis(x)
    if not all(x.static(a) for a in range(axis % x.rank, x.rank)):
        raise Discard
    shape = x.arrays[0].shape[axis % x.rank:]
    if np.prod(shape) < 2:
        raise Discard
    bias = [g.const(g.fill(shape))] if g.chance(0.7) else []
    g.add("LayerNormalization", x, g.const(g.fill(shape)), *bias, axis=axis, epsilon=g.choice([1e-2, 1e-1]))


def softmax(g: Grower) -> None:
    x = g.pick(low=1)
    # the reference's logarithm of a softmax is that of 0 where elements are far apart
    g.add(g.choice(["Softmax", "Softmax", "Softmax" if g.special else "LogSoftmax"]), x, axis=g.axis(x))


def reduce(g: Grower) -> None:
    x = g.pick("fi")
    op = g.choice(["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceSumSquare", "ReduceL1", "ReduceL2",
                   "ReduceProd"] if x.kind == "f" else ["ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"])
    if op == "ReduceProd" and g.special:
        raise Discard  # whether a product overflows before a 0 comes is a matter of order
    if op == "ReduceL2":
        x, = g.add("Add", g.add("Abs", x)[0], g.const(np.float32(0.5)))
    count = g.integer(0, x.rank)
    axes = g.rng.permutation(x.rank)[:count]
    axes = np.where(g.rng.random(count) < 0.5, axes, axes - x.rank).astype(np.int64)
    operands = [g.const(axes)] if count or g.chance(0.5) else []
    g.add(op, x, *operands, keepdims=g.integer(0, 1), exact=op in ("ReduceMax", "ReduceMin"),
          **({"noop_with_empty_axes": 1} if not count and g.chance(0.3) else {}))


def arg(g: Grower) -> None:
    x = g.pick("fi", low=1, exact=True)
    g.add(g.choice(["ArgMax", "ArgMin"]), x, axis=g.axis(x), keepdims=g.integer(0, 1),
          select_last_index=g.integer(0, 1))


def cum_sum(g: Grower) -> None:
    x = g.pick("fi", low=1)
    g.add("CumSum", x, g.const(np.array(g.axis(x))), exclusive=g.integer(0, 1), reverse=g.integer(0, 1))


def top_k(g: Grower) -> None:
    x = g.pick("f", low=1, exact=True, where=lambda v: all(len(np.unique(a)) == a.size for a in v.arrays))
    axis = g.axis(x)
    g.add("TopK", x, g.const(np.array([g.integer(0, 4)])), count=2, axis=axis, largest=g.integer(0, 1), exact=True)


def reshape(g: Grower) -> None:
    x = g.pick("fib")
    way = g.integer(0, 5)
    if way == 0:
        g.add("Flatten", x, axis=g.integer(-x.rank, x.rank), exact=True)
    elif way == 1:
        g.add("Unsqueeze", x, g.const(np.array([g.integer(-x.rank - 1, x.rank)])), exact=True)
    elif way == 2:
        ones = [a for a in range(x.rank) if set(x.sizes(a)) == {1}]
        g.add("Squeeze", x, *([g.const(np.array(ones[:1]))] if ones and g.chance(0.9) else []), exact=True)
    elif way == 3:
        g.add("Reshape", x, g.const(np.array([-1])), exact=True)
    elif way == 4:  # an axis in two
        axis = g.axis(x) % max(x.rank, 1)
        size = x.sizes(axis)[0]
        if not x.static(axis) or size < 2:
            raise Discard
        part = g.choice([d for d in range(1, size + 1) if size % d == 0])
        target = [0] * axis + [part, size // part] + [0] * (x.rank - axis - 1)
        if axis < x.rank - 1:
            target[axis + 2:] = [x.sizes(a)[0] if x.static(a) else -1 for a in range(axis + 1, x.rank)]
        g.add("Reshape", x, g.const(np.array(target)), exact=True)
    else:  # the first axes, read at run time, and the rest
        if x.rank < 2:
            raise Discard
        first, = g.add("Shape", x, start=0, end=1)
        g.add("Reshape", x, g.add("Concat", first, g.const(np.array([-1])), axis=0)[0], exact=True)


def transpose(g: Grower) -> None:
    x = g.pick("fib", low=1)
    g.add("Transpose", x, perm=[int(p) for p in g.rng.permutation(x.rank)], exact=True)


def concat(g: Grower) -> None:
    x = g.pick("fib", low=1)
    dtype = x.arrays[0].dtype
    others = [g.pick(x.kind, x.rank, x.rank, where=lambda v: v.arrays[0].dtype == dtype)
              for _ in range(g.integer(0, 2))]
    g.add("Concat", x, *others, axis=g.axis(x), exact=True)


def split(g: Grower) -> None:
    x = g.pick("fib", low=1)
    axis = g.axis(x)
    if not x.static(axis) or not x.sizes(axis)[0]:
        raise Discard
    size = x.sizes(axis)[0]
    if g.chance(0.5):
        first = g.integer(0, size)
        g.add("Split", x, g.const(np.array([first, size - first])), count=2, axis=axis, exact=True)
    else:
        count = g.integer(1, min(size, 3))
        g.add("Split", x, count=count, axis=axis, num_outputs=count, exact=True)


def slice_(g: Grower) -> None:
    x = g.pick("fib", low=1)
    count = g.integer(1, min(x.rank, 2))
    axes = g.rng.permutation(x.rank)[:count]
    steps = np.array([g.choice([1, 1, 1, 2, 3, -1, -2]) for _ in axes])
    # numpy, and with it the reference, takes a start before an axis for its end where the step is negative
    starts = np.array([g.integer(-4, 4) if s > 0 else g.choice([-1, 5, 2]) for s in steps])
    if any(s < 0 and not min(x.sizes(int(a))) for s, a in zip(steps, axes, strict=True)):
        raise Discard
    ends = np.array([g.choice([-1, -2, 2, 5, 2**63 - 1]) if s > 0 else g.choice([-2**62, 0, -4]) for s in steps])
    g.add("Slice", x, *map(g.const, (starts, ends, axes, steps)), exact=True)


def gather(g: Grower) -> None:
    x = g.pick("fib", low=1)
    axis = g.axis(x)
    size = min(x.sizes(axis))
    if not size:
        raise Discard
    if g.chance(0.4):
        shape = g.choice([(), (1,), (2,), (2, 3), (0,)])
        index = g.const(g.rng.integers(-size, size, shape))
    else:
        index = g.pick("iu", where=lambda v: v.arrays[0].dtype in (np.int64, np.int32) and not v.constant)
        index, = g.add("Mod", index, g.const(np.array(size, index.arrays[0].dtype)))
    if x.rank > 0 and index.rank == x.rank and g.chance(0.3):
        g.add("GatherElements", x, index, axis=axis, exact=True)
    else:
        g.add("Gather", x, index, axis=axis, exact=True)


def expand(g: Grower) -> None:
    x = g.pick("fib")
    if g.chance(0.5):
        like = g.pick("fib")
        g.add("Expand", x, g.add("Shape", like)[0], exact=True)
    else:
        shape = [x.sizes(a)[0] if x.static(a) and x.sizes(a)[0] != 1 else g.choice([1, 1, 2, 3]) for a in range(x.rank)]
        g.add("Expand", x, g.const(np.array([g.choice([1, 2])] * g.integer(0, 1) + shape, np.int64)), exact=True)


def tile(g: Grower) -> None:
    x = g.pick("fib", low=1)
    g.add("Tile", x, g.const(np.array([g.choice([1, 1, 2, 3, 0] if g.chance(0.2) else [1, 2])
                                       for _ in range(x.rank)])), exact=True)


def pad(g: Grower) -> None:
    x = g.pick("fi", low=1)
    mode = g.choice(["constant", "constant", "edge", "reflect"])
    low = -1 if mode == "constant" and g.chance(0.3) else 0
    if mode != "constant" and any(min(x.sizes(a)) < 4 for a in range(x.rank)):
        raise Discard
    pads = np.array([g.integer(low, 2) for _ in range(2 * x.rank)])
    value = [g.const(g.fill((), x.arrays[0].dtype))] if mode == "constant" and g.chance(0.5) else []
    g.add("Pad", x, g.const(pads), *value, mode=mode, exact=True)


def clip(g: Grower) -> None:
    x = g.pick("fi")
    dtype = x.arrays[0].dtype
    bounds: list[Val | None] = [g.const(np.array(b, dtype)) if g.chance(0.7) else None for b in (-1, 2)]
    while bounds and bounds[-1] is None:
        bounds.pop()
    g.add("Clip", x, *bounds, exact=True)


def trilu(g: Grower) -> None:
    x = g.pick("fib", low=2)
    diagonal = [g.const(np.array(g.integer(-2, 2)))] if g.chance(0.6) else []
    g.add("Trilu", x, *diagonal, upper=g.integer(0, 1), exact=True)


def shape_arithmetic(g: Grower) -> None:
    x = g.pick("fib", low=1)
    size, = g.add("Gather", g.add("Shape", x)[0], g.const(np.array(g.integer(0, x.rank - 1))), axis=0)
    end, = g.add(g.choice(["Add", "Mul"]), size, g.const(np.array(g.integer(1, 2))))
    way = g.integer(0, 2)
    if way == 0:
        g.add("Range", g.const(np.array(g.integer(0, 1))), end, g.const(np.array(g.integer(1, 2))))
    elif way == 1:
        g.add("Cast", end, to=1, exact=True)
    else:
        flat, = g.add("Unsqueeze", end, g.const(np.array([0])))
        g.add("Expand", g.const(g.fill((1,))), flat, exact=True)


def rms_norm(g: Grower) -> None:
    x = g.pick(low=1)
    mean, = g.add("ReduceMean", g.add("Mul", x, x)[0], g.const(np.array([-1])), keepdims=1)
    root, = g.add("Sqrt", g.add("Add", mean, g.const(np.float32(0.1)))[0])
    y, = g.add("Div", x, root)
    if x.static(-1):
        g.add("Mul", y, g.const(g.fill((x.sizes(-1)[0],))))


def swish(g: Grower) -> None:
    x = g.pick()
    g.add("Mul", x, g.add("Sigmoid", x)[0])


def more_input(g: Grower) -> None:
    g.input(g.choice([np.float32, np.float32, np.float32, *INTEGERS, np.bool_]))


def like_input(g: Grower) -> None:
    """Another value of the shape of one there is, so that two-operand ops find their like."""
    x = g.pick(low=1)
    shape, = g.add("Shape", x)
    g.add("Expand", g.const(g.fill(())), shape, exact=True)


STEPS: dict[Callable[[Grower], None], int] = {
    unary: 3, exact_unary: 2, gelu: 2, binary: 8, extremes: 2, divide: 2, power: 2, step_functions: 1, compare: 2,
    logic: 1, where: 3, cast: 2, matmul_constant: 6, matmul: 3, gemm: 2, layer_norm: 3, softmax: 3, reduce: 5, arg: 1,
    cum_sum: 1, top_k: 1, reshape: 5, transpose: 3, concat: 3, split: 2, slice_: 3, gather: 3, expand: 2, tile: 1,
    pad: 2, clip: 1, trilu: 1, shape_arithmetic: 2, rms_norm: 1, swish: 1, more_input: 2, like_input: 1}
