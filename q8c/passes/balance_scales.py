"""Balance the scales of activations and weights, channel by channel."""
from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from q8c.ir import q8
from q8c.ir.graph import Array, Graph, Node, Value
from q8c.ir.spill import release, spilled
from q8c.passes.calibration import Calibration
from q8c.passes.default_format import DEFAULT, format_for
from q8c.passes.fold_weights import BLOCK_FORMAT, weight_array
from q8c.passes.manager import Pass, Report
from q8c.passes.quantize_embeddings import embeddings, is_tied
from q8c.passes.quantized_product import rounded_rows, rounded_weight, wants_zero_point
from q8c.passes.rewrite import is_linear, is_product, other_operand, sole_reader, sources, vector

STRENGTHS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6)
SAMPLED_ROWS, SAMPLED_COLS = 64, 96  # of activations and weights, on which the strengths are compared
MIN_ROWS = 16           # fewer say too little of what other rows are like
TOLD_BY = 16            # rows of a weight
LIMITS = (1e-4, 1e4)    # no factor beyond these, so that a dead channel stays harmless


@dataclass(frozen=True)
class BalanceScales(Pass):
    """Replaces matmul(x, w) by matmul(x * f, w / f), f a factor per channel of x, the same for all that read x.

    A few channels of x are always large and force a coarse scale on the whole row. With a = absmax of a channel over
    the calibration rows and b = absmax of its row of the weights, f = (b / a)^s lets both sides share the burden (at
    s = 1/2 SmoothQuant, Xiao et al., 2022, arXiv 2211.10438); s is the one of `STRENGTHS` with the least error of the
    quantized product on the calibration rows. The factor goes into what makes x (a norm's scale and bias, the columns
    of the product before) where that has no other reader, else it is a multiplication before quantizing. `format` is
    the weight format that will be used.
    """

    name: ClassVar[str] = "balance-scales"
    format: str = DEFAULT
    calibration: Calibration = field(default_factory=Calibration, repr=False, compare=False)

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether a factor was put in."""
        groups: dict[Value, list[Node]] = {}
        for node in graph.nodes:
            if is_linear(node) and node.input(0).producer is not None:
                groups.setdefault(node.input(0), []).append(node)
        rows = self.calibration.rows(graph, groups, report)
        changed = False
        tables = [node.input(0).array() for node in embeddings(graph)]
        block = q8.block_size(format_for(graph, self.format))
        for x, products in groups.items() if rows else ():
            weights = [weight_array(p) for p in products]
            reason = reason_to_keep(weights, tables)
            if len(rows[x]) < MIN_ROWS:
                reason = reason or f"{len(rows[x])} rows were seen, balancing wants {MIN_ROWS} to go by"
            f = np.ones((), np.float32) if reason else self.factors(rows[x], weights, block)
            for w in (*weights, *tables):
                release(w)
            if reason:
                report.decline(products[0], reason)
            elif (f == 1).all():
                report.decline(products[0], f"no factors for the channels of %{x.name} lower the error")
            else:
                self.calibration.seen[balance(graph, x, products, f, report)] = spilled(rows[x] * f)
                changed = True
            release(rows[x])
        graph.prune()
        return changed

    def factors(self, rows: Array, weights: list[Array], block: int) -> Array:
        """The best factors for these rows; where an earlier branch of the model has the same weights, its own."""
        known = self.calibration.factors
        if known is None:
            return best_factors(rows, weights, block)
        key = b"".join(_digest(w) for w in weights)
        if key not in known:
            known[key] = best_factors(rows, weights, block)
        return known[key]


def reason_to_keep(weights: Sequence[Array], tables: Sequence[Array]) -> str:
    """Why weights of one input take no factors; empty if they may."""
    if any(q8.has_own_steps(w) or q8.has_few_steps(w, q8.block_size(BLOCK_FORMAT)) for w in weights):
        return "its weights are 8-bit numbers already, or 4-bit numbers in blocks, which factors would round again"
    if any(is_tied(w, tables) for w in weights):
        return "its weight is the table of embeddings too, which is kept once"
    return ""


def _digest(w: Array) -> bytes:
    """What tells a weight from all others of a model: its shape and some of its rows."""
    return hashlib.sha256(repr(w.shape).encode() + w[::max(len(w) // TOLD_BY, 1)].tobytes()).digest()


def best_factors(rows: Array, weights: list[Array], block: int) -> Array:
    """The factor of each channel, f32[depth], of the strength that leaves the least error; 1 for all where a weight is
    not finite, which rounding it refuses by its name."""
    a = absmax(rows, axis=0)
    b = np.max([absmax(w, axis=1) for w in weights], axis=0)
    if not np.isfinite(b).all():
        return np.ones(len(b), np.float32)
    step = max(sum(w.shape[1] for w in weights) // SAMPLED_COLS, 1)
    w = np.ascontiguousarray(np.concatenate([w[:, ::step] for w in weights], axis=1))
    sample = np.ascontiguousarray(rows[::max(len(rows) // SAMPLED_ROWS, 1)])
    exact = sample @ w
    candidates = [factors(a, b, s) for s in STRENGTHS]
    return min(candidates, key=lambda f: product_error(sample, w, f, block, exact))


def absmax(x: Array, axis: int) -> Array:
    """The largest absolute value along an axis in double precision, without a copy of x."""
    return np.asarray(np.maximum(x.max(axis=axis, initial=0.0), -x.min(axis=axis, initial=0.0)), np.float64)


def factors(a: Array, b: Array, strength: float) -> Array:
    """The factors for one strength, of geometric mean 1; 1 for a channel that is zero on either side."""
    used = (a > 0) & (b > 0)
    f = np.ones_like(a)
    f[used] = (b[used] / a[used]) ** strength
    if used.any():
        f[used] /= np.exp(np.log(f[used]).mean())
    return np.clip(f, *LIMITS).astype(np.float32)


def product_error(rows: Array, w: Array, f: Array, block: int, exact: Array) -> float:
    """The squared error of the product of rows and weights that both are quantized after balancing by f."""
    scaled = rows * f
    error = rounded_rows(scaled, block, wants_zero_point(scaled, block)) @ rounded_weight(w / f[:, None], block) - exact
    return float(np.vdot(error, error))


def balance(graph: Graph, x: Value, products: list[Node], f: Array, report: Report) -> Value:
    """Multiply x by f where the products read it, and divide their weights; returns what they read then."""
    for product in products:
        weight = new_weight(graph, product, weight_array(product) / f[:, None], "balanced")
        graph.set_inputs(product, [x, weight, *product.inputs[2:]])
        product.attrs.pop("transpose_b", None)
    only_products = len(x.users) == len(products) and not graph.is_output(x)
    into = absorb(graph, x, f) if only_products else None
    if into is None:
        scaled = graph.add("mul", [x, graph.constant(f, f"{x.name}.factor")], name=f"{x.name}.balanced",
                           source=sources(products), before=products[0]).output
        for product in products:
            graph.set_inputs(product, [scaled, *product.inputs[1:]])
    report.rewrote(products[0], f"channels of %{x.name} balanced, factor {f.min():.3g} to {f.max():.3g} "
                                f"{'before quantizing' if into is None else f'in {into}'}")
    return products[0].input(0)


def absorb(graph: Graph, x: Value, f: Array) -> Node | None:
    """Let what makes x multiply it by f; the node whose constants took the factor, None where nothing can.

    Nobody but the balanced products may read x.
    """
    node = x.producer
    if node is None:
        return None
    if node.op in ("layer_norm", "rms_norm"):
        return absorb_norm(graph, node, f)
    if node.op == "attention" and node.attrs["heads"] == node.attrs["kv_heads"]:
        return absorb_columns(graph, node.input(2), f) if node.inputs[:3].count(node.inputs[2]) == 1 else None
    if node.op == "mul":
        for operand in node.operands:
            found = absorb_columns(graph, operand, f) if operand.type == x.type else None
            if found is not None:
                return found
        return None
    if node.op == "relu":
        return absorb_columns(graph, node.input(0), f)
    return absorb_columns(graph, x, f, balanced=True)


def absorb_norm(graph: Graph, node: Node, f: Array) -> Node | None:
    """A norm's scale and bias take the factor."""
    if not all(v.is_constant for v in list(node.operands)[1:]):
        return None
    scaled = [graph.constant(v.array() * f, f"{v.name}.balanced") for v in list(node.operands)[1:]]
    graph.set_inputs(node, [node.input(0), *scaled])
    return node


def absorb_columns(graph: Graph, value: Value, f: Array, balanced: bool = False) -> Node | None:
    """The columns of the product that makes `value`, and its bias, take the factor.

    `value` must have one reader, but for the balanced products themselves (`balanced`).
    """
    if value.producer is None or (not balanced and sole_reader(graph, value) is None):
        return None
    node, bias = value.producer, None
    if node.op == "add" and node.output.type == value.type:
        product = next((v for v in node.operands if v.producer is not None and is_product(v.producer)
                        and v.type == value.type), None)
        if product is None or sole_reader(graph, product) is None:
            return None
        bias, add = other_operand(node, product), node
        if not vector(bias, len(f)) or product.producer is None:
            return None
        node = product.producer
        scaled = np.broadcast_to(bias.array().reshape(-1), f.shape) * f
        graph.set_inputs(add, [product, graph.constant(scaled, f"{bias.name}.balanced")])
    if not is_product(node):
        return None
    graph.set_inputs(node, [node.input(0), new_weight(graph, node, weight_array(node) * f, "scaled")])
    node.attrs.pop("transpose_b", None)
    return node


def new_weight(graph: Graph, product: Node, weight: Array, suffix: str) -> Value:
    """The constant of what a product's weight [depth, cols] was made into; the weight as it was leaves memory."""
    old = product.input(1)
    release(old.array())
    return graph.constant(spilled(weight), f"{old.name}.{suffix}")
