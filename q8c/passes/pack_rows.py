"""Leave padding out: what is computed row by row runs on the tokens of a batch only, attention within each sequence."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from q8c.ir.dims import Dim, sym, symbols
from q8c.ir.graph import Attr, Graph, Node, Value
from q8c.passes.fuse_attention import SINKS
from q8c.passes.manager import Pass, Report
from q8c.passes.padding_mask import PaddingMask, find_mask
from q8c.passes.rewrite import sources, substitute
from q8c.passes.row_layout import ROWS, Layout, Layouts, aligned

# Behind these, what a mask did to a row (a fill, a factor) shows no more as such.
FORGET = frozenset({"matmul", "linear", "q8_matmul", "q8_linear", "layer_norm", "rms_norm", "softmax", "gather",
                    "lookup", "dynamic_quantize", "dequantize", "attention"})


@dataclass(frozen=True)
class PackRows(Pass):
    """Replaces f(x[batch, seq, ...]) by unpack(f(pack(x)[1, tokens, ...])) where f keeps rows apart, and attention with
    a padding mask by packed_attention.

    `tokens` is how many elements of the mask are not 0; they keep their order, and rows of padding read 0 behind
    unpack. What does not keep rows apart, and what applies the mask to rows for such a reader (pooling), stays as it
    is. `mask` names the padding mask; if empty, it is the input that the attentions' masks are computed from.
    """

    name: ClassVar[str] = "pack-rows"
    lossy: ClassVar[bool] = True  # padding reads 0 behind it
    mask: str = ""

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether rows were packed: all attentions must have the one padding mask."""
        attentions = [n for n in graph.nodes if n.op == "attention"]
        if not attentions:
            for node in graph.nodes[-1:]:
                report.decline(node, "there is no attention in the model whose mask could tell padding")
            return False
        mask: PaddingMask | None = None
        for node in attentions:
            found = find_mask(graph, node, self.mask) if len(node.inputs) <= SINKS else "its softmax has sinks"
            if isinstance(found, PaddingMask) and found != (mask or found):
                found = f"its padding mask is %{found.input.name}, that of others another"
            if isinstance(found, str):
                report.decline(node, found)
                return False
            mask = found
        assert mask is not None
        packed = choose(graph, mask)
        missed = [n for n in attentions if n not in packed.members]
        if missed:
            report.decline(missed[0], "its queries, keys and values are not rows of the mask's batch")
            return False
        packed.rewrite()
        report.rewrote(packed.packing, f"{len(packed.members)} nodes, {len(attentions)} of them attentions, on rows "
                                       f"where %{mask.input.name} is not 0")
        graph.prune()
        return True


def choose(graph: Graph, mask: PaddingMask) -> Packed:
    """What is to be packed: all that keeps rows apart and is connected to an attention."""
    layouts = find_layouts(graph, mask)
    members = {n for n in graph.nodes if (attention_layout if n.op == "attention" else Layouts.after)(layouts, n)}
    touched = touched_by(graph, mask.input)
    while True:
        shown = {n for n in members if touched & set(n.outputs)
                 and any(u not in members for v in n.outputs for u in v.users)}
        if not shown:
            break
        members -= shown
    return Packed(graph, mask, layouts, connected(members))


def find_layouts(graph: Graph, mask: PaddingMask) -> Layouts:
    """Layouts of all values that have rows, computed by itself each or not."""
    layouts = Layouts(graph, mask.batch, mask.seq)
    layouts.found = {v: ROWS for v in graph.inputs if layouts.fits(v, ROWS)}
    for node in graph.nodes:
        layout = attention_layout(layouts, node) if node.op == "attention" else layouts.after(node)
        for value in node.outputs:
            if layout is not None:
                layouts.found[value] = layout
            elif layouts.fits(value, ROWS) and node.op != "attention":
                layouts.found[value] = ROWS
    return layouts


def attention_layout(layouts: Layouts, node: Node) -> Layout | None:
    """Rows, if queries, keys and values have them."""
    expected = [ROWS if node.input(i).type.rank == 3 else (0, 2) for i in range(3)]
    return ROWS if [layouts.found.get(node.input(i)) for i in range(3)] == expected else None


def touched_by(graph: Graph, mask: Value) -> set[Value]:
    """The values in which it still shows what the mask did to padding."""
    touched = {mask}
    for node in graph.nodes:
        if node.op not in FORGET and touched & set(node.operands):
            touched.update(node.outputs)
    return touched


def connected(members: set[Node]) -> set[Node]:
    """The members that attentions are reached from through members."""
    kept = {n for n in members if n.op == "attention"}
    waiting = list(kept)
    while waiting:
        node = waiting.pop()
        near = [v.producer for v in node.operands if v.producer is not None]
        for other in [*near, *(u for v in node.outputs for u in v.users)]:
            if other in members and other not in kept:
                kept.add(other)
                waiting.append(other)
    return kept


@dataclass
class Packed:
    """The rewrite of `members` into packed rows."""

    graph: Graph
    mask: PaddingMask
    layouts: Layouts
    members: set[Node]
    packed: dict[Value, Value] = field(default_factory=dict)
    made: dict[object, Value] = field(default_factory=dict)

    def rewrite(self) -> None:
        """Write packed nodes in place of the members, and what packs and unpacks around them."""
        self.tokens = self._new_size()
        first = self.graph.nodes[0]
        self.packing = self.graph.add("packing", [self.mask.input], {"tokens": self.tokens}, name="tokens",
                                      before=first)
        self.rows, self.positions, self.places, self.starts = self.packing.outputs
        order = [n for n in self.graph.nodes if n in self.members]
        self.packing.source = sources(n for n in order if n.op == "attention")[:1]
        results = [(node, self._replace(node)) for node in order]
        for node, new in results:
            for old, packed in zip(node.outputs, new.outputs, strict=True):
                if self.graph.is_output(old) or any(u not in self.members for u in old.users):
                    self._unpack(old, packed, node)
                else:
                    old.name, packed.name = packed.name, old.name

    def _new_size(self) -> Dim:
        used = {name for v in self.graph.values() for d in v.shape for name in symbols(d)}
        name, n = "tokens", 0
        while name in used:
            n += 1
            name = f"tokens_{n}"
        self.graph.counts[name] = self.mask.input
        return sym(name)

    def _replace(self, node: Node) -> Node:
        """The packed form of a node, in front of it."""
        attrs = dict(node.attrs)
        if node.op == "attention":
            op = "packed_attention"
            attrs["longest"] = self.mask.seq
            inputs: list[Value | None] = [*(self._operand(v, node) for v in list(node.operands)[:3]), self.starts]
        else:
            op = node.op
            inputs = [None if v is None else self._operand(v, node) for v in node.inputs]
            attrs.update(self._sizes(node))
        known = len(self.graph.assumptions)
        new = self.graph.add(op, inputs, attrs, name=node.output.name, source=node.source, before=node)
        assert len(self.graph.assumptions) == known, f"{node} packed needs {self.graph.assumptions[known:]}"
        for old, value in zip(node.outputs, new.outputs, strict=True):
            self.packed[old] = value
        return new

    def _sizes(self, node: Node) -> dict[str, Attr]:
        """The attributes of a node that state sizes of rows."""
        if node.op in ("reshape", "broadcast_to"):
            return {"shape": self._shape(node.output.shape, self.layouts.found[node.output])}
        if node.op == "slice":
            return {"sizes": self._shape(node.output.shape, self.layouts.found[node.output])}
        return {}

    def _shape(self, shape: Iterable[Dim], layout: Layout) -> tuple[Dim, ...]:
        packed = list(shape)
        packed[layout[0]], packed[layout[1]] = 1, self.tokens
        return tuple(packed)

    def _operand(self, value: Value, node: Node) -> Value:
        """The packed form of an operand of a member."""
        if value in self.packed:
            return self.packed[value]
        if value in self.layouts.found:
            return self._pack(value, self.layouts.found[value], node)
        if value.is_constant or node.op in ("gather", "lookup", "attention"):
            return value
        layout, rank = self.layouts.found[node.output], node.output.type.rank
        batch, seq = (aligned(value, axis, rank) for axis in layout)
        if batch == 1 and seq == 1:
            return value
        if batch != 1:
            return self._pack(self._wide(value, layout, rank, node), layout, node)
        own = layout[1] - rank + value.type.rank
        if (value, own) not in self.made:
            self.made[value, own] = self.graph.add("gather", [value, self.positions], {"axis": own}, name=value.name,
                                                   before=node).output
        return self.made[value, own]

    def _wide(self, value: Value, layout: Layout, rank: int, node: Node) -> Value:
        """An operand with its sequences repeated over all positions."""
        shape = [aligned(value, axis, rank) for axis in range(rank)]
        shape[layout[0]], shape[layout[1]] = self.mask.batch, self.mask.seq
        key = (value, tuple(shape))
        if key not in self.made:
            self.made[key] = self.graph.add("broadcast_to", [value], {"shape": key[1]}, name=value.name,
                                            before=node).output
        return self.made[key]

    def _pack(self, value: Value, layout: Layout, node: Node) -> Value:
        """Rows of a value [batch, seq, ...] that are tokens, its axes in whatever order."""
        if (value, layout) not in self.made:
            front = self._turned(value, layout, node)
            flat = (self.mask.batch * self.mask.seq, *front.shape[2:])
            rows = self.graph.add("reshape", [front], {"shape": flat}, name=value.name, before=node)
            taken = self.graph.add("gather", [rows.output, self.rows], {"axis": 0}, name=value.name, before=node)
            self.made[value, layout] = self._turned(taken.output, layout, node, back=True)
        return self.made[value, layout]

    def _unpack(self, old: Value, packed: Value, node: Node) -> None:
        """Give those who read a member's result outside, and the graph's caller, the rows where they were."""
        layout = self.layouts.found[old]
        front = self._turned(packed, layout, node)
        padded = self.graph.add("unpack", [front, self.places], name=old.name, source=node.source, before=node).output
        padded.type = padded.type.with_shape(old.shape) if layout == ROWS else padded.type
        substitute(self.graph, old, self._turned(padded, layout, node, back=True))

    def _turned(self, value: Value, layout: Layout, node: Node, back: bool = False) -> Value:
        """A value with the axes of `layout` in front of the others, or turned back."""
        rest = [a for a in range(value.type.rank) if a not in layout]
        perm = [*layout, *rest]
        if perm == sorted(perm):
            return value
        if back:
            perm = [perm.index(a) for a in range(len(perm))]
        return self.graph.add("transpose", [value], {"perm": tuple(perm)}, name=value.name, before=node).output
