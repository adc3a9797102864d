"""Attention as exporters write it, as one kernel."""
from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from q8c.ir.dims import Dim
from q8c.ir.graph import Attr, Graph, Node, Value
from q8c.ir.types import DType
from q8c.passes.attention_heads import Heads, find_heads, ordered_heads
from q8c.passes.attention_scores import (
    ABSORBS,
    Filled,
    Masks,
    Raised,
    Scores,
    Step,
    aligned,
    batch_of,
    find_scores,
    same_sizes,
)
from q8c.passes.axis_parts import Moved, move, run, whole
from q8c.passes.causal_mask import Seen, causal_mask
from q8c.passes.manager import Pass, Report
from q8c.passes.rewrite import sources, substitute
from q8c.passes.rules import attr, nodes_between, producer, rewrite, uniform
from q8c.passes.score_spellings import RULES
from q8c.passes.unseen_keys import rows_without_keys, says_unseen, zero_rows

SINKS = 7
"""The operand of attention that holds one more score for each head."""
SWAP = (1, 0, 2)  # [seq, batch, channels] to [batch, seq, channels] and back


@dataclass(frozen=True)
class Found:
    """The parts of one attention: `product` is weights times values; `sinks` as [1, heads, 1, 1]; `hidden`: keys that
    the last mask hides weigh nothing, even where a query sees no other."""

    product: Node
    q: Heads
    k: Heads
    v: Heads
    scores: Scores
    nan_to_zero: bool
    sinks: Value | None
    hidden: bool


@dataclass(frozen=True)
class Weights:
    """The weights of values: the softmax they come from, the scores it is of, and what follows them in its rows; and
    where they become 0: the condition, and what it is there."""

    softmax: Node
    scores: Value
    nan_to_zero: bool
    column: Value | None = None
    hidden: tuple[Value, bool] | None = None


@dataclass(frozen=True)
class FuseAttention(Pass):
    """Replaces softmax(scale * q k^T + mask) v, with the heads split off and joined again, by attention(q, k, v, mask).

    q, k and v become operands [batch, seq, channels], slices of a merged projection offsets; where they are computed
    per head (rotated, or from a cache) they stay [batch, heads, seq, size]. Repeated heads are read where they lie.
    Masks given as conditions become additive, computed once and outside. Masks that are shown to hide later keys, keys
    too far away, and keys where a padding mask is 0, are not computed at all: the attention is told so. A last column
    of the scores whose weights are left out, one number for each head, becomes the operand `sinks`. Attentions that an
    importer wrote get their operands where they lie too.
    """

    name: ClassVar[str] = "fuse-attention"

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether an attention was fused."""
        masks = SharedMasks(graph)
        changed = rewrite(graph, RULES, report)
        for node in list(graph.nodes):
            if node.op == "attention":
                changed |= join_operands(graph, node)
            found = find_attention(graph, node) if node.op == "matmul" else None
            if isinstance(found, str):
                report.decline(node, found)
            elif found is not None:
                fused = fuse(graph, found, masks)
                report.rewrote(fused, f"{found.q.heads} heads of {found.q.size}")
                if isinstance(masks.meaning, str):
                    report.decline(fused, masks.meaning)
                changed = True
        graph.prune()
        return changed


def find_attention(graph: Graph, product: Node) -> Found | str | None:
    """The attention whose weights times values a matmul is, why it cannot be fused, or None if it is none."""
    weights = find_weights(product.input(0))
    scores = None if weights is None else find_scores(graph, weights.scores)
    if weights is None or scores is None:
        return None
    if scores.problem:
        return scores.problem
    if product.output.dtype is not DType.f32:
        return f"it computes in {product.output.dtype}, not f32"
    if not only_read_by(graph, weights.softmax.output, product):
        return "the weights are read elsewhere too"
    parts: list[Heads] = []
    for name, value, transposed in (("queries", scores.product.input(0), False),
                                    ("keys", scores.product.input(1), not attr(scores.product, "transpose_b")),
                                    ("values", product.input(1), attr(product, "transpose_b"))):
        part = operand(graph, value, transposed, product.output, parts[0] if parts else None)
        if part is None:
            return f"its {name} {value.type} are not heads of fixed number and size"
        parts.append(part)
    q, k, v = parts
    if 0 in (q.heads, k.heads):
        return "it has no heads"
    if v.scale != 1 or q.repeat != 1:
        return "its values are scaled" if v.scale != 1 else "its queries are repeated"
    if any(q.batch * q.heads == x.batch * x.heads * x.repeat and q.batch != x.batch or stretches(q.batch, x.batch)
           for x in (k, v)):
        return (f"{q.batch} x {q.heads} heads of queries meet {k.batch} x {k.heads} of keys, "
                f"{v.batch} x {v.heads} of values")
    if k.heads != v.heads or k.size != q.size:
        return f"{q.heads} x {q.size} queries meet {k.heads} x {k.size} keys and {v.heads} x {v.size} values"
    if q.heads != k.heads * k.repeat and k.heads != 1 or k.repeat != v.repeat:
        return f"{k.heads} heads of keys, each repeated {k.repeat} times, do not make {q.heads}"
    sinks = None if weights.column is None else find_sinks(weights.column, q.heads)
    if weights.column is not None and sinks is None:
        return f"its scores have a last column {weights.column.type} that is not a number for each head"
    if weights.hidden is not None:
        last = scores.masks[-1] if scores.masks else None
        if not isinstance(last, Filled) or (last.condition, last.where) != weights.hidden or sinks is not None:
            return "its weights become 0 where no mask hides them"
        scores = replace(scores, masks=(*scores.masks[:-1], replace(last, unseen=True)))
    return foreign_mask(graph, q, scores) or Found(product, q, k, v, scores, weights.nan_to_zero, sinks,
                                                   weights.hidden is not None)


def foreign_mask(graph: Graph, q: Heads, scores: Scores) -> str:
    """Which mask has other batch and heads than the queries, empty if none has."""
    shape = scores.product.output.shape
    for step in (s for s in scores.masks if not isinstance(s, Raised)):
        if len(shape) > 3 and same_sizes(graph, step.scores, shape):
            continue  # axis by axis the queries' own, however their sizes are called
        for value in (v for v in vars(step).values() if isinstance(v, Value)):
            *batch, heads, _, _ = aligned(value, step.scores) if len(step.scores) > 3 else (1, 1, 1, 1)
            if any(d != 1 for d in batch) and not graph.known_equal(batch_of(step.scores), q.batch) or (
                    heads != 1 and not graph.known_equal(heads, q.heads)):
                return f"its mask {value.type} is not for {q.batch} x {q.heads} heads"
    return ""


def stretches(a: Dim, b: Dim) -> bool:
    """Whether one of two sizes that meet is a 1 that goes with every element of the other."""
    return a != b and 1 in (a, b)


def operand(graph: Graph, value: Value, transposed: bool, result: Value, queries: Heads | None) -> Heads | None:
    """The heads that an operand of a product is, its last two axes exchanged or not: where they are cut from, if that
    is found and batch and heads are told apart as those of the queries are."""
    order = list(range(value.type.rank))
    if transposed:
        order[-2:] = order[:-3:-1]
    found = find_heads(graph, value, order)
    if not same_sizes(graph, value.shape[:-2], result.shape[:-2]) or found is not None and (
            queries is None or value.type.rank != 3 or found.batch == queries.batch):
        return found
    return ordered_heads(value, transposed, queries) or found


def find_weights(value: Value) -> Weights | None:
    """The weights that are multiplied with values, if they come from a softmax."""
    node = value.producer
    if node is not None and node.op == "reshape" and node.input(0).shape[-2:] == value.shape[-2:]:
        return find_weights(node.input(0))
    nan_to_zero = False
    if node is not None and node.op == "where":
        where = uniform(node.input(1)) == 0
        x = node.input(2 if where else 1)
        test = producer(node.input(0), "is_nan")
        if test is None and uniform(node.input(1 if where else 2)) == 0:
            found = find_weights(x)
            return None if found is None or found.hidden else replace(found, hidden=(node.input(0), where))
        if test is None or test.input(0) is not x or not where:
            return None
        node, nan_to_zero = x.producer, True
    cut = node if node is not None and node.op == "slice" else None
    node = node if cut is None else cut.input(0).producer
    if node is None or node.op != "softmax" or attr(node, "axis") not in (-1, node.output.type.rank - 1):
        return None
    joined = None if cut is None else producer(node.input(0), "concat")
    if cut is None or joined is None:
        return Weights(node, node.input(0), nan_to_zero) if cut is None else None
    scores, column = joined.input(0), joined.input(len(joined.inputs) - 1)
    if len(joined.inputs) != 2 or scores.shape != cut.output.shape or column.shape[-1] != 1 or any(attr(cut, "starts")):
        return None
    return Weights(node, scores, nan_to_zero, column)


def find_sinks(column: Value, heads: int) -> Value | None:
    """What a last column of scores [batch, heads, queries, 1] is stretched from, if that is a number for each head."""
    node = column.producer
    if column.shape == (1, heads, 1, 1):
        return column
    return find_sinks(node.input(0), heads) if node is not None and node.op == "broadcast_to" else None


def only_read_by(graph: Graph, value: Value, last: Node) -> bool:
    """Whether all that is computed from a value goes into `last`."""
    if value.producer is last:
        return True
    between = ("is_nan", "where", "reshape", "slice")
    return not graph.is_output(value) and all(
        reader is last or (reader.op in between and only_read_by(graph, reader.output, last))
        for reader in value.users)


@dataclass
class SharedMasks:
    """The masks of a graph's attentions, each understood and made once; `meaning` is that of the last."""

    graph: Graph
    made: dict[object, Value] = field(default_factory=dict)
    known: dict[object, Seen | str | None] = field(default_factory=dict)
    meaning: Seen | str | None = None

    def operands(self, steps: tuple[Step, ...], sizes: tuple[Dim, Dim, Dim, Dim], before: Node) -> list[Value | None]:
        """The mask and the key mask of an attention whose scores have these sizes, as far as there are any."""
        key = (steps, sizes)
        if key not in self.known:
            self.known[key] = causal_mask(self.graph, steps, sizes) if steps else None
        self.meaning = self.known[key]
        if not isinstance(self.meaning, Seen):
            mask = Masks(self.graph, before, self.made, sizes[:2]).build(steps)
            return [] if mask is None else [mask]
        if self.meaning.key_mask is None:
            return []
        source = self.meaning.key_mask.value
        batch = 1 if source.shape[0] == 1 else sizes[0]
        if source.type.rank != 2 and source not in self.made:
            shape = (batch, sizes[3])
            self.made[source] = self.graph.add("reshape", [source], {"shape": shape}, before=before).output
        return [None, self.made.get(source, source)]


def fuse(graph: Graph, found: Found, masks: SharedMasks) -> Node:
    """Write the attention node and give its result to whoever read the product's."""
    product, q, k, v = found.product, found.q, found.k, found.v
    steps = found.scores.masks
    operands = [channels(graph, heads, product) for heads in (q, k, v)]
    sizes = (q.batch, q.heads, q.seq, k.seq)
    seen = masks.operands(steps, sizes, product)
    leaves = [q.value, k.value, v.value]
    for step in steps:
        leaves += [x for x in vars(step).values() if isinstance(x, Value)]
    attrs: dict[str, Attr] = {"heads": q.heads, "kv_heads": k.heads, "head_size": q.size,
                              "scale": found.scores.scale * q.scale * k.scale}
    if v.size != k.size:
        attrs["value_size"] = v.size
    if found.nan_to_zero:
        attrs["nan_to_zero"] = True
    if found.scores.softcap:
        attrs["softcap"] = found.scores.softcap
    if isinstance(masks.meaning, Seen):
        attrs |= {name: value for name in ("causal", "window", "spread") if (value := getattr(masks.meaning, name))}
    behind = rows_without_keys(graph, product)
    sinks = None if found.sinks is None else graph.add(
        "reshape", [found.sinks], {"shape": (q.heads,)}, name="sinks", before=product).output
    no_keys = found.hidden
    if sinks is None and behind is not None and says_unseen(graph, behind.input(0), sizes, masks.meaning):
        product, behind, no_keys = behind, None, True
    if no_keys:
        sinks = graph.constant(np.full(q.heads, ABSORBS, np.float32), "sinks")  # all that a query without keys has left
    if sinks is not None:
        attrs.pop("spread", None)  # a query that sees no key has its sink left
        leaves.append(found.sinks or sinks)
        seen = [*seen, *[None] * SINKS][:SINKS - 3] + [sinks]
    if any(heads.offset for heads in (q, k, v)):
        attrs["offsets"] = (q.offset, k.offset, v.offset)
    node = graph.add("attention", [*operands, *seen], attrs, name="attention",
                     source=sources(nodes_between(product, leaves)), before=product)
    if behind is None:
        give_result(graph, product, node.output, found)
    else:
        give_result(graph, behind, zero_rows(graph, behind, node.output), found)
    return node


def channels(graph: Graph, heads: Heads, before: Node) -> Value:
    """An operand in the shape that an attention reads."""
    if heads.turned:
        axes = range(heads.value.type.rank)
        turned = graph.add("transpose", [heads.value], {"perm": (*axes[:-2], *axes[:-3:-1])}, before=before).output
        return channels(graph, replace(heads, value=turned, turned=False), before)
    if heads.swapped:
        return graph.add("transpose", [heads.value], {"perm": SWAP}, name=heads.value.name, before=before).output
    if heads.value.shape == heads.shape:
        return heads.value
    return graph.add("reshape", [heads.value], {"shape": heads.shape}, name=heads.value.name, before=before).output


def join_operands(graph: Graph, node: Node) -> bool:
    """Make an attention read [batch, seq, channels] where heads are split from such; whether it does now."""
    operands, offsets = list(node.inputs), list(attr(node, "offsets"))
    for i, value in enumerate(list(node.operands)[:3]):
        found = find_heads(graph, value, (0, 1, 2, 3)) if value.type.rank == 4 else None
        if found is not None and found.value is not value and (found.scale, found.repeat) == (1, 1):
            operands[i], offsets[i] = channels(graph, found, node), found.offset
    if operands == node.inputs:
        return False
    graph.set_inputs(node, operands)
    node.attrs["offsets"] = tuple(offsets)
    return True


def give_result(graph: Graph, product: Node, result: Value, found: Found) -> None:
    """Make readers of the heads' results read `result` [batch, seq, channels], joined heads without a move."""
    batch, seq, _ = result.shape
    heads, size = found.q.heads, found.v.size
    axes = [run(0, 1, batch), run(2, size, heads), run(1, 1, seq), run(2, 1, size)]
    if product.output.type.rank == 3:
        axes[:2] = [axes[0] + axes[1]]
    if product.output.type.rank == len(axes):
        join_heads(graph, product.output, Moved(tuple(axes), (0, 0, 0)), result)
    if product.output.users or graph.is_output(product.output):
        split = graph.add("reshape", [result], {"shape": (batch, seq, heads, size)}, before=product)
        moved = graph.add("transpose", [split.output], {"perm": (0, 2, 1, 3)}, before=product)
        if product.output.type.rank != 4:
            moved = graph.add("reshape", [moved.output], {"shape": product.output.shape}, before=product)
        substitute(graph, product.output, moved.output)


def join_heads(graph: Graph, value: Value, moved: Moved, result: Value) -> None:
    """Replace what moves the heads' results into the order of `result`, or of [seq, batch, channels], by `result`."""
    for reader in list(dict.fromkeys(value.users)):
        after = move(graph, moved, reader) if reader.op in ("reshape", "transpose") else None
        if after is None:
            continue
        join_heads(graph, reader.output, after, result)
        joined = in_order(graph, after, result, reader) if is_read(graph, reader) else None
        if joined is not None and reader.output.shape == joined.shape:
            graph.replace_uses(reader.output, joined)
        elif joined is not None:
            shaped = graph.add("reshape", [joined], {"shape": reader.output.shape}, before=reader)
            substitute(graph, reader.output, shaped.output)
        if not is_read(graph, reader):
            graph.erase(reader)


def is_read(graph: Graph, node: Node) -> bool:
    """Whether anybody reads what a node computes."""
    return bool(node.output.users) or graph.is_output(node.output)


def in_order(graph: Graph, moved: Moved, result: Value, before: Node) -> Value | None:
    """The value whose elements, in order, are those of `result` as they were moved; None if heads are not joined."""
    batch, seq, channels = whole(result.shape).axes
    if moved.parts == (*batch, *seq, *channels):
        return result
    if moved.parts != (*seq, *batch, *channels):
        return None
    return graph.add("transpose", [result], {"perm": SWAP}, before=before).output
