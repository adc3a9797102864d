"""Compute logits for the last token only."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from q8c.ir.graph import Attr, Graph, Node, Value
from q8c.ir.ops import OPS
from q8c.ir.types import DType
from q8c.passes.manager import Pass, Report
from q8c.passes.rewrite import substitute
from q8c.passes.row_layout import ROWS, Layouts, aligned

BY_ROWS = frozenset({"layer_norm", "rms_norm", "dynamic_quantize", "matmul", "linear", "q8_matmul", "dequantize",
                     "q8_linear", "slice"})
PRODUCTS = frozenset({"matmul", "linear", "dequantize", "q8_linear"})
KEY_MASK, LENGTHS = 4, 5


@dataclass(frozen=True)
class LastLogits(Pass):
    """Replaces logits [batch, seq, vocabulary] by those of each sequence's last token [batch, 1, vocabulary].

    Which token is the last, the mask of keys says where attention has one (or the input named by `mask`), else the
    last position. All that is computed token by token and goes into logits alone, up to the last attention, is
    computed for that token alone.
    """

    name: ClassVar[str] = "last-logits"
    mask: str = ""

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether logits were found and reduced."""
        logits = find_logits(graph)
        if logits is None:
            for node in graph.nodes[-1:]:
                report.decline(node, "no output is a product [batch, seq, columns] that shows logits")
            return False
        layouts = tokens(graph, logits)
        region = reduced(graph, logits, layouts)
        if logits.producer not in region:
            report.decline(logits.producer or graph.nodes[-1], "what logits are made of are no rows of tokens")
            return False
        operands = padding(graph, self.mask, logits)
        made: dict[Value, Value] = {}
        for node in region:
            new = graph.add(node.op, [None if v is None else pick(graph, layouts, v, made, operands, node)
                                      for v in node.inputs], for_one(node), name=node.output.name, source=node.source,
                            before=node)
            made.update(zip(node.outputs, new.outputs, strict=True))
        substitute(graph, logits, made[logits])
        report.rewrote(region[-1], f"{len(region)} nodes for the last token alone")
        graph.prune()
        return True


def find_logits(graph: Graph) -> Value | None:
    """The widest output [batch, seq, columns] that a product with a constant weight gives."""
    found = [v for v in graph.outputs if v.type.rank == 3 and v.shape[1] != 1 and ends_in_product(v)]
    return max(found, key=lambda v: v.shape[2] if isinstance(v.shape[2], int) else 0, default=None)


def ends_in_product(value: Value) -> bool:
    """Whether a value is a product with a constant, scaled or bounded element by element at most."""
    node = value.producer
    while node is not None and OPS[node.op].elementwise:
        node = next((v.producer for v in node.operands if not v.is_constant), None)
    return node is not None and node.op in PRODUCTS and any(v.is_constant for v in node.operands)


def tokens(graph: Graph, logits: Value) -> Layouts:
    """Which values have rows of the tokens that logits are of."""
    layouts = Layouts(graph, logits.shape[0], logits.shape[1])
    for value in graph.inputs:
        if layouts.fits(value, ROWS):
            layouts.found[value] = ROWS
    for node in graph.nodes:
        layout = layouts.after(node)
        for value in node.outputs:
            if layout is not None or layouts.fits(value, ROWS):
                layouts.found[value] = layout or ROWS
    return layouts


def reduced(graph: Graph, logits: Value, layouts: Layouts) -> list[Node]:
    """The nodes, in order, that work token by token and whose results go into logits alone."""
    region: set[Node] = set()
    for node in reversed(graph.nodes):
        mine = any(v is logits for v in node.outputs) or any(v.users for v in node.outputs)
        alone = all(v is logits or not graph.is_output(v) for v in node.outputs) and all(
            u in region for v in node.outputs for u in v.users)
        if mine and alone and (node.op in BY_ROWS or OPS[node.op].elementwise) and layouts.after(node) == ROWS \
                and all(can_pick(layouts, v, node) for v in node.operands):
            region.add(node)
    while True:  # what would have to be picked from rows that are no f32 stays outside, and what it goes into
        inside = {v for n in region for v in n.outputs}
        torn = {n for n in region for v in n.operands if v in layouts.found and v not in inside and (
            v.dtype is not DType.f32 or v.type.rank != 3)}
        if not torn:
            return [n for n in graph.nodes if n in region]
        region -= torn


def for_one(node: Node) -> dict[str, Attr]:
    """A node's attributes for one token of each sequence: columns cut from a product are cut from that one's."""
    if node.op != "slice":
        return node.attrs
    batch, _, *rest = node.output.shape
    return {**node.attrs, "sizes": (batch, 1, *rest)}


def can_pick(layouts: Layouts, value: Value, node: Node) -> bool:
    """Whether an operand has rows of tokens, or is the same for all tokens."""
    return value in layouts.found or value.is_constant or aligned(value, 1, node.output.type.rank) == 1


def padding(graph: Graph, name: str, logits: Value) -> list[Value | None]:
    """The mask and the lengths that tell the last token, as far as there are such."""
    for node in graph.nodes:
        mask = node.inputs[KEY_MASK] if node.op == "attention" and len(node.inputs) > KEY_MASK else None
        if mask is not None and mask.shape[0] == logits.shape[0]:
            return [mask, *node.inputs[LENGTHS:LENGTHS + 1]]
    return [v for v in graph.inputs if v.name == name]


def pick(graph: Graph, layouts: Layouts, value: Value, made: dict[Value, Value], operands: list[Value | None],
         before: Node) -> Value:
    """A value's rows of the last tokens; itself where it has none."""
    if value not in made and value in layouts.found and not value.is_constant:
        made[value] = graph.add("last_token", [value, *operands], name=value.name, before=before).output
    return made.get(value, value)


def last_mask(graph: Graph) -> str:
    """The name of the mask that tells the last token of a graph the pass has run on, empty if there is none."""
    masks = [n.inputs[1] for n in graph.nodes if n.op == "last_token" and len(n.inputs) > 1]
    return next((v.name for v in masks if v is not None), "")
