"""Products that share an input and feed one attention become one."""
from __future__ import annotations

import numpy as np

from q8c.ir import clone
from q8c.passes.fuse_loops import FuseLoops
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


GATE = INPUTS + """
      const %wg: f32[8, 16] = @wg
      const %wu: f32[8, 16] = @wu
      %gate: f32[b, s, 16] = matmul(%x, %wg)
      %up: f32[b, s, 16] = matmul(%x, %wu)
      %act: f32[b, s, 16] = silu(%gate)
      %z: f32[b, s, 16] = OP(%act, %up)
      return %z
    }"""


def test_the_two_products_of_a_gate() -> None:
    rng = np.random.default_rng(0)
    data = {name: rng.standard_normal((8, 16)).astype(np.float32) for name in ("wg", "wu")}
    data["w"] = np.concatenate([data["wg"], data["wu"]], axis=1)
    after = """
    graph @g(%x: f32[b, s, 8], %y: f32[b, t, 8]) {
      const %w: f32[8, 32] = @w
      %m: f32[b, s, 32] = matmul(%x, %w)"""
    check(MergeMatmuls(), GATE.replace("OP", "mul"), after + """
      %gate: f32[b, s, 16] = slice(%m) {starts = (0, 0, 0), sizes = (b, s, 16), steps = (1, 1, 1)}
      %up: f32[b, s, 16] = slice(%m) {starts = (0, 0, 16), sizes = (b, s, 16), steps = (1, 1, 1)}
      %act: f32[b, s, 16] = silu(%gate)
      %z: f32[b, s, 16] = mul(%act, %up)
      return %z
    }""", constants=data)
    check([MergeMatmuls(), FuseLoops()], GATE.replace("OP", "mul"), after + """
      %z: f32[b, s, 16] = loop(%m) body(%w: f32[b, s, 32]) {
        %gate: f32[b, s, 16] = slice(%w) {starts = (0, 0, 0), sizes = (b, s, 16), steps = (1, 1, 1)}
        %act: f32[b, s, 16] = silu(%gate)
        %up: f32[b, s, 16] = slice(%w) {starts = (0, 0, 16), sizes = (b, s, 16), steps = (1, 1, 1)}
        %z: f32[b, s, 16] = mul(%act, %up)
        return %z
      }
      return %z
    }""", constants=data)


def test_products_that_nothing_reads_at_offsets_are_left_alone() -> None:
    assert len(check(MergeMatmuls(), GATE.replace("OP", "add"), None).declines) == 2


def test_rotated_and_appended_parts() -> None:
    turn = "head_size = 4, rotary_size = 4"
    inputs = INPUTS.replace("%y", "%cos: f32[1, s, 2], %past: f32[b, 2, p, 4], %y")
    check(MergeMatmuls(), f"""{inputs}{WEIGHTS}
      %q: f32[b, s, 16] = matmul(%x, %wq)
      %k: f32[b, s, 8] = matmul(%x, %wk)
      %v: f32[b, s, 8] = matmul(%x, %wv)
      %qr: f32[b, s, 16] = rotary(%q, %cos, %cos) {{heads = 4, {turn}}}
      %kr: f32[b, s, 8] = rotary(%k, %cos, %cos) {{heads = 2, {turn}}}
      %vp: f32[b, 2, p + s, 4] = append(%past, %v) {{kv_heads = 2, head_size = 4}}
      %kp: f32[b, 2, p + s, 4] = append(%past, %kr) {{kv_heads = 2, head_size = 4}}
      %z: f32[b, s, 16] = attention(%qr, %kp, %vp) {{{ATTRS}, causal = true}}
      return %z
    }}""", f"""{inputs}
      const %w: f32[8, 32] = @w
      %m: f32[b, s, 32] = matmul(%x, %w)
      %qr: f32[b, s, 16] = rotary(%m, %cos, %cos) {{heads = 4, {turn}, offset = 0}}
      %kr: f32[b, s, 8] = rotary(%m, %cos, %cos) {{heads = 2, {turn}, offset = 16}}
      %vp: f32[b, 2, p + s, 4] = append(%past, %m) {{kv_heads = 2, head_size = 4, offset = 24}}
      %kp: f32[b, 2, p + s, 4] = append(%past, %kr) {{kv_heads = 2, head_size = 4}}
      %z: f32[b, s, 16] = attention(%qr, %kp, %vp) {{{ATTRS}, causal = true}}
      return %z
    }}""", tolerance=1e-6)
