"""What transformers use now and then: scatters, windows, resizing, integers at the end of their range, quantization."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.fuzz.grower import Discard, Grower, Val

INTEGERS = (np.int64, np.int32, np.int8, np.uint8, np.int16, np.uint16, np.uint32, np.uint64)


def _indices(g: Grower, shape: tuple[int, ...], size: int) -> Val:
    """Distinct places along an axis as far as there are, from either end."""
    if not size:
        raise Discard
    count = int(np.prod(shape))
    places = np.concatenate([g.rng.permutation(size) for _ in range(count // size + 1)])[:count].reshape(shape)
    return g.const(np.where(g.rng.random(shape) < 0.5, places, places - size).astype(np.int64))


def gather_nd(g: Grower) -> None:
    x = g.pick("fib", low=1)
    depth = g.integer(1, x.rank)
    least = [min(x.sizes(a)) for a in range(depth)]
    if not min(least):
        raise Discard
    rows = g.integer(0, 4)
    places = np.stack([g.rng.integers(-d, d, rows) for d in least], axis=-1).astype(np.int64)
    g.add("GatherND", x, g.const(places), exact=True)


def scatter_elements(g: Grower) -> None:
    x = g.pick("fi", low=1)
    axis = g.axis(x)
    shape = tuple(g.integer(1, max(1, min(x.sizes(a)))) for a in range(x.rank))
    if any(not min(x.sizes(a)) for a in range(x.rank)):
        raise Discard
    line = _indices(g, (shape[axis],), min(x.sizes(axis)))
    if shape[axis] > min(x.sizes(axis)):
        raise Discard
    along = line.arrays[0].reshape([-1 if a == axis % x.rank else 1 for a in range(x.rank)])
    index = g.const(np.ascontiguousarray(np.broadcast_to(along, shape)))
    attrs = {"reduction": g.choice(["add", "mul"])} if g.opset >= 16 and g.chance(0.4) else {}
    g.add("ScatterElements", x, index, g.const(g.fill(shape, x.arrays[0].dtype)), axis=axis, exact=not attrs, **attrs)


def scatter_nd(g: Grower) -> None:
    x = g.pick("fi", low=1, where=lambda v: all(v.static(a) for a in range(1, v.rank)))
    rows = _indices(g, (g.integer(1, max(1, min(x.sizes(0)))), 1), min(x.sizes(0)))
    updates = g.const(g.fill((rows.arrays[0].shape[0], *x.arrays[0].shape[1:]), x.arrays[0].dtype))
    attrs = {"reduction": g.choice(["add", "mul"])} if g.opset >= 16 and g.chance(0.4) else {}
    g.add("ScatterND", x, rows, updates, exact=not attrs, **attrs)


def one_hot(g: Grower) -> None:
    ids = g.pick("i", where=lambda v: v.arrays[0].dtype in (np.int64, np.int32))
    values = g.const(np.array(g.choice([[0, 1], [2, -3]]), g.choice([np.float32, np.int64])))
    g.add("OneHot", ids, g.const(np.array(g.choice([4, 11]))), values, axis=g.integer(-ids.rank - 1, ids.rank),
          exact=True)


def eye(g: Grower) -> None:
    g.add("EyeLike", g.pick("fi", low=2, high=2), k=g.integer(-2, 2), exact=True)


def fill_shape(g: Grower) -> None:
    from onnx.numpy_helper import from_array
    shape, = g.add("Shape", g.pick("fib"))
    dtype = g.choice([np.float32, np.int64, np.bool_])
    g.add("ConstantOfShape", shape, value=from_array(g.fill((1,), dtype)), exact=True)


def conv(g: Grower) -> None:
    """A convolution of one or two dimensions, as the front of speech and image models."""
    if g.special:  # the reference multiplies what lies between the elements of dilated kernels by 0
        raise Discard
    x = image(g)
    channels, groups = x.sizes(1)[0], 1
    if g.chance(0.3):
        groups = g.choice([d for d in range(1, channels + 1) if channels % d == 0])
    kernel = [g.integer(1, 3) for _ in range(x.rank - 2)]
    w = g.const(g.fill((groups * g.integer(1, 3), channels // groups, *kernel)) / np.float32(channels ** 0.5))
    bias = [g.const(g.fill(w.arrays[0].shape[:1]))] if g.chance(0.5) else []
    attrs = _window(g, x.rank - 2)
    g.add("Conv", x, w, *bias, group=groups, kernel_shape=kernel, **attrs)


def pool(g: Grower) -> None:
    x = image(g)
    op = g.choice(["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"])
    if x.rank < 4 or g.special:  # the reference makes other shapes, also of uneven padding, and passes over NaN
        raise Discard
    if op.startswith("Global"):
        g.add(op, x)
        return
    attrs = _window(g, x.rank - 2)
    for name in ("auto_pad", "pads"):
        attrs.pop(name, None)
    if op == "AveragePool":
        attrs["count_include_pad"] = g.integer(0, 1)
        attrs.pop("dilations", None)
    g.add(op, x, kernel_shape=[g.integer(2, 3) for _ in range(x.rank - 2)], **attrs)


def image(g: Grower) -> Val:
    def fits(v: Val) -> bool:
        return v.static(1) and 0 < v.sizes(1)[0] <= 16 and all(min(v.sizes(a)) > 2 for a in range(2, v.rank))
    try:
        return g.pick(low=3, high=4, where=fits)
    except Discard:
        rank = g.choice([3, 4])
        sizes = [g.choice([[3, 8, 5], [6] * 3]) for _ in range(rank - 2)]
        return g.input_of([g.choice([[1, 2, 3], [2] * 3]), [g.choice([1, 2, 4])] * 3, *sizes])


def _window(g: Grower, rank: int) -> dict[str, Any]:
    attrs: dict[str, Any] = {"strides": [g.integer(1, 2) for _ in range(rank)]}
    way = g.integer(0, 3)
    if way == 0:
        attrs["auto_pad"] = g.choice(["SAME_UPPER", "SAME_LOWER", "VALID"])
    elif way == 1:
        attrs["pads"] = [g.integer(0, 1) for _ in range(2 * rank)]
    elif way == 2:
        attrs["dilations"] = [g.integer(1, 2) for _ in range(rank)]
    return attrs


def batch_norm(g: Grower) -> None:
    x = image(g)
    vectors = [g.fill(x.sizes(1)[:1]) for _ in range(4)]
    vectors[3] = np.abs(vectors[3]) + np.float32(0.5)
    if g.chance(0.5):
        g.add("BatchNormalization", x, *map(g.const, vectors))
    else:
        g.add("InstanceNormalization", x, *map(g.const, vectors[:2]), epsilon=0.1)


def resize(g: Grower) -> None:
    """Position embeddings and images in other sizes."""
    if g.special:  # of which the reference makes other numbers
        raise Discard
    x = image(g)
    none = g.const(np.zeros(0, np.float32))
    last = g.choice([0.5, 2.0, 1.5])
    scales = g.const(np.array([1, 1, *[last] * (x.rank - 2)], np.float32))
    mode = g.choice(["nearest", "linear", "cubic"])
    place = g.choice(["half_pixel", "asymmetric", "align_corners"])
    attrs: dict[str, Any] = {"nearest_mode": "floor"} if mode == "nearest" else {}
    if g.chance(0.5):
        g.add("Resize", x, none, scales, mode=mode, coordinate_transformation_mode=place, **attrs)
        return
    start, = g.add("Slice", g.add("Shape", x)[0], g.const(np.array([0])), g.const(np.array([2])), exact=True)
    to = g.const(np.array([g.integer(1, 7) for _ in range(x.rank - 2)]))
    sizes, = g.add("Concat", start, to, axis=0, exact=True)
    g.add("Resize", x, none, none, sizes, mode=mode, coordinate_transformation_mode=place, **attrs)


def depth_to_space(g: Grower) -> None:
    x = g.pick(low=4, high=4)
    g.add(g.choice(["DepthToSpace", "SpaceToDepth"]), x, blocksize=g.choice([1, 2]), exact=True)


def ends_of_range(g: Grower) -> None:
    """Integers next to the ends of their range, and what is done to them."""
    dtype = g.choice(INTEGERS)
    info = np.iinfo(dtype)
    shape = g.choice([(), (3,), (2, 3)])
    x = g.input_of([[d] * 3 for d in shape], dtype)
    ends = g.const(g.rng.choice(np.array([info.min, info.min + 1, 0, 1, info.max - 1, info.max], dtype), shape))
    both, = g.add("Add", x, ends, exact=True)
    op = g.choice(["Add", "Sub", "Mul", "Neg", "Abs", "Div", "Mod", "Min", "Max", "Less", "Equal", "Sign"])
    if op in ("Neg", "Abs", "Sign"):
        g.add(op, both, exact=True)
    elif op in ("Div", "Mod"):  # the reference divides as Python does, the standard as C
        by = g.const(np.array(g.choice([1, 2, 3, 7]), dtype))
        if op == "Div":
            both, = g.add("Max", both, g.const(np.array(0, dtype)), exact=True)
        g.add(op, both, by, exact=True)
    else:
        g.add(op, both, x, exact=True)


def bits(g: Grower) -> None:
    dtype = g.choice([np.uint8, np.uint16, np.uint32, np.uint64])
    x = g.input_of([[g.choice([1, 3])] * 3, [4] * 3], dtype)
    op = g.choice(["BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"])
    if op == "BitShift":
        g.add(op, x, g.const(g.rng.integers(0, 8, (4,)).astype(dtype)), direction=g.choice(["LEFT", "RIGHT"]))
    elif op == "BitwiseNot":
        g.add(op, x, exact=True)
    else:
        g.add(op, x, g.const(g.fill((4,), dtype)), exact=True)


def quantized_product(g: Grower) -> None:
    """Rows quantized at run time, and an integer product."""
    if g.quantize or g.special:
        raise Discard
    x = g.pick(exact=True, low=2, where=lambda v: v.static(-1) and all(a.size for a in v.arrays))
    q, scale, zero = g.add("DynamicQuantizeLinear", x, count=3)
    w = g.const(g.rng.integers(-128, 128, (x.sizes(-1)[0], 16)).astype(np.int8))
    y, = g.add("MatMulInteger", q, w, zero)
    g.add("Mul", g.add("Cast", y, to=1)[0], g.add("Mul", scale, g.const(np.float32(0.01)))[0])


def quantize_and_back(g: Grower) -> None:
    x = g.pick(exact=True)
    if g.quantize or g.special:  # what becomes of NaN is not defined
        raise Discard
    dtype = g.choice([np.uint8, np.int8])
    scale, zero = g.const(np.float32(0.0625)), g.const(np.array(g.choice([0, 3]), dtype))
    q, = g.add("QuantizeLinear", x, scale, zero)
    g.add("DequantizeLinear", q, scale, zero)


def tests_of_floats(g: Grower) -> None:
    x = g.pick(exact=True)
    g.add(g.choice(["IsNaN", "IsInf"]), x, exact=True)


def variadic(g: Grower) -> None:
    x = g.pick()
    g.add(g.choice(["Sum", "Mean", "Max", "Min"]), *[g.pick() if g.chance(0.5) else x for _ in range(g.integer(1, 3))])


def parametric(g: Grower) -> None:
    x = g.pick()
    way = g.integer(0, 5 if x.rank else 4)
    if way == 0:
        g.add("PRelu", x, g.const(g.fill(())))
    elif way == 1:
        g.add("ThresholdedRelu", g.pick(exact=True), alpha=0.5)
    elif way == 2:
        g.add("Shrink", g.pick(exact=True), lambd=0.5, bias=0.25)
    elif way == 3:
        g.add("Hardmax", g.pick(exact=True, low=1), axis=-1)
    elif way == 4:
        g.add("Swish", x, alpha=g.choice([1.0, 1.5]))
    else:
        g.add("LpNormalization", g.add("Add", g.add("Abs", x)[0], g.const(np.float32(0.5)))[0], axis=-1,
              p=g.integer(1, 2))


def compress(g: Grower) -> None:
    x = g.pick("fib", low=1)
    g.add("Compress", x, g.const(g.rng.random(g.integer(0, max(1, min(x.sizes(0))))) < 0.5), axis=0, exact=True)


def other_norms(g: Grower) -> None:
    x = image(g)
    channels = x.sizes(1)[0]
    way = g.integer(0, 2)
    if way == 0:
        groups = g.choice([d for d in range(1, channels + 1) if channels % d == 0])
        count = channels if g.opset >= 21 else groups
        g.add("GroupNormalization", x, g.const(g.fill((count,))), g.const(g.fill((count,))), num_groups=groups,
              epsilon=0.1)
    elif way == 1:
        y = g.pick(low=1, where=lambda v: v.static(-1) and v.sizes(-1)[0] > 0)
        g.add("RMSNormalization", y, g.const(g.fill((y.sizes(-1)[0],))), axis=-1, epsilon=0.1)
    else:
        g.add("MeanVarianceNormalization", x, axes=[0, 2, 3][:x.rank - 1])


def conv_transpose(g: Grower) -> None:
    if g.special:
        raise Discard
    x = image(g)
    channels, rank = x.sizes(1)[0], x.rank - 2
    w = g.const(g.fill((channels, g.integer(1, 3), *[g.integer(1, 3) for _ in range(rank)])))
    g.add("ConvTranspose", x, w, strides=[g.integer(1, 2) for _ in range(rank)])


def same_elements(g: Grower) -> None:
    """What gives its operand back, in another type or place perhaps."""
    x = g.pick("fib")
    way = g.integer(0, 4)
    if way == 0:
        g.add("CastLike", x, g.const(np.float32(0)), exact=True)
    elif way == 1:
        g.add("Dropout", g.pick(), exact=True)
    elif way == 2:
        g.add("Size", x, exact=True)
    elif way == 3:
        g.add("CenterCropPad", g.pick("f", low=1), g.const(np.array([g.integer(1, 6)])), axes=[0], exact=True)
    else:
        y = g.pick("f", low=2, where=lambda v: v.static(0) and min(v.sizes(1)) > 0)
        lengths = g.const(g.rng.integers(1, min(y.sizes(1)) + 1, y.sizes(0)[0]))
        g.add("ReverseSequence", y, lengths, batch_axis=0, time_axis=1, exact=True)


def number_theory(g: Grower) -> None:
    way = g.integer(0, 2)
    if way == 0:
        g.add("Range", *map(g.const, (np.float32(g.integer(-2, 2)), np.float32(g.integer(3, 6)), np.float32(0.5))),
              exact=True)
    elif way == 1 and not g.special:
        g.add("Mod", g.pick(exact=True), g.const(np.float32(g.choice([2, -3]))), fmod=1)
    else:
        x = g.pick("i", where=lambda v: all((abs(a) < 20).all() for a in v.arrays))
        g.add("Pow", x, g.const(np.array(g.choice([0, 1, 2, 3]), x.arrays[0].dtype)), exact=True)


ODD_STEPS: dict[Callable[[Grower], None], int] = {
    gather_nd: 1, scatter_elements: 1, scatter_nd: 1, one_hot: 1, eye: 1, fill_shape: 1, conv: 2, pool: 2,
    batch_norm: 1, resize: 1, depth_to_space: 1, ends_of_range: 2, bits: 1, quantized_product: 1,
    quantize_and_back: 1, tests_of_floats: 1, variadic: 1, parametric: 1, compress: 1,
    other_norms: 1, conv_transpose: 1, same_elements: 1, number_theory: 1}
