"""Fused attention against the interpreter's, its bits over tiers, threads, batches and padding, and odd inputs."""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from q8c.codegen.attention import attention_kernel
from q8c.codegen.kernel import Kernel
from q8c.codegen.module import compile_module, new_module
from q8c.codegen.targets import TIERS, Tier, tier
from q8c.ir.dims import Dim, evaluate
from q8c.ir.graph import Array, Graph
from q8c.ir.interpret import bind_sizes, interpret
from q8c.ir.memory import CAPACITY, KEPT_STEP
from q8c.ir.ops import attributes
from q8c.ir.parse import parse_graph
from tests.codegen.jit import Loaded, both_widths, each_width, guarded
from tests.codegen.kept import kept_buffer
from tests.codegen.queues import Queues

ROUNDING = 2.0**-24  # of one float32 operation, relative
EXP_ERROR = 2e-7     # of a weight, relative; attention_math states it
LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Case:
    """The static half of an attention node. `merged`: q, k and v are one value; else keys have a length of their own,
    and those of `split` have their heads split off. `mask` is its shape in the graph's symbols, `key_mask` the key
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

    def graph(self) -> Graph:
        """The graph of the one node, its last."""
        q, kv = self.heads * self.size, self.kv_heads * self.size
        if self.merged:
            values, operands, offsets = [f"%x: f32[batch, seq, {q + 2 * kv}]"], "%x, %x, %x", (0, q, q + kv)
        else:
            values = [f"%q: f32[batch, seq, {q + 3}]", f"%k: f32[batch, keys, {kv + 5}]",
                      f"%v: f32[batch, keys, {kv}]"]
            operands = "%q, %k, %v"
            offsets = (0 if "q" in self.split else 3, 0 if "k" in self.split else 1, 0)
            split = [f"%q: f32[batch, {self.heads}, seq, {self.size}]",
                     f"%k: f32[batch, {self.kv_heads}, keys, {self.size}]",
                     f"%v: f32[batch, {self.kv_heads}, keys, {self.size}]"]
            values = [own if n in self.split else v for n, own, v in zip("qkv", split, values, strict=True)]
            values = [v.replace("keys", "seq") for v in values] if self.square else values
        optional = {"m": f"f32[{self.mask}]" if self.mask else "", "seen": self.key_mask,
                    "lengths": "i64[batch]" if self.lengths else "", "counts": "i64[batch]" if self.counts else "",
                    "sinks": f"f32[{self.heads}]" if self.sinks else ""}
        values += [f"%{n}: {t}" for n, t in optional.items() if t]
        operands += "".join(f", %{n}" if t else ", -" for n, t in optional.items())
        kept = ""
        if self.int8:
            rows = f"f32[batch, {self.kv_heads}, {{}}, {self.size}]"
            kept = f"%no: {rows.format(0)} = slice(%k) {{starts = (0, 0, 0, 0), " \
                   f"sizes = (batch, {self.kv_heads}, 0, {self.size}), steps = (1, 1, 1, 1)}}\n" + "\n".join(
                f"%{n}: {rows.format('keys')} = append(%{n[0]}, %no) {{kv_heads = {self.kv_heads}, in_place = true, "
                f'head_size = {self.size}, format = "int8-{n}"}}' for n in ("keys", "values"))
            operands = operands.replace("%k, %v", "%keys, %values")
        return parse_graph(f"""graph @attention({", ".join(values)}) {{
            {kept}
            %y: f32[batch, seq, {q}] = attention({operands}) {{heads = {self.heads}, kv_heads = {self.kv_heads},
              head_size = {self.size}, scale = {self.scale!r}, causal = {str(self.causal).lower()},
              nan_to_zero = {str(self.nan_to_zero).lower()}, offsets = {offsets},
              spread = {str(self.spread).lower()}, softcap = {self.softcap!r}, window = {self.window}}}
            return %y as "y"
        }}""")

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
    return kernel, Loaded(compile_module(module, tier)), graph


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
    for operand, offset, count in zip(node.inputs[:3], attributes(node)["offsets"],
                                      (case.heads, case.kv_heads, case.kv_heads), strict=True):
        assert operand is not None
        heads = feeds[operand.name].astype(np.float64)
        if heads.ndim == 3:
            x = heads[:, :, offset:offset + count * case.size]
            heads = x.reshape(*x.shape[:2], count, case.size).transpose(0, 2, 1, 3)
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
]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(case=st.sampled_from(CASES), batch=st.integers(1, 3), seq=st.integers(1, 70), keys=st.integers(1, 70),
       spread=st.sampled_from([0.1, 1.0, 5.0]), seed=st.integers(0, 999))
def test_matches_the_oracle(case: Case, batch: int, seq: int, keys: int, spread: float, seed: int) -> None:
    if case.causal:
        keys = max(keys, seq)  # else the first queries see nothing
    feeds = case.feeds(np.random.default_rng(seed), batch, seq, keys)
    check(case, {n: a * np.float32(spread) for n, a in feeds.items()})


def test_large_heads_and_long_sequences() -> None:
    rng = np.random.default_rng(1)
    case = Case(heads=1, kv_heads=1, size=256)
    check(case, case.feeds(rng, 1, 40))
    case = Case(heads=1, kv_heads=1, mask="batch, 1, 1, seq")
    check(case, case.feeds(rng, 1, 700))


def _masked_feeds(case: Case, masked: float, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    feeds = case.feeds(rng, 2, 37)
    feeds["m"] = np.where(rng.random(feeds["m"].shape) < 0.4, masked, 0).astype(np.float32)
    return feeds


@pytest.mark.parametrize("shape", ["batch, 1, 1, seq", "batch, 2, seq, seq", "1, 1, seq, seq"])
@pytest.mark.parametrize("masked", [-np.inf, LOWEST, -10000.0])
def test_masked_keys_have_no_weight(shape: str, masked: float) -> None:
    case = Case(mask=shape)
    feeds = _masked_feeds(case, masked)
    feeds["m"][..., 5] = 0
    got = run_everywhere(case, feeds)
    hidden = np.where(np.broadcast_to(feeds["m"], (2, 2, 37, 37)) == 0, 0.0, -1e9)
    feeds["m"] = np.ascontiguousarray(np.broadcast_to(feeds["m"], (2, 2, 37, 37)))
    full = Case(mask="batch, 2, seq, seq")
    assert (np.abs(got - reference(full, {**feeds, "m": hidden.astype(np.float32)})) <= 2e-6).all()
    assert (run_everywhere(full, feeds) == got).all()


@pytest.mark.parametrize("masked", [-np.inf, LOWEST, -10000.0])
@pytest.mark.parametrize("real", [1, 5, 16, 29])
def test_padding_changes_no_bit(masked: float, real: int) -> None:
    case = Case(mask="batch, 1, 1, seq")
    rng = np.random.default_rng(real)
    feeds = case.feeds(rng, 1, real)
    feeds["m"][:] = 0
    for padded in (real + 1, real + 8, 77):
        longer = case.feeds(rng, 1, padded)
        longer["x"][:, :real] = feeds["x"]
        longer["m"][...] = masked
        longer["m"][..., :real] = 0
        assert (run_everywhere(case, longer)[:, :real] == run_everywhere(case, feeds)).all()


@each_width
def test_batch_mates_and_positions_change_no_bit(tier: Tier) -> None:
    case = Case(mask="batch, 1, 1, seq")
    feeds = case.feeds(np.random.default_rng(2), 4, 21)
    feeds["x"][1:] *= 30
    together = run(case, feeds, tier)
    for n in range(4):
        alone = run(case, {name: a[n:n + 1] for name, a in feeds.items()}, tier)
        assert (alone == together[n:n + 1]).all()
    turned = run(case, {name: a[::-1] for name, a in feeds.items()}, tier)
    assert (turned[::-1] == together).all()


@each_width
@pytest.mark.parametrize("threads", [2, 3, 7, 100])
def test_threads_change_no_bit(tier: Tier, threads: int) -> None:
    case = Case(heads=3, kv_heads=3, size=64, mask="batch, 1, 1, seq")
    feeds = case.feeds(np.random.default_rng(3), 2, 50)
    assert (run(case, feeds, tier, threads) == run(case, feeds, tier)).all()


def test_queries_change_no_bit_of_each_other() -> None:
    case = Case(merged=False)
    feeds = case.feeds(np.random.default_rng(4), 1, 49, 30)
    together = run_everywhere(case, feeds)
    for n in (0, 15, 31, 32, 48):
        assert (run_everywhere(case, {**feeds, "q": feeds["q"][:, n:n + 1]}) == together[:, n:n + 1]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, np.uint32(0x7FC00001).view(np.float32)])
def test_a_bad_query_spoils_only_itself(value: float) -> None:
    case = Case(merged=False)
    feeds = case.feeds(np.random.default_rng(5), 2, 35, 20)
    clean = run_everywhere(case, feeds)
    feeds["q"][1, 17, 3:3 + case.size] = value  # head 0 of one token
    got = run_everywhere(case, feeds)
    assert np.isnan(got[1, 17, :case.size]).all()
    got[1, 17, :case.size] = clean[1, 17, :case.size]
    assert (got == clean).all()


def test_a_bad_key_spoils_its_head_in_its_batch_item() -> None:
    case = Case(merged=False)
    feeds = case.feeds(np.random.default_rng(6), 2, 35, 20)
    clean = run_everywhere(case, feeds)
    feeds["k"][0, 7, 1] = np.nan
    got = run_everywhere(case, feeds)
    assert np.isnan(got[0, :, :case.size]).all()
    assert (got[0, :, case.size:] == clean[0, :, case.size:]).all() and (got[1] == clean[1]).all()


@pytest.mark.parametrize("shape", ["batch, 1, 1, seq", "batch, 1, seq, seq"])
@pytest.mark.parametrize("nan_to_zero", [False, True])
def test_queries_that_see_nothing(shape: str, nan_to_zero: bool) -> None:
    case = Case(mask=shape, nan_to_zero=nan_to_zero)
    feeds = _masked_feeds(case, -np.inf)
    feeds["m"][1] = -np.inf
    feeds["m"][0, ..., 3] = 0
    got = run_everywhere(case, feeds)
    np.testing.assert_array_equal(got[1], 0 if nan_to_zero else np.nan)
    np.testing.assert_allclose(got, reference(case, feeds), atol=2e-6)


@pytest.mark.parametrize("seq, keys", [(40, 7), (7, 40), (33, 33), (1, 5), (65, 64)])
@pytest.mark.parametrize("nan_to_zero", [False, True])
def test_causal(seq: int, keys: int, nan_to_zero: bool) -> None:
    case = Case(size=33, causal=True, merged=False, nan_to_zero=nan_to_zero)
    feeds = case.feeds(np.random.default_rng(7), 2, seq, keys)
    got, expected = run_everywhere(case, feeds), reference(case, feeds)
    np.testing.assert_allclose(got, expected, atol=2e-6)
    blind = max(seq - keys, 0)
    np.testing.assert_array_equal(got[:, :blind], 0 if nan_to_zero else np.nan)


def test_fully_masked_with_a_finite_number_is_uniform() -> None:
    case = Case(mask="batch, 1, 1, seq")
    feeds = case.feeds(np.random.default_rng(8), 1, 20)
    feeds["m"][:] = LOWEST
    values = feeds["x"][:, :, -2 * case.size:]
    expected = np.broadcast_to(values.mean(1, keepdims=True, dtype=np.float64), values.shape)
    np.testing.assert_allclose(run_everywhere(case, feeds), expected, atol=1e-6)


@pytest.mark.parametrize("batch, seq, keys", [(0, 5, 5), (2, 0, 5), (2, 5, 0), (0, 0, 0)])
def test_zero_sizes(batch: int, seq: int, keys: int) -> None:
    for case in (Case(merged=False), Case(size=33, causal=True, merged=False)):
        feeds = case.feeds(np.random.default_rng(9), batch, seq, keys)
        np.testing.assert_array_equal(run_everywhere(case, feeds), reference(case, feeds))


def _names(cases: Sequence[Case]) -> list[str]:
    module = new_module("names")
    return [attention_kernel(module, tier("avx2"), case.graph().nodes[0]).function.name for case in cases]


def test_equal_specs_share_a_function() -> None:
    first, second = _names([Case(), Case()])
    assert first == second == "q8c_attention_f32_2x32_q192at0_k192at64_v192at128_scale3e000000__avx2"
    assert _names([CASES[6]]) == [
        "q8c_attention_f32_6x20by2_q200at0_k200at120_v200at160_scale3e000000_maskqk_causal__avx2"]
    assert len(set(_names(CASES))) == len(CASES)


@pytest.mark.parametrize("name", list(TIERS))
def test_loops_keep_their_sums_in_registers(name: str) -> None:
    module = new_module("attention")
    attention_kernel(module, tier(name), Case(size=64).graph().nodes[0]).function.linkage = "external"
    text = compile_module(module, tier(name)).assembly()
    loops = re.findall(r"^(\.LBB\d+_\d+):((?:\n(?!\.LBB).*)*?\n\tj\w+\t\1)$", text, re.MULTILINE)
    hot = [body for _, body in loops if body.count("vfmadd") >= 12]
    assert len(hot) >= 3
    assert not [body for body in hot if re.search(r"vmov\w+\s+%[yz]mm\d+, .*\(%r[sb]p", body)]
