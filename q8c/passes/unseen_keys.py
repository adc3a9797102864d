"""What models do about queries that see no key: ONNX's Attention gives them 0."""
from __future__ import annotations

from dataclasses import replace

import numpy as np

from q8c.ir.dims import Dim
from q8c.ir.graph import Graph, Node, Value
from q8c.ir.types import DType, TensorType
from q8c.passes.attention_scores import Added, Filled, Step, aligned
from q8c.passes.causal_mask import Seen, causal_mask
from q8c.passes.rewrite import sole_reader
from q8c.passes.rules import attr, producer, uniform


def says_unseen(graph: Graph, test: Value, sizes: tuple[Dim, Dim, Dim, Dim], meaning: Seen | str | None) -> bool:
    """Whether a test says that a query sees no key, where a mask means which ones it sees."""
    step = hidden_keys(graph, test, sizes)
    if step is None or not isinstance(meaning, Seen):
        return False
    return causal_mask(graph, (step,), sizes) == replace(meaning, spread=False)


def hidden_keys(graph: Graph, test: Value, scores: tuple[Dim, ...]) -> Step | None:
    """The mask that hides all keys of a query by a test: the greatest number it adds is minus infinity, or of the keys
    that it shows there are less than one."""
    node = producer(test, "equal", "less")
    over = None if node is None else producer(node.input(0), "reduce_max", "reduce_sum")
    bound = None if node is None else uniform(node.input(1))
    if node is None or over is None or bound is None:
        return None
    if attr(over, "axes") not in ((-1,), (over.input(0).type.rank - 1,)):
        return None
    if over.op == "reduce_max" and node.op == "equal" and bound == -np.inf:
        return Added(over.input(0), scores)
    shown = producer(over.input(0), "cast")
    if over.op == "reduce_sum" and shown is not None and shown.input(0).dtype is DType.bool and (
            0 < bound <= 1 if node.op == "less" else bound == 0):
        return Filled(shown.input(0), graph.constant(-np.inf, "hidden", type=TensorType(DType.f32, ())), False, scores)
    return None


def rows_without_keys(graph: Graph, product: Node) -> Node | None:
    """What puts 0 into some rows of what all heads of an attention compute, as ONNX's Attention does where a query sees
    no key."""
    node = sole_reader(graph, product.output)
    if node is None or node.op != "where" or node.input(2) is not product.output:
        return None
    test = aligned(node.input(0), node.output.shape)
    return node if len(test) == 4 and test[1::2] == (1, 1) and uniform(node.input(1)) == 0 else None


def zero_rows(graph: Graph, behind: Node, result: Value) -> Value:
    """`result` [batch, seq, channels] with 0 in the rows that `behind` puts 0 into."""
    batch, _, seq, one = aligned(behind.input(0), behind.output.shape)
    test = graph.add("reshape", [behind.input(0)], {"shape": (batch, seq, one)}, before=behind).output
    zero = graph.constant(0.0, "zero", type=TensorType(DType.f32, ()))
    return graph.add("where", [test, zero, result], name=result.name, source=behind.source, before=behind).output
