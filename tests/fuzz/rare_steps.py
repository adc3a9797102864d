"""What few transformers hold: signals, recurrences, losses, windows of other kinds, integer convolutions."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from tests.fuzz.grower import Discard, Grower, Val
from tests.fuzz.odd_steps import image

ANGLES = ("Tan", "Asin", "Acos", "Atan", "Atanh", "Sinh", "Cosh", "Asinh")  # all are smooth between -1 and 1


def angle(g: Grower) -> None:
    x, = g.add("Clip", g.pick(), g.const(np.float32(-0.9)), g.const(np.float32(0.9)), exact=True)
    if g.chance(0.2):
        x, = g.add("Add", x, g.const(np.float32(2)))
        g.add("Acosh", x)
    else:
        g.add(g.choice(ANGLES), x)


def other_pool(g: Grower) -> None:
    if g.special:
        raise Discard
    if g.chance(0.3):  # the reference fills as many channels as there are images
        x = g.input_of([[5] * 3, [g.choice([1, 4, 5])] * 3, g.choice([[3, 1, 4], [2] * 3]), [3] * 3])
        g.add("LRN", x, size=g.choice([1, 2, 3, 5]), alpha=g.choice([1e-4, 0.5]), beta=0.75, bias=1.0)
        return
    x = image(g)
    if x.rank == 4:
        g.add("LpPool", x, kernel_shape=[g.integer(1, 3) for _ in range(x.rank - 2)], p=g.integer(1, 2),
              strides=[g.integer(1, 2) for _ in range(x.rank - 2)])


def integer_conv(g: Grower) -> None:
    """A convolution of bytes, as int32 or in steps of its own."""
    rank, channels = g.integer(1, 2), g.choice([1, 3, 4])
    x = g.input_of([[g.choice([1, 2])] * 3, [channels] * 3, *[g.choice([[4, 7, 5], [6] * 3]) for _ in range(rank)]],
                   np.uint8)
    w = g.const(g.rng.integers(-9, 10, (g.integer(1, 3), channels, *[g.integer(1, 3) for _ in range(rank)])).astype(
        g.choice([np.int8, np.uint8])))
    attrs: dict[str, Any] = {"strides": [g.integer(1, 2) for _ in range(rank)],
                             "pads": [g.integer(0, 1) for _ in range(2 * rank)]}
    zero = g.const(np.uint8(g.choice([0, 8])))  # even: the reference adds it before it rounds halves to even
    if g.chance(0.5):
        g.add("ConvInteger", x, w, zero, exact=True, **attrs)
        return
    if g.quantize:
        raise Discard
    step, own = g.const(np.float32(0.5)), g.const(np.array(g.choice([0, 2]), w.arrays[0].dtype))
    bias = [g.const(g.rng.integers(-50, 50, w.arrays[0].shape[:1]).astype(np.int32))] if g.chance(0.5) else []
    g.add("QLinearConv", x, step, zero, w, step, own, g.const(np.float32(2)), zero, *bias, exact=True, **attrs)


def col2im(g: Grower) -> None:
    image_size, block = [g.integer(2, 6), g.integer(2, 6)], [g.integer(1, 2), g.integer(1, 2)]
    strides, pads = [g.integer(1, 2) for _ in range(2)], [g.integer(0, 1) for _ in range(4)]
    places = [(n + pads[i] + pads[i + 2] - b) // s + 1
              for i, (n, b, s) in enumerate(zip(image_size, block, strides, strict=True))]
    if min(places) < 1:
        raise Discard
    x = g.input_of([[1, 2, 3], [2 * block[0] * block[1]] * 3, [places[0] * places[1]] * 3])
    g.add("Col2Im", x, g.const(np.array(image_size)), g.const(np.array(block)), strides=strides, pads=pads)


def spectrum(g: Grower) -> None:
    """Frequencies of a signal, or of frames of it."""
    if g.special or g.quantize:
        raise Discard
    size, batch = g.choice([4, 7, 16]), [g.choice([1, 2])] * 3
    if g.chance(0.5):
        x = g.input_of([batch, [size] * 3, [1] * 3])
        g.add("DFT", x, None, g.const(np.array(1)), onesided=g.integer(0, 1)) if g.opset >= 20 else g.add(
            "DFT", x, axis=1, onesided=g.integer(0, 1))
        return
    x = g.input_of([batch, [3 * size] * 3, [1] * 3])
    shape, = g.add(g.choice(["HannWindow", "HammingWindow", "BlackmanWindow"]), g.const(np.array(size)),
                   periodic=g.integer(0, 1))
    g.add("STFT", x, g.const(np.array(g.integer(1, size))), shape, onesided=1)


def loss(g: Grower) -> None:
    classes = g.choice([2, 5])
    x = g.input_of([[g.choice([1, 4])] * 3, [classes] * 3, *[[3] * 3] * g.integer(0, 2)])
    labels = g.const(g.rng.integers(0, classes, (x.sizes(0)[0], *x.arrays[0].shape[2:])))
    weights = [g.const(np.abs(g.fill((classes,))) + np.float32(0.5))] if g.chance(0.5) else []
    attrs: dict[str, Any] = {"reduction": g.choice(["none", "mean", "sum"])}
    if g.chance(0.5):
        attrs["ignore_index"] = 1
    if g.chance(0.5):
        g.add("NegativeLogLikelihoodLoss", x, labels, *weights, **attrs)
    elif not g.special:  # the reference takes the logarithm of weights, which may have become 0
        g.add("SoftmaxCrossEntropyLoss", x, labels, *weights, count=g.integer(1, 2), **attrs)


def running(g: Grower) -> None:
    """Products along an axis, or a Scan that sums and gives every sum."""
    if g.chance(0.5):
        x = g.pick(low=1)
        axis = g.const(np.array(g.axis(x), g.choice([np.int64, np.int32])))
        g.add("CumProd", x, axis, reverse=g.integer(0, 1), exclusive=g.integer(0, 1))
        return
    x = g.input_of([[g.integer(1, 5)] * 3, *[[g.choice([1, 3])] * 3 for _ in range(g.integer(0, 2))]])
    start = g.const(g.fill(x.arrays[0].shape[1:]))
    declare = [helper.make_tensor_value_info(n, TensorProto.FLOAT, x.arrays[0].shape[1:]) for n in "axsy"]
    nodes = [helper.make_node("Add", ["a", "x"], ["s"]), helper.make_node(g.choice(["Tanh", "Identity"]), ["s"], ["y"])]
    body = helper.make_graph(nodes, "step", declare[:2], declare[2:])
    g.add("Scan", start, x, count=2, num_scan_inputs=1, body=body, scan_input_directions=[g.integer(0, 1)],
          scan_output_directions=[g.integer(0, 1)])


def write_cache(g: Grower) -> None:
    """Rows of keys put into a cache, each sequence's at its own place."""
    batch, most, rows = g.choice([1, 2]), g.choice([4, 7]), g.integer(1, 3)
    cache = g.input_of([[batch] * 3, [2] * 3, [most] * 3, [3] * 3])
    update = g.input_of([[batch] * 3, [2] * 3, [rows] * 3, [3] * 3])
    mode = g.choice(["linear", "circular"])
    start = g.const(g.rng.integers(0, most - rows + 1 if mode == "linear" else most, batch))
    g.add("TensorScatter", cache, update, start, axis=2, mode=mode, exact=True)


def recurrence(g: Grower) -> None:
    """Linear attention by any of its rules, or the convolution before it."""
    if g.special or g.quantize:
        raise Discard
    batch, seq = g.choice([[1, 2, 3], [2] * 3]), g.choice([[1, 4, 3], [3] * 3])
    if g.chance(0.5):
        channels, size = g.choice([2, 16]), g.integer(1, 4)
        x = g.input_of([batch, [channels] * 3, seq])
        given: list[Val | None] = [g.const(g.fill((channels,))) if g.chance(0.5) else None,
                                   g.input_of([batch, [channels] * 3, [size - 1] * 3]) if g.chance(0.5) else None]
        g.add("CausalConvWithState", x, g.const(g.fill((channels, 1, size))), *given, count=2,
              activation=g.choice(["none", "silu"]))
        return
    kept, groups, wide, deep = g.choice([1, 2]), g.choice([1, 2]), g.choice([2, 4]), g.choice([2, 3])
    rule = g.choice(["linear", "gated", "delta", "gated_delta"])
    query, key, value = (g.input_of([batch, seq, [n] * 3]) for n in (kept * groups * wide, kept * wide, kept * deep))
    small = g.const(np.float32(0.3))
    key, = g.add("Mul", key, small)
    state = g.input_of([batch, [kept] * 3, [wide] * 3, [deep] * 3]) if g.chance(0.5) else None
    decay = beta = None
    if "gated" in rule:
        decay, = g.add("Neg", g.add("Abs", g.input_of([batch, seq, [kept * g.choice([1, wide])] * 3]))[0])
    if "delta" in rule:
        beta, = g.add("Sigmoid", g.input_of([batch, seq, [g.choice([1, kept])] * 3]))
    g.add("LinearAttention", query, key, value, state, decay, beta, count=2, q_num_heads=kept * groups,
          kv_num_heads=kept, update_rule=rule)


def as_bits(g: Grower) -> None:
    x = g.pick("fi", exact=True, where=lambda v: v.arrays[0].dtype.itemsize == 4)
    if g.special:  # many are NaN
        raise Discard
    to = {"f": TensorProto.INT32, "i": TensorProto.UINT32}[x.kind]
    g.add("BitCast", x, to=to, exact=True)


def pool_and_back(g: Grower) -> None:
    """Maxima of windows, and those put back where they were."""
    if g.special:
        raise Discard
    x = image(g)
    if x.rank != 4 or not all(x.static(a) for a in (2, 3)):
        raise Discard
    attrs: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}
    y, places = g.add("MaxPool", x, count=2, exact=True, **attrs)
    g.add("MaxUnpool", y, places, exact=True, **attrs)


def grid(g: Grower) -> None:
    aligned = g.integer(0, 1)
    size = [2, 1, *[g.integer(1 + aligned, 4) for _ in range(2)]]  # the corners of one pixel are not defined
    g.add("AffineGrid", g.const(g.fill((2, 2, 3))), g.const(np.array(size)), align_corners=aligned)


def sample(g: Grower) -> None:
    """Pixels of an image wherever a grid says."""
    x = image(g)
    if x.rank != 4 or g.special or not g.opset >= 16:
        raise Discard
    grid = g.input_of([x.sizes(0), [g.choice([1, 3])] * 3, g.choice([[2, 1, 4], [2] * 3]), [2] * 3])
    grid, = g.add("Clip", grid, g.const(np.float32(-1.1)), g.const(np.float32(1.1)), exact=True)
    mode = g.choice(["bilinear", "bicubic"] if g.opset < 20 else ["linear", "cubic"])
    # the reference moves a place on the border and then looks around it, where others move each pixel they look at
    outside = g.choice(["zeros", "reflection"] if "cubic" in mode else ["zeros", "border", "reflection"])
    g.add("GridSample", x, grid, mode=mode, padding_mode=outside, align_corners=g.integer(0, 1))


def places(g: Grower) -> None:
    """Where a constant is not zero; a scalar has no axes."""
    g.add("NonZero", g.const(g.rng.integers(0, 2, g.choice([(), (4,), (2, 3), (0, 2)]))), exact=True)


def distinct(g: Grower) -> None:
    """What distinct numbers a constant holds. In order of the first of each: of vectors, and not by itself, as the
    reference sorts others anyway."""
    x = g.const(g.rng.integers(-3, 4, g.choice([(5,), (2, 4)])))
    count = g.integer(1, 4)
    attrs: dict[str, Any] = {"axis": g.integer(-1, 0)} if g.chance(0.5) else {}
    g.add("Unique", x, count=count, sorted=g.integer(0, 1) if count > 1 and x.rank == 1 else 1, exact=True, **attrs)


RARE_STEPS: dict[Callable[[Grower], None], int] = {
    angle: 1, other_pool: 1, integer_conv: 2, col2im: 1, spectrum: 1, loss: 1, running: 2, write_cache: 1,
    recurrence: 2, as_bits: 1, pool_and_back: 1, grid: 1, distinct: 1, sample: 1,
    places: 1}
