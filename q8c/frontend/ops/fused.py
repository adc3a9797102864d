"""Products and convolutions that ONNX Runtime's optimizer has put a scale, a transposition or an activation into."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from q8c.frontend.ops.conv import conv
from q8c.frontend.ops.elementwise import clip, hard_sigmoid_of, hard_swish_of, leaky
from q8c.frontend.ops.nn import gemm, multiply, scaled
from q8c.frontend.registry import MICROSOFT, Call, importer
from q8c.frontend.tensor import Tensor

Activation: TypeAlias = "Callable[[Call, Tensor, Sequence[float]], Tensor]"


def _plain(op: str) -> Activation:
    return lambda c, x, given: c.emit(op, x)


def _clip(c: Call, x: Tensor, given: Sequence[float]) -> Tensor:
    return clip(c, x, c.scalar(given[0], x), c.scalar(given[1], x))


def _softsign(c: Call, x: Tensor, given: Sequence[float]) -> Tensor:
    return c.emit("div", x, c.emit("add", c.scalar(1, x), c.emit("abs", x)))


def _elu(c: Call, x: Tensor, given: Sequence[float]) -> Tensor:
    below = c.emit("sub", c.emit("exp", c.emit("min", x, c.scalar(0, x))), c.scalar(1, x))
    return c.emit("where", c.emit("less", x, c.scalar(0, x)), scaled(c, below, given[0]), x)


def _thresholded(c: Call, x: Tensor, given: Sequence[float]) -> Tensor:
    return c.emit("where", c.emit("greater", x, c.scalar(given[0], x)), x, c.scalar(0, x))


ACTIVATIONS: dict[str, tuple[Activation, tuple[float, ...]]] = {
    "Relu": (_plain("relu"), ()), "Tanh": (_plain("tanh"), ()), "Sigmoid": (_plain("sigmoid"), ()),
    "Softplus": (_plain("softplus"), ()), "Softsign": (_softsign, ()),
    "LeakyRelu": (lambda c, x, given: leaky(c, x, given[0]), (0.01,)), "Elu": (_elu, (1.0,)),
    "ThresholdedRelu": (_thresholded, (1.0,)), "Clip": (_clip, (-math.inf, math.inf)),
    "HardSigmoid": (lambda c, x, given: hard_sigmoid_of(c, x, *given), (0.2, 0.5)),
    "HardSwish": (lambda c, x, given: hard_swish_of(c, x), ())}
"""Activations by the names ONNX gives them, with the defaults of their parameters."""


def activated(c: Call, y: Tensor, given: Sequence[float | None]) -> Tensor:
    """What the node's `activation` makes of y; of its parameters those that are `given`."""
    name = c.attr_str("activation", "")
    if not name:
        return y
    if name not in ACTIVATIONS:
        c.unsupported(f"activation {name}; expected one of {', '.join(sorted(ACTIVATIONS))}")
    apply, defaults = ACTIVATIONS[name]
    parameters = [d if i >= len(given) or (p := given[i]) is None else p for i, d in enumerate(defaults)]
    return apply(c, y, parameters)


def _named(c: Call) -> list[float | None]:
    names = ("activation_alpha", "activation_beta")
    return [None if c.attr(name, "FLOAT") is None else c.attr_float(name) for name in names]


@importer("FusedGemm", domain=MICROSOFT)
def fused_gemm(c: Call) -> Tensor:
    """activation(alpha * A' B' + beta * C)."""
    return activated(c, gemm(c), _named(c))


@importer("GemmFastGelu", domain=MICROSOFT)
def gemm_fast_gelu(c: Call) -> Tensor:
    """Gelu, by tanh, of a product plus a bias."""
    y, bias = multiply(c, c.input(0), c.input(1)), c.optional(2)
    return c.emit("gelu", y if bias is None else c.emit("add", y, bias), approximate="tanh")


@importer("FusedConv", domain=MICROSOFT)
def fused_conv(c: Call) -> Tensor:
    """activation(conv(X, W) + B + Z)."""
    y, residual, given = conv(c), c.optional(3), c.attr("activation_params", "FLOATS")
    return activated(c, y if residual is None else c.emit("add", y, residual), given or ())


@importer("FusedMatMul", "TransposeMatMul", "FusedMatMulActivation", domain=MICROSOFT)
def fused_matmul(c: Call) -> Tensor:
    """activation(alpha * A' B'), the last two axes of either operand exchanged or its first one moved behind those of
    the batch."""
    y = multiply(c, _turned(c, c.input(0), "A"), _turned(c, c.input(1), "B"))
    return activated(c, scaled(c, y, c.attr_float("alpha", 1.0)), _named(c))


def _turned(c: Call, x: Tensor, operand: str) -> Tensor:
    if x.rank < 2:
        return x
    if c.attr_int(f"transBatch{operand}", 0):
        x = c.builder.transpose(x, (*range(1, x.rank - 1), 0, x.rank - 1))
    if c.attr_int(f"trans{operand}", 0):
        x = c.builder.transpose(x, (*range(x.rank - 2), x.rank - 1, x.rank - 2))
    return x
