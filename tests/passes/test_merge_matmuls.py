"""Products that share an input and feed one attention become one."""
from __future__ import annotations

import numpy as np

from q8c.ir import clone
from q8c.passes.manager import run_passes
from q8c.passes.merge_matmuls import MergeMatmuls
from tests.passes.support import check, compare, parse

INPUTS = "graph @g(%x: f32[b, s, 8], %y: f32[b, t, 8]) {"
WEIGHTS = """
      const %wq: f32[8, 16] = @wq
      const %wk: f32[8, 8] = @wk
      const %wv: f32[8, 8] = @wv
"""
HEAD = INPUTS + WEIGHTS + """
      const %bq: f32[16] = @bq
      const %bv: f32[1, 8] = @bv
"""
ATTRS = "heads = 4, kv_heads = 2, head_size = 4, scale = 0.5"
BRANCHES = """
      %q0: f32[b, s, 16] = matmul(%x, %wq) from "q"
      %q: f32[b, s, 16] = add(%q0, %bq) from "qb"
      %k: f32[b, s, 8] = matmul(%x, %wk) from "k"
      %v0: f32[b, s, 8] = matmul(%x, %wv) {transpose_b = true} from "v"
      %v: f32[b, s, 8] = add(%bv, %v0) from "vb"
"""


def test_queries_keys_and_values_in_one_product() -> None:
    report = check(MergeMatmuls(), HEAD + BRANCHES + f"""
      %z: f32[b, s, 16] = attention(%q, %k, %v) {{{ATTRS}}}
      return %z
    }}""", f"""
    graph @g(%x: f32[b, s, 8], %y: f32[b, t, 8]) {{
      const %w: f32[8, 32] = @w
      const %bias: f32[32] = @bias
      %m: f32[b, s, 32] = matmul(%x, %w) from "q", "qb", "k", "v", "vb"
      %a: f32[b, s, 32] = add(%m, %bias) from "q", "qb", "k", "v", "vb"
      %z: f32[b, s, 16] = attention(%a, %a, %a) {{{ATTRS}, offsets = (0, 16, 24)}}
      return %z
    }}""", tolerance=1e-6)
    assert [note.text for note in report.rewrites] == ["3 products of %x"]


def test_columns_are_the_same_bits() -> None:
    graph = parse(HEAD + BRANCHES + f"""
      %z: f32[b, s, 16] = attention(%q, %k, %v) {{{ATTRS}}}
      return %z
    }}""")
    reference = clone(graph)
    run_passes(graph, [MergeMatmuls()])
    rng = np.random.default_rng(1)
    feeds = {"x": rng.standard_normal((2, 3, 8)).astype(np.float32),
             "y": rng.standard_normal((2, 5, 8)).astype(np.float32)}
    compare(reference, graph, feeds)


def test_keys_and_values_of_another_input_are_merged_with_each_other() -> None:
    check(MergeMatmuls(), INPUTS + WEIGHTS + f"""
      %q: f32[b, s, 16] = matmul(%x, %wq)
      %k: f32[b, t, 8] = matmul(%y, %wk)
      %v: f32[b, t, 8] = matmul(%y, %wv) {{transpose_b = true}}
      %z: f32[b, s, 16] = attention(%q, %k, %v) {{{ATTRS}}}
      return %z
    }}""", f"""
    graph @g(%x: f32[b, s, 8], %y: f32[b, t, 8]) {{
      const %wq: f32[8, 16] = @wq
      const %w: f32[8, 16] = @w
      %q: f32[b, s, 16] = matmul(%x, %wq)
      %m: f32[b, t, 16] = matmul(%y, %w)
      %z: f32[b, s, 16] = attention(%q, %m, %m) {{{ATTRS}, offsets = (0, 0, 8)}}
      return %z
    }}""", tolerance=1e-6)


def test_a_result_read_elsewhere_stays_a_product_of_its_own() -> None:
    report = check(MergeMatmuls(), HEAD + BRANCHES + f"""
      %z: f32[b, s, 16] = attention(%q, %k, %v) {{{ATTRS}}}
      return %z, %q
    }}""", f"""
    graph @g(%x: f32[b, s, 8], %y: f32[b, t, 8]) {{
      const %wq: f32[8, 16] = @wq
      const %bq: f32[16] = @bq
      const %w: f32[8, 16] = @w
      const %bias: f32[16] = @bias
      %q0: f32[b, s, 16] = matmul(%x, %wq)
      %q: f32[b, s, 16] = add(%q0, %bq)
      %m: f32[b, s, 16] = matmul(%x, %w)
      %a: f32[b, s, 16] = add(%m, %bias)
      %z: f32[b, s, 16] = attention(%q, %a, %a) {{{ATTRS}, offsets = (0, 0, 8)}}
      return %z, %q
    }}""", tolerance=1e-6)
    assert [note.text for note in report.declines] == ["others share its input, but its result is read as a whole"]


def test_products_that_nothing_reads_at_offsets_are_left_alone() -> None:
    report = check(MergeMatmuls(), INPUTS + """
      const %wq: f32[8, 16] = @wq
      %gate: f32[b, s, 16] = matmul(%x, %wq)
      %up: f32[b, s, 16] = matmul(%x, %wq)
      %act: f32[b, s, 16] = silu(%gate)
      %z: f32[b, s, 16] = mul(%act, %up)
      return %z
    }""", None)
    assert len(report.declines) == 2
