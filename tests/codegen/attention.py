"""Cases of attention for its tests: run on every tier, the interpreter's result, and what float32 explains."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from q8c.codegen.attention import attention_kernel
from q8c.codegen.kernel import Kernel
from q8c.codegen.module import new_module
from q8c.codegen.targets import Tier
from q8c.ir.dims import Dim, evaluate
from q8c.ir.graph import Array, Graph
from q8c.ir.interpret import bind_sizes, interpret
from q8c.ir.memory import CAPACITY, KEPT_STEP
from q8c.ir.ops import attributes
from q8c.ir.parse import parse_graph
from tests.codegen.jit import Loaded, both_widths, guarded
from tests.codegen.kept import kept_buffer
from tests.codegen.queues import Queues

ROUNDING = 2.0**-24  # of one float32 operation, relative
EXP_ERROR = 2e-7     # of a weight, relative; attention_math states it
LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Case:
    """The static half of an attention node. `size` is that of all heads but for values whose own is `value_size`.
    `merged`: q, k and v are one value; else keys have a length of their own, and those of `split` have their heads
    split off. `mask` is its shape in the graph's symbols, `key_mask` the key
    mask's type. With `square` the graph says that keys are as many as queries, with `int8` they are kept in 8 bits;
    `window` is how near they must be. With `counts` it is said how many queries are no padding, with `sinks` softmax
    has one more score for each head."""

    heads: int = 2
    size: int = 32
    kv_heads: int = 2
    merged: bool = True
    split: str = ""
    mask: str = ""
    causal: bool = False
    nan_to_zero: bool = False
    scale: float = 0.125
    key_mask: str = ""
    lengths: bool = False
    spread: bool = False
    square: bool = False
    int8: bool = False
    softcap: float = 0.0
    window: int = 0
    counts: bool = False
    sinks: bool = False
    value_size: int = 0

    @property
    def values(self) -> int:
        """Channels of a head's value."""
        return self.value_size or self.size

    def graph(self) -> Graph:
        """The graph of the one node, its last."""
        q, k, v = self.heads * self.size, self.kv_heads * self.size, self.kv_heads * self.values
        if self.merged:
            values, operands, offsets = [f"%x: f32[batch, seq, {q + k + v}]"], "%x, %x, %x", (0, q, q + k)
        else:
            values = [f"%q: f32[batch, seq, {q + 3}]", f"%k: f32[batch, keys, {k + 5}]",
                      f"%v: f32[batch, keys, {v}]"]
            operands = "%q, %k, %v"
            offsets = (0 if "q" in self.split else 3, 0 if "k" in self.split else 1, 0)
            split = [f"%q: f32[batch, {self.heads}, seq, {self.size}]",
                     f"%k: f32[batch, {self.kv_heads}, keys, {self.size}]",
                     f"%v: f32[batch, {self.kv_heads}, keys, {self.values}]"]
            values = [own if n in self.split else v for n, own, v in zip("qkv", split, values, strict=True)]
            values = [v.replace("keys", "seq") for v in values] if self.square else values
        optional = {"m": f"f32[{self.mask}]" if self.mask else "", "seen": self.key_mask,
                    "lengths": "i64[batch]" if self.lengths else "", "counts": "i64[batch]" if self.counts else "",
                    "sinks": f"f32[{self.heads}]" if self.sinks else ""}
        values += [f"%{n}: {t}" for n, t in optional.items() if t]
        operands += "".join(f", %{n}" if t else ", -" for n, t in optional.items())
        kept = ""
        if self.int8:
            kept = "\n".join(self._kept(n, size) for n, size in (("keys", self.size), ("values", self.values)))
            operands = operands.replace("%k, %v", "%keys, %values")
        return parse_graph(f"""graph @attention({", ".join(values)}) {{
            {kept}
            %y: f32[batch, seq, {self.heads * self.values}] = attention({operands}) {{heads = {self.heads},
              kv_heads = {self.kv_heads}, head_size = {self.size}, value_size = {self.value_size},
              scale = {self.scale!r}, causal = {str(self.causal).lower()},
              nan_to_zero = {str(self.nan_to_zero).lower()}, offsets = {offsets},
              spread = {str(self.spread).lower()}, softcap = {self.softcap!r}, window = {self.window}}}
            return %y as "y"
        }}""")

    def _kept(self, name: str, size: int) -> str:
        rows = f"f32[batch, {self.kv_heads}, {{}}, {size}]"
        return f"""%no_{name}: {rows.format(0)} = slice(%{name[0]}) {{starts = (0, 0, 0, 0),
              sizes = (batch, {self.kv_heads}, 0, {size}), steps = (1, 1, 1, 1)}}
            %{name}: {rows.format("keys")} = append(%{name[0]}, %no_{name}) {{kv_heads = {self.kv_heads},
              in_place = true, head_size = {size}, format = "int8-{name}"}}"""

    def feeds(self, rng: np.random.Generator, batch: int, seq: int, keys: int | None = None) -> dict[str, Array]:
        """Gaussian inputs, a mask of small numbers; a third of the keys is hidden, not the first; any lengths."""
        env = {"batch": batch, "seq": seq, "keys": seq if keys is None else keys}
        shapes = {v.name: tuple(evaluate(d, env) for d in v.shape) for v in self.graph().inputs}
        feeds: dict[str, Array] = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
        for value in self.graph().inputs:
            if value.name == "seen":
                feeds["seen"] = (rng.random(shapes["seen"]) < 0.67).astype(value.dtype.numpy)
                feeds["seen"][:, :1] = 1
            if value.name == "lengths":
                feeds["lengths"] = rng.integers(0, env["keys"] - seq + 1, batch)
            if value.name == "counts":
                feeds["counts"] = np.full(batch, seq)
        return feeds


@cache
def _kernel(case: Case, tier: Tier) -> tuple[Kernel, Loaded, Graph]:
    graph = case.graph()
    module = new_module("attention")
    kernel = attention_kernel(module, tier, graph.nodes[-1])
    for step in kernel.steps:
        step.function.linkage = "external"
    return kernel, Loaded(module, tier), graph


def run(case: Case, feeds: Mapping[str, Array], tier: Tier, threads: int = 1) -> Array:
    """The kernel's result, as many pieces run in turn; arrays and scratch end at guarded pages."""
    kernel, loaded, graph = _kernel(case, tier)
    env = bind_sizes(graph, feeds)
    capacity = -(-env.get("keys", 0) // KEPT_STEP) * KEPT_STEP + KEPT_STEP  # more than it takes

    def value(size: Dim) -> int:
        return capacity if size == CAPACITY else evaluate(size, env)
    arrays = {n: guarded(a) for n, a in feeds.items()}
    if case.int8:
        arrays |= {name: guarded(kept_buffer(feeds[name[0]], capacity, name == "keys")) for name in ("keys", "values")}
    pointers = [arrays[v.name] for v in graph.nodes[-1].operands]
    result = guarded(np.full([value(d) for d in graph.outputs[0].shape], 77, np.float32))
    shared = guarded(np.full(value(kernel.shared or 0) // 4, np.nan, np.float32))
    for step in kernel.steps:
        assert step.scratch is not None
        queues = Queues(threads)
        for tid in reversed(range(threads)):
            scratch = guarded(np.full(value(step.scratch) // 4, np.nan, np.float32))
            share = [threads, queues[tid]] if step.draws else [tid, threads]
            loaded(step.function.name, *pointers, result, *map(value, step.sizes), scratch,
                   *([] if step.shared is None else [shared]), *share)
    return np.array(result)


def run_everywhere(case: Case, feeds: Mapping[str, Array]) -> Array:
    """The result, which must have the same bits for vectors of every width and for any number of threads."""
    results = [run(case, feeds, t, threads) for t in both_widths() for threads in (1, 3, 16)]
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])
        assert (np.signbit(other) == np.signbit(results[0]))[~np.isnan(other)].all()
    return results[0]


def reference(case: Case, feeds: Mapping[str, Array]) -> Array:
    """The interpreter's result."""
    return interpret(case.graph(), feeds)[0]


@dataclass(frozen=True)
class Exact:
    """What attention is made of, in float64, [batch, heads, queries, keys or channels]: scores, masked; the sums of
    absolute products they come from; which keys a query sees; values."""

    scores: Array
    products: Array
    seen: Array
    values: Array

    def below(self) -> Array:
        """Scores less the greatest of each query."""
        return np.asarray(self.scores - self.scores.max(-1, keepdims=True, initial=LOWEST))

    def bound(self, weight_error: Array, value_error: float) -> Array:
        """The greatest difference, element by element, for relative errors of softmax's weights before they are
        divided by their sum, and of the values or their sums."""
        weights = np.exp(self.below())
        weights = weights / np.maximum(weights.sum(-1, keepdims=True), 1)
        bound = (weights * (weight_error + value_error)) @ np.abs(self.values)
        bound = bound + (weights * weight_error).sum(-1, keepdims=True) * np.abs(weights @ self.values)
        y = bound.transpose(0, 2, 1, 3)
        return np.asarray(y.reshape(*y.shape[:2], -1) + 1e-37)


def exact(case: Case, feeds: Mapping[str, Array]) -> Exact:
    """The parts of a case's result, for inputs and masks that are finite."""
    node = case.graph().nodes[0]
    parts = []
    for operand, offset, count, size in zip(
            node.inputs[:3], attributes(node)["offsets"], (case.heads, case.kv_heads, case.kv_heads),
            (case.size, case.size, case.values), strict=True):
        assert operand is not None
        heads = feeds[operand.name].astype(np.float64)
        if heads.ndim == 3:
            x = heads[:, :, offset:offset + count * size]
            heads = x.reshape(*x.shape[:2], count, size).transpose(0, 2, 1, 3)
        parts.append(np.repeat(heads, case.heads // count, axis=1))
    q, k, v = parts
    scores = q @ k.swapaxes(2, 3) * case.scale + (feeds["m"] if case.mask else 0)
    queries, keys = scores.shape[2:]
    seen = np.full((queries, keys), True)
    if case.causal:
        seen = np.arange(keys) <= np.arange(queries)[:, None] + (keys - queries)
    products = np.abs(q) @ np.abs(k).swapaxes(2, 3) * case.scale
    return Exact(np.where(seen, scores, -np.inf), products, seen, v)


def error_bound(case: Case, feeds: Mapping[str, Array]) -> Array:
    """The greatest difference float32 rounding explains, element by element, for inputs and masks that are finite.

    Sums of n terms err by n roundings of the sum of absolute values (Higham, 2002, section 3.1); a weight errs by the
    absolute error of its score and by exp's; the common factor of a row's weights cancels.
    """
    parts = exact(case, feeds)
    error = (case.size + 3) * ROUNDING * parts.products
    if case.mask:
        error = error + ROUNDING * np.abs(parts.scores)
    error = np.where(parts.seen, error, 0)
    error = error + EXP_ERROR + 2 * ROUNDING * np.abs(np.maximum(parts.below(), -88))
    return parts.bound(error, (2 * parts.scores.shape[3] + 4) * ROUNDING)


def check(case: Case, feeds: Mapping[str, Array]) -> None:
    """Same bits everywhere, and within float32's rounding of the oracle."""
    got = run_everywhere(case, feeds)
    assert (np.abs(got.astype(np.float64) - reference(case, feeds)) <= error_bound(case, feeds)).all()


CASES = [
    Case(), Case(heads=3, kv_heads=3, size=64, mask="batch, 1, 1, seq"), Case(heads=1, kv_heads=1, size=1),
    Case(heads=4, size=48, merged=False), Case(heads=3, kv_heads=1, size=7, mask="batch, 3, seq, seq"),
    Case(size=33, causal=True, merged=False), Case(heads=6, kv_heads=2, size=20, causal=True, mask="1, 1, seq, seq"),
    Case(heads=4, size=24, merged=False, split="qkv", causal=True), Case(heads=2, kv_heads=1, merged=False, split="kv"),
    Case(size=16, merged=False, mask="batch, 1, seq, 1", split="q"), Case(size=80, mask="1, 2, 1, 1", nan_to_zero=True),
    Case(size=48, value_size=32), Case(heads=4, size=7, value_size=40, merged=False, split="kv", causal=True),
]
