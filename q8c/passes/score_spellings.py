"""Other ways to write scores of attention, as factors of queries, choices and sums, which `find_scores` follows."""
from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from q8c.ir.graph import Node, Value
from q8c.ir.ops import OPS, attributes
from q8c.ir.types import DType
from q8c.passes.bounds import zeros_and_ones
from q8c.passes.padding_mask import PADDED
from q8c.passes.rules import Rewriter, Rules, orders, producer, uniform


def scale_queries(r: Rewriter, node: Node) -> Value | None:
    """(q k^T) * factor -> (q * factor) k^T, for a factor that is the same for all keys, as each head's own."""
    for scores, factor in orders(node):
        inner = producer(scores, "matmul")
        if inner is None or scores.users != [node] or r.graph.is_output(scores) or any(
                v.is_constant for v in inner.operands):
            continue
        q, rank = inner.input(0), scores.type.rank
        own = (1,) * (rank - factor.type.rank) + factor.shape
        if uniform(factor) is None and q.type.rank == rank >= len(own) and own[-1] == 1 and all(
                d in (1, size) for d, size in zip(own[:-1], q.shape, strict=False)):
            return r.add("matmul", r.add("mul", q, factor), inner.input(1), **inner.attrs)
    return None


def choose_scores(r: Rewriter, node: Node) -> Value | None:
    """scores * b - 10000 * (1 - b) -> where(b, scores, -10000), for b of zeros and ones."""
    for kept, added in orders(node) if node.op == "add" else [(node.input(0), node.input(1))]:
        product = producer(kept, "mul")
        for scores, b in [] if product is None else orders(product):
            if scores.shape != node.output.shape or not zeros_and_ones(b):
                continue
            sign = -1 if node.op == "sub" else 1
            uncast = producer(b, "cast")
            bits = (b,) if uncast is None else (b, uncast.input(0))
            low, none = (number_where(added, bits, x) for x in (0, 1))
            if none == 0 and low is not None and sign * low <= PADDED:
                fill = r.constant(sign * low, scores.dtype)
                return r.add("where", r.add("cast", b, to=DType.bool), scores, fill)
    return None


def number_where(value: Value, bits: Sequence[Value], x: float) -> float | None:
    """What a value is where those of `bits` are x, if it is computed of them and of uniform constants alone."""
    same = uniform(value)
    if value in bits or same is not None:
        return x if value in bits else float(same)
    node = value.producer
    if node is None or not OPS[node.op].elementwise or value.dtype.is_int:
        return None
    found = [number_where(v, bits, x) for v in node.operands]
    if None in found:
        return None
    args = [np.asarray(a, dtype=v.dtype.numpy) for a, v in zip(found, node.operands, strict=True)]
    return float(OPS[node.op].reference(args, attributes(node))[0])


def join_split_scores(r: Rewriter, node: Node) -> Value | None:
    """reshape(reshape(scores) + terms) -> scores + reshape(terms), where positions of images are split by row and
    column, and what is added is one term for each."""
    terms = list(summands(r, node.input(0)))
    scores = next((s for t in terms if (s := split_scores(t)) is not None and s.shape == node.output.shape), None)
    if scores is None or len(terms) == 1:
        return None
    others = [t for t in terms if split_scores(t) is not scores]
    total = others[0]
    for term in others[1:]:
        total = r.add("add", total, term)
    return r.add("add", scores, r.reshape(r.broadcast(total, node.input(0).shape), node.output.shape))


def summands(r: Rewriter, value: Value) -> Iterator[Value]:
    """The terms of a sum of which no part is read elsewhere."""
    node = producer(value, "add")
    if node is None or len(value.users) != 1 or r.graph.is_output(value):
        yield value
    else:
        yield from summands(r, node.input(0))
        yield from summands(r, node.input(1))


def split_scores(value: Value) -> Value | None:
    """The product of two computed values that a value is, in another shape."""
    node = producer(value, "reshape")
    product = None if node is None else producer(node.input(0), "matmul")
    return None if product is None or any(v.is_constant for v in product.operands) else product.output


RULES: Rules = {"mul": (scale_queries,), "add": (choose_scores,), "sub": (choose_scores,),
                "reshape": (join_split_scores,)}
