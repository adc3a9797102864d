"""Tables of embeddings in 8 bits, and one for embeddings and head where they are the same."""
from __future__ import annotations

import numpy as np
import pytest

from q8c.ir import interpret, q8
from q8c.ir.feeds import typical_feeds
from q8c.passes import quantize_embeddings
from q8c.passes.balance_scales import BalanceScales
from q8c.passes.fold_weights import FoldWeights
from q8c.passes.manager import Pass, run_passes
from q8c.passes.quantize_embeddings import QuantizeEmbeddings
from tests.passes.support import check, compare, parse

RNG = np.random.default_rng(0)
TABLE = RNG.standard_normal((40, 32)).astype(np.float32) * RNG.uniform(0.5, 2, (40, 1)).astype(np.float32)
TIED = """graph @g(%ids: i64[b, s]) {
  const %table: f32[40, 32] = @table
  const %head: f32[32, 40] = @head
  %x: f32[b, s, 32] = gather(%table, %ids) {axis = 0}
  %y: f32[b, s, 32] = silu(%x)
  %z: f32[b, s, 40] = matmul(%y, %head)
  return %x, %z
}"""


@pytest.mark.parametrize(("format", "block"), [("q8-channel", 0), ("q8-block32", 32)])
def test_a_tied_head_is_kept_once(format: str, block: int) -> None:
    data = {"table": TABLE, "head": TABLE.T}
    u, scale = q8.quantize_weight(TABLE.T, block)
    attrs = f" {{block = {block}}}" if block else ""
    graph = parse(TIED, data)
    report = run_passes(graph, [FoldWeights(format), QuantizeEmbeddings()])
    after = parse(f"""graph @g(%ids: i64[b, s]) {{
  const %u: u8[32, 40] = @u
  const %scale: f32[{"1, " if block else ""}40] = @scale
  %x: f32[b, s, 32] = lookup(%u, %scale, %ids){attrs}
  %y: f32[b, s, 32] = silu(%x)
  %head: f32[32, 40] = dequantize_weight(%u, %scale){attrs}
  %z: f32[b, s, 40] = matmul(%y, %head)
  return %x, %z
}}""", {"u": u, "scale": scale})
    assert [n.op for n in graph.nodes] == [n.op for n in after.nodes]
    assert len(graph.constants) == 2 and "kept once" in str(report.rewrites[-1])
    feeds = {"ids": RNG.integers(-40, 40, (3, 7))}
    compare(graph, after, feeds)
    compare(parse(TIED, data), graph, feeds, tolerance=0.02)
    assert typical_feeds(graph)["ids"].max() > 20, "ids are drawn from the whole table still"


@pytest.mark.parametrize("other", [TABLE.T + (np.arange(40) == 39) * np.float32(0.1), TABLE[::-1].T])
def test_a_head_of_its_own_is_not_shared(other: np.ndarray) -> None:
    graph = parse(TIED, {"table": TABLE, "head": other})
    run_passes(graph, [FoldWeights(), QuantizeEmbeddings()])
    assert "gather" in {n.op for n in graph.nodes} and "table" in graph.constants


def test_a_head_of_fewer_bits_is_not_the_table() -> None:
    """As in files whose products were quantized to 4 bits, which leaves a gather's table as it is."""
    graph = parse(TIED, {"table": TABLE, "head": TABLE.T})
    run_passes(graph, [FoldWeights("q8-block32")])
    weight = next(n for n in graph.nodes if n.op == "dequantize_weight")
    scale = weight.input(1)
    coarse = q8.quantize_weight(TABLE.T / 16, 32)[1] * 256  # 16 times the steps
    u = np.rint(TABLE.T / coarse) + q8.ZERO_POINT
    weight.input(0).data, scale.data = u.astype(np.uint8), coarse
    run_passes(graph, [QuantizeEmbeddings()])
    assert "gather" in {n.op for n in graph.nodes} and "table" in graph.constants


def test_balancing_leaves_a_tied_head_alone() -> None:
    passes: list[Pass] = [BalanceScales(), FoldWeights(), QuantizeEmbeddings()]
    graph = parse(TIED, {"table": TABLE, "head": TABLE.T})
    report = run_passes(graph, passes)
    assert "lookup" in {n.op for n in graph.nodes}
    assert "its weight is the table of embeddings too" in str(report.declines[0])


def test_a_large_table_gets_a_scale_per_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize_embeddings, "MIN_ELEMENTS", 32 * 40)
    text = """graph @g(%ids: i32[b, s]) {
  const %table: f32[40, 32] = @table
  const %small: f32[39, 32] = @small
  %x: f32[b, s, 32] = gather(%table, %ids) {axis = 0}
  %y: f32[b, s, 32] = gather(%small, %ids) {axis = 0}
  return %x, %y
}"""
    u, scale = q8.quantize_weight(TABLE.T)
    data = {"table": TABLE, "small": TABLE[:39], "u": u.T, "scale": scale[:, None]}
    ids = {"ids": RNG.integers(-39, 39, (3, 7), dtype=np.int32)}
    check(QuantizeEmbeddings(), text, """graph @g(%ids: i32[b, s]) {
  const %small: f32[39, 32] = @small
  const %u: u8[40, 32] = @u
  const %scale: f32[40, 1] = @scale
  const %zero: f32[] = 127.0
  %q: u8[b, s, 32] = gather(%u, %ids) {axis = 0}
  %s: f32[b, s, 1] = gather(%scale, %ids) {axis = 0}
  %f: f32[b, s, 32] = cast(%q) {to = f32}
  %d: f32[b, s, 32] = sub(%f, %zero)
  %x: f32[b, s, 32] = mul(%d, %s)
  %y: f32[b, s, 32] = gather(%small, %ids) {axis = 0}
  return %x, %y
}""", constants=data, feeds=ids, tolerance=0.01)
    bad = TABLE.copy()
    bad[3, 5] = np.nan
    graph = parse(text, {**data, "table": bad})
    report = run_passes(graph, [QuantizeEmbeddings()])
    assert "%table holds NaN or Inf" in str(report.declines[0]) and "table" in graph.constants


def test_lookup_by_the_book() -> None:
    graph = parse("""graph @g(%w: u8[3, 4], %s: f32[4], %at: i64[2]) {
  %y: f32[2, 3] = lookup(%w, %s, %at)
  return %y
}""")
    w = np.arange(12, dtype=np.uint8).reshape(3, 4) + 120
    s = np.array([1, 2, 3, 4], np.float32)
    [y] = interpret(graph, {"w": w, "s": s, "at": np.array([2, -1])})
    assert y.tolist() == [[3 * (int(u) - 127) for u in w[:, 2]], [4 * (int(u) - 127) for u in w[:, 3]]]
