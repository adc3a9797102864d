"""Ops of ONNX Runtime, which is asked what they give, and quantized layers as its tools write them."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.fuzz.dress import MICROSOFT
from tests.fuzz.fragments import hidden, ranged, size_of, vector
from tests.fuzz.grower import Discard, Grower, Val


def own(g: Grower, op: str, *operands: Val | None, **attrs: Any) -> list[Val]:
    """A node of ONNX Runtime's own domain."""
    if g.special:  # which NaN it keeps is nowhere said
        raise Discard
    while operands and operands[-1] is None:
        operands = operands[:-1]
    return g.add(op, *operands, domain=MICROSOFT, **attrs)


def weights(g: Grower, *shape: int) -> Val:
    return g.const(g.fill(shape) / np.float32(shape[0] ** 0.5))


def maybe(g: Grower, *shape: int) -> Val | None:
    """A vector, or none."""
    return g.const(g.fill(shape)) if g.chance(0.5) else None


def activation(g: Grower) -> None:
    x = g.pick(low=1, where=lambda v: v.static(-1) and v.sizes(-1)[0] > 0)
    way, width = g.integer(0, 3), x.sizes(-1)[0]
    if way == 0:
        own(g, "Gelu", x)
    elif way == 1:
        own(g, "FastGelu", x, maybe(g, width))
    elif way == 2:
        own(g, "QuickGelu", x, alpha=g.choice([1.0, 1.702]))
    else:
        own(g, "BiasGelu", x, g.const(g.fill((width,))))


def fused_product(g: Grower) -> None:
    x = hidden(g)
    if 0 in (*x.sizes(0), *x.sizes(1)):  # ONNX Runtime leaves what it gives then unset
        raise Discard
    width, flip = x.sizes(-1)[0], g.integer(0, 1)
    if g.chance(0.5):
        own(g, "FusedMatMul", x, weights(g, *[5, width][:: 1 if flip else -1]), transB=flip, alpha=g.choice([1.0, 0.5]))
    else:
        own(g, "FusedMatMul", x, x, transB=1, alpha=0.125)


def skip_norm(g: Grower) -> None:
    x = hidden(g)
    if 0 in (*x.sizes(0), *x.sizes(1)):
        raise Discard
    width, skip = x.sizes(-1)[0], g.input_of([x.sizes(a) for a in range(3)])
    scale = g.const(g.fill((width,)))
    if g.chance(0.5):
        own(g, "SkipLayerNormalization", x, skip, scale, maybe(g, width), maybe(g, width), epsilon=0.1)
    else:
        own(g, "SkipSimplifiedLayerNormalization", x, skip, scale, maybe(g, width), epsilon=0.1)


def heads_op(g: Grower) -> None:
    """MultiHeadAttention, or GroupQueryAttention of a first prompt, perhaps with rotary angles."""
    x = hidden(g)
    if 0 in (*x.sizes(0), *x.sizes(1)) or min(x.sizes(1)) < 2:
        raise Discard
    width, heads = x.sizes(-1)[0], g.choice([1, 2])
    q, k, v = (g.add("MatMul", x, weights(g, width, width))[0] for _ in range(3))
    if g.chance(0.5):
        bias = g.input_of([[1] * 3, [g.choice([1, heads])] * 3, x.sizes(1), x.sizes(1)]) if g.chance(0.4) else None
        own(g, "MultiHeadAttention", q, k, v, maybe(g, 3 * width), None, bias, num_heads=heads,
            unidirectional=g.integer(0, 1))
        return
    size = width // heads
    past = [g.input_of([x.sizes(0), [heads] * 3, [0] * 3, [size] * 3]) for _ in range(2)]
    total, = g.add("Cast", size_of(g, x, 1), to=6, exact=True)
    last, = g.add("Expand", g.add("Sub", total, g.const(np.int32(1)), exact=True)[0], vector(g, size_of(g, x, 0)),
                  exact=True)
    angles = [g.const(g.fill((40, size // 2))) for _ in range(2)] if g.chance(0.4) and size % 16 == 0 else []
    own(g, "GroupQueryAttention", q, k, v, *past, last, total, *angles, count=3, num_heads=heads, kv_num_heads=heads,
        do_rotary=int(bool(angles)), **({"local_window_size": 2} if g.chance(0.3) else {}))


def rotary_op(g: Grower) -> None:
    x = hidden(g)
    if 0 in (*x.sizes(0), *x.sizes(1)) or max(x.sizes(1)) > 40:
        raise Discard
    places, = g.add("Expand", g.add("Unsqueeze", ranged(g, size_of(g, x, 1)), g.const(np.array([0])), exact=True)[0],
                    vector(g, size_of(g, x, 0), size_of(g, x, 1)), exact=True)
    angles = [g.const(g.fill((40, x.sizes(-1)[0] // 2))) for _ in range(2)]
    own(g, "RotaryEmbedding", x, places, *angles, interleaved=g.integer(0, 1))


def few_bits(g: Grower) -> None:
    x = g.pick(low=2, where=lambda v: v.static(-1) and v.sizes(-1)[0] > 0 and all(a.size for a in v.arrays))
    depth, cols, bits, block = x.sizes(-1)[0], g.choice([1, 3, 16]), g.choice([4, 4, 8]), g.choice([16, 32])
    blocks = -(-depth // block)
    q = g.const(g.rng.integers(0, 256, (cols, blocks, block * bits // 8)).astype(np.uint8))
    scales = g.const((g.rng.random(cols * blocks) * 0.02 + 0.01).astype(np.float32))
    zeros = g.const(g.rng.integers(0, 256, cols * -(-blocks * bits // 8)).astype(np.uint8)) if g.chance(0.5) else None
    own(g, "MatMulNBits", x, q, scales, zeros, None, maybe(g, cols), K=depth, N=cols, bits=bits, block_size=block)


def step_and_zero(g: Grower, dtype: Any) -> tuple[Val, Val]:
    """A scale, a power of two so that ties are ties to everybody, and a zero point."""
    return g.const(np.float32(2.0 ** g.integer(-6, -3))), g.const(np.array(g.choice([0, 3, 100]), dtype))


def quantized(g: Grower, dtype: Any) -> tuple[Val, Val, Val]:
    if g.quantize or g.special:
        raise Discard
    step, zero = step_and_zero(g, dtype)
    x = g.pick(low=2, exact=True, where=lambda v: v.static(-1) and all(a.size for a in v.arrays))
    return g.add("QuantizeLinear", x, step, zero)[0], step, zero


def quantized_op(g: Grower) -> None:
    """Sums, products and activations of bytes."""
    dtype = g.choice([np.uint8, np.int8])
    x, other, out = quantized(g, dtype), quantized(g, dtype), step_and_zero(g, dtype)
    way = g.integer(0, 3)
    if way == 0:
        own(g, g.choice(["QLinearAdd", "QLinearMul"]), *x, *(x if g.chance(0.4) else other), *out)
    elif way == 1:
        own(g, "QLinearLeakyRelu", *x, *out, alpha=0.25)
    elif way == 2:
        own(g, "QLinearConcat", *out, *x, *other, axis=0)
    else:
        own(g, "QLinearAveragePool", *x, *out, kernel_shape=[2, 2])


def integer_product(g: Grower) -> None:
    """A product of bytes as float, with what belongs to each column."""
    x, step, zero = quantized(g, np.uint8)
    cols, per_column = g.choice([1, 5, 16]), g.chance(0.5)
    w = g.const(g.rng.integers(-128, 128, (x.sizes(-1)[0], cols)).astype(np.int8))
    scale = g.const((g.rng.random(cols if per_column else ()) * 0.01 + 0.01).astype(np.float32))
    own_zero = g.const(g.rng.integers(-9, 9, cols if per_column else ()).astype(np.int8)) if g.chance(0.5) else None
    own(g, "MatMulIntegerToFloat", x, w, step, scale, zero, own_zero, maybe(g, cols))


def quantized_linear(g: Grower) -> None:
    """Rows and weights quantized and back, and their product."""
    q, step, zero = quantized(g, g.choice([np.uint8, np.int8]))
    x, = g.add("DequantizeLinear", q, step, zero)
    cols, dtype = g.choice([3, 16, 17]), g.choice([np.uint8, np.int8])
    w = g.const(g.rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, (x.sizes(-1)[0], cols)).astype(dtype))
    size: Any = cols if g.opset >= 13 and g.chance(0.5) else ()
    scale = g.const((g.rng.random(size) * 0.01 + 0.01).astype(np.float32))
    attrs: dict[str, Any] = {"axis": 1} if size else {}
    back, = g.add("DequantizeLinear", w, scale, g.const(np.full(size, g.choice([0, 7]), dtype)), **attrs)
    y, = g.add("MatMul", x, back)
    if g.chance(0.5):
        g.add("Add", y, g.const(g.fill((cols,))))


CONTRIB_STEPS: dict[Callable[[Grower], None], int] = {
    activation: 1, fused_product: 1, skip_norm: 1, heads_op: 2, rotary_op: 1, few_bits: 1, quantized_op: 2,
    integer_product: 1, quantized_linear: 2}
