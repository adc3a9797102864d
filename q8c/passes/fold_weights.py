"""Quantize constant weights of matmuls offline."""
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from q8c.errors import CompileError, OptionError
from q8c.ir import q8
from q8c.ir.graph import Array, Attr, Graph, Node, Value
from q8c.ir.spill import release, spilled
from q8c.ir.types import DType
from q8c.passes.calibration import Calibration
from q8c.passes.default_format import DEFAULT, check_format, format_for
from q8c.passes.manager import Pass, Report
from q8c.passes.quantized_product import relative_error
from q8c.passes.rewrite import PRODUCTS, sources

# Quantizing an element of a row costs 0.12 ns and a multiply-add in int8 saves 1/58 - 1/230 = 0.013 ns over float, so
# a row pays back from 10 columns; a depth below one register of 16 floats is bound by the epilogue either way.
MIN_COLS = 16
MIN_DEPTH = 16
MAX_LAYER_ERROR = 0.2  # five times that of the worst product of all-MiniLM-L6-v2; most are at 0.01
BLOCK_FORMAT = "q8-block32"
"""The format of weights that a file keeps as integers in blocks: wider blocks would lose some of their precision."""


class Names(tuple[str, ...]):
    """Names, written in one text with `;` between them."""

    def __new__(cls, names: str | Iterable[str] = ()) -> Names:
        """From such a text, or from the names."""
        items = names.split(";") if isinstance(names, str) else names
        return super().__new__(cls, (n for n in items if n))

    def __str__(self) -> str:
        return ";".join(self)


@dataclass(frozen=True)
class FoldWeights(Pass):
    """Replaces matmul(x, w) by matmul(x, dequantize_weight(u8, scale)), w a constant of two dimensions.

    `format` is how weights are kept; `keep` names nodes of the model that stay float. Where `format` is not
    asked for, the nodes named in `blocked` get a scale per block of 32 steps: the file has them so. A product whose
    results would be farther off than `max_layer_error` (relative L2, on the calibration inputs) stays float.
    """

    name: ClassVar[str] = "fold-weights"
    lossy: ClassVar[bool] = True
    format: str = DEFAULT
    keep: Names = Names()
    blocked: Set[str] = field(default_factory=frozenset, repr=False, compare=False)
    max_layer_error: float = MAX_LAYER_ERROR
    calibration: Calibration = field(default_factory=Calibration, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_format(self.format)
        if not self.max_layer_error > 0:
            raise OptionError(f"the largest error of a layer is {self.max_layer_error}; expected a number above 0, "
                               "such as 0.1, or inf for none")

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether a weight was quantized. Raises CompileError for a weight that is not finite."""
        return fold(graph, self.formats(graph, report), report)

    def formats(self, graph: Graph, report: Report) -> dict[Node, str]:
        """The matmuls whose weights may be quantized, each with its format; why others may not goes to the report."""
        matmuls = [n for n in graph.nodes if n.op in PRODUCTS]
        missing = set(self.keep) - {name for n in matmuls for name in n.source}
        if missing:
            raise OptionError(f"no matmul comes from node {sorted(missing)[0]!r}, which was to stay float; "
                              "`q8c explain -v` lists the names")
        found: dict[Node, str] = {}
        format = format_for(graph, self.format)
        for node in matmuls:
            reason = self.reason_to_keep(node)
            if reason is None:
                in_blocks = self.format == DEFAULT and not self.blocked.isdisjoint(node.source)
                found[node] = BLOCK_FORMAT if in_blocks else format
            elif reason:
                report.decline(node, reason)
        return self.close_enough(graph, found, report)

    def close_enough(self, graph: Graph, formats: Mapping[Node, str], report: Report) -> dict[Node, str]:
        """The products that stay within `max_layer_error`; the others go to the report."""
        found = dict(formats)
        made = [n for n in formats if n.input(0).producer is not None] if math.isfinite(self.max_layer_error) else []
        rows = self.calibration.rows(graph, (n.input(0) for n in made), report)
        for node in made if rows else ():
            error = relative_error(rows[node.input(0)], weight_array(node), q8.block_size(formats[node]))
            for read in (node.input(1).array(), rows[node.input(0)]):
                release(read)
            if not error <= self.max_layer_error:
                del found[node]
                report.decline(node, f"as {formats[node]} its results would be {error:.2g} off, "
                                     f"{self.max_layer_error:g} is allowed (--max-layer-error)")
        return found

    def reason_to_keep(self, node: Node) -> str | None:
        """Why a matmul's weight stays as it is (empty if it is quantized already), or None if it may be folded."""
        x, w = node.input(0), node.input(1)
        if w.producer is not None and w.producer.op == "dequantize_weight":
            return ""
        if not w.is_constant:
            return "its constant operand is the first, not the second" if x.is_constant \
                else "its second operand is not constant"
        if not set(node.source).isdisjoint(self.keep):
            return "it was asked to stay float"
        if x.dtype is not DType.f32:
            return f"its operands are {x.dtype}, not f32"
        depth, cols = weight_shape(node)
        if cols < MIN_COLS or depth < MIN_DEPTH:
            return f"a weight of {depth} x {cols} is too small to pay for quantizing rows"
        if x.type.rank < w.type.rank or any(d != 1 for d in w.shape[:-2]):
            return f"its weight is a batch of matrices, {w.type}"
        if depth > q8.MAX_DEPTH:
            return f"a depth of {depth} overflows int32 sums, which hold {q8.MAX_DEPTH}"
        return None


def fold(graph: Graph, formats: Mapping[Node, str], report: Report) -> bool:
    """Give matmuls quantized weights, each in its format; whether there were any."""
    done: dict[tuple[Value, bool, int], tuple[Value, Value]] = {}
    for node, format in formats.items():
        lost = quantize(graph, node, q8.block_size(format), done)
        if lost:
            report.decline(node, f"the steps of its weight are more than {format} has to one side of 0: rounded again, "
                                 f"{lost:.2%} off")
        report.rewrote(node, f"weight {node.input(1).type} as {format}")
    graph.prune()
    return bool(formats)


def blocks(block: int) -> dict[str, Attr]:
    """The attribute that says how many steps of depth share a scale."""
    return {"block": block} if block else {}


def column_sums(graph: Graph, weight: Value, block: int) -> Value:
    """The sums of a Q8 weight's columns, by which products take zero points of rows into account."""
    sums = graph.constant(q8.column_sums(weight.array(), block), f"{weight.name}.sum")
    release(weight.array())
    return sums


def weight_shape(node: Node) -> tuple[int, int]:
    """Depth and columns of a matmul's constant weight."""
    depth, cols = (int(str(d)) for d in node.input(1).shape[-2:])
    return (cols, depth) if node.attrs.get("transpose_b", False) else (depth, cols)


def weight_array(node: Node) -> Array:
    """A matmul's constant weight as [depth, cols]."""
    w = node.input(1).array()
    w = w.reshape(w.shape[-2:])
    return w.T if node.attrs.get("transpose_b", False) else w


def quantize(graph: Graph, node: Node, block: int, done: dict[tuple[Value, bool, int], tuple[Value, Value]]) -> float:
    """Give a matmul its quantized weight; `done` keeps those made already. What a new one lost of steps it was made of
    (`q8.steps_lost`)."""
    w, lost = node.input(1), 0.0
    key = (w, bool(node.attrs.get("transpose_b", False)), block)
    if key not in done:
        try:
            u, scale = q8.quantize_weight(weight_array(node), block)
            lost = q8.steps_lost(weight_array(node), u, scale, block)
        except CompileError as error:
            raise CompileError(f"{node}, %{w.name}: {error}") from error
        release(w.array())
        done[key] = (graph.constant(spilled(np.ascontiguousarray(u)), f"{w.name}.q8"),
                     graph.constant(scale, f"{w.name}.scale"))
    folded = graph.add("dequantize_weight", done[key], blocks(block), name=w.name, source=sources([node]), before=node)
    graph.set_inputs(node, [node.input(0), folded.output, *node.inputs[2:]])
    node.attrs.pop("transpose_b", None)
    return lost
