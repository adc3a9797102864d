"""Products of an already quantized file as products of floats, for q8c to quantize its own way."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from q8c.ir.graph import Array, Graph, Node, Value
from q8c.ir.types import DType, TensorType
from q8c.passes.bounds import lower_bound
from q8c.passes.manager import Pass, Report
from q8c.passes.rewrite import sole_reader, sources, substitute

MOVES = ("reshape", "transpose", "slice", "broadcast_to")  # of integers as of floats, where one scale is for all
ONE = 1e-6  # a factor this near to 1 is what is left of dividing scales by themselves


@dataclass(frozen=True)
class Quantized:
    """Integers less their zero point stand for `value / scale`; no scale: for `value`."""

    value: Value
    scale: Value | None


@dataclass(frozen=True)
class LiftQuantized(Pass):
    """Replaces matmul_integer(quantize_linear(x, s), w) * (s * t) by matmul(x, w * t), and dequantized quantized values
    by the values.

    So a file's own 8-bit weights reach the int8 kernels, and its rows are quantized there, each with a scale of its
    own, which is nearer to the float model than the file's one scale for all rows. What a range that starts at 0 cuts
    off (quantizers drop the ReLU before it) stays cut off.
    """

    name: ClassVar[str] = "lift-quantized"
    lossy: ClassVar[bool] = True

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether something was replaced."""
        changed = False
        for node in list(graph.nodes):
            if node.op == "dequantize_linear":
                changed |= lift_pair(graph, node, report)
            elif node.op == "matmul_integer":
                changed |= lift_product(graph, node, report)
        graph.prune()
        return changed


def lift_pair(graph: Graph, node: Node, report: Report) -> bool:
    """dequantize_linear(quantize_linear(x, s, z), s, z) -> x."""
    q, scale, zero = (*node.inputs, None)[:3]
    found = float_of(graph, q, zero, node) if q is not None else None
    if found is None or found.scale is None or scale is None:
        return False
    if not same(found.scale, scale):
        report.decline(node, "it is quantized with one scale and dequantized with another")
        return False
    graph.replace_uses(node.output, found.value)
    report.rewrote(found.value.producer or node, "quantized and dequantized with one scale: left as it is")
    return True


def lift_product(graph: Graph, node: Node, report: Report) -> bool:
    """mul(cast(matmul_integer(quantize_linear(x, s), w)), s * t) -> matmul(x, w * t)."""
    a, b, a_zero, b_zero = (*node.inputs, None, None)[:4]
    cast = sole_reader(graph, node.output)
    scaled = sole_reader(graph, cast.output) if cast is not None and cast.op == "cast" else None
    if a is None or b is None or cast is None or scaled is None or scaled.op != "mul" \
            or cast.output.dtype is not DType.f32 or scaled.output.shape != node.output.shape:
        report.decline(node, "its result is not multiplied by a scale: an integer product, computed exactly")
        return False
    left, right = float_of(graph, a, a_zero, node), float_of(graph, b, b_zero, node)
    if left is None or right is None:
        report.decline(node, "an operand is not quantized here: an integer product, computed exactly")
        return False
    factors = factors_of(scaled.input(1) if scaled.input(0) is cast.output else scaled.input(0))
    known = np.float64(1)
    for scale in (left.scale, right.scale):
        if scale in factors:
            factors.remove(scale)
        elif scale is not None and scale.is_constant:
            known = known / scale.array().astype(np.float64)
        elif scale is not None:
            report.decline(node, f"its result is not multiplied by the scale %{scale.name}: computed exactly")
            return False
    for factor in [f for f in factors if f.is_constant]:
        known = known * factor.array().astype(np.float64)
        factors.remove(factor)
    write_product(graph, scaled, (left.value, right.value), np.asarray(known, np.float32), factors,
                  sources([node, cast, scaled]))
    report.rewrote(scaled, "an integer product of quantized floats as the product of the floats")
    return True


def write_product(graph: Graph, last: Node, operands: tuple[Value, Value], known: Array, factors: list[Value],
                  source: tuple[str, ...]) -> None:
    """matmul(a, b) times the known factor and the others, in place of what `last` gives."""
    a, b = operands
    if b.is_constant and (known.ndim < 2 or known.shape[-2] == 1):
        b, known = graph.constant(b.array() * known, b.name), np.ones((), np.float32)
    y = graph.add("matmul", [a, b], source=source, before=last).output
    if np.abs(known - 1).max() > ONE:
        factors = [*factors, graph.constant(known, "scale")]
    for factor in factors:
        y = graph.add("mul", [y, factor], source=source, before=last).output
    substitute(graph, last.output, y)


def float_of(graph: Graph, q: Value, zero: Value | None, before: Node) -> Quantized | None:
    """The floats that integers less a zero point were made from, moved as the integers are; None if not known.

    New nodes are put before `before`.
    """
    if q.is_constant and (zero is None or zero.is_constant):
        steps = q.array().astype(np.float32)
        return Quantized(graph.constant(steps if zero is None else steps - zero.array().astype(np.float32), q.name),
                         None)
    node = q.producer
    if node is None:
        return None
    if node.op in MOVES and (zero is None or zero.type.size == 1):
        found = float_of(graph, node.input(0), zero, before)
        if found is None or found.scale is None or found.scale.type.size != 1:
            return None
        return Quantized(graph.add(node.op, [found.value], node.attrs, source=node.source, before=before).output,
                         found.scale)
    if node.op != "quantize_linear":
        return None
    x, scale, own_zero = (*node.inputs, None)[:3]
    if x is None or scale is None or not same(own_zero, zero):
        return None
    return Quantized(saturated(graph, node, before), scale)


def saturated(graph: Graph, node: Node, before: Node) -> Value:
    """What quantize_linear quantizes, cut to its range where that starts at 0 and the value may lie below.

    A scale too large for a float, which quantizers give masks of the lowest float, tells no range.
    """
    x, scale, zero = node.input(0), node.input(1), node.inputs[2] if len(node.inputs) > 2 else None
    bounds = np.iinfo(node.output.dtype.value)
    start = 0 if zero is None else uniform_number(zero)
    if start != bounds.min or not scale.is_constant or lower_bound(x) >= 0:
        return x
    with np.errstate(over="ignore"):
        high = scale.array() * np.float32(bounds.max - bounds.min)
    if not np.isfinite(high).all():
        return x
    floor = graph.constant(0.0, "zero", type=TensorType(DType.f32, ()))
    y = graph.add("max", [x, floor], source=node.source, before=before).output
    return graph.add("min", [y, graph.constant(high, "high")], source=node.source, before=before).output


def uniform_number(value: Value) -> int | None:
    """The one integer a constant holds, else None."""
    return int(value.array().reshape(-1)[0]) if value.is_constant and value.type.size == 1 else None


def same(a: Value | None, b: Value | None) -> bool:
    """Whether two scales or zero points are the same, as values or as constants; none given is a zero point of 0."""
    if a is b:
        return True
    if a is None or b is None:
        other = a or b
        return other is not None and other.is_constant and not other.array().any()
    return a.is_constant and b.is_constant and np.array_equal(np.squeeze(a.array()), np.squeeze(b.array()))


def factors_of(value: Value) -> list[Value]:
    """The values a product of scales is made of."""
    node = value.producer
    if node is None or node.op != "mul":
        return [value]
    return [f for operand in node.operands for f in factors_of(operand)]
