"""Experts that are all computed for all tokens become each token's own."""
from __future__ import annotations

import numpy as np
import pytest

from q8c.ir import Graph, clone
from q8c.ir.feeds import random_feeds
from q8c.passes.gather_experts import GatherExperts
from q8c.passes.manager import Report, run_passes
from q8c.passes.route_experts import RouteExperts
from tests.passes.support import compare, parse

EXPERTS, HIDDEN, INNER = 3, 8, 6
ROUTER = f"""%logits: f32[b, s, {EXPERTS}] = matmul(%x, %router)
      %all: f32[b, s, {EXPERTS}] = softmax(%logits) {{axis = 2}}
      %flat: f32[b*s, {EXPERTS}] = reshape(%all) {{shape = (b*s, {EXPERTS})}}
      %ids: i64[b*s, 2] = top_k(%flat) {{k = 2, axis = 1, largest = true}}
      %w: f32[b*s, 2] = gather_elements(%flat, %ids) {{axis = 1}}"""
EXPERT = f"""%h@: f32[b, s, {INNER}] = matmul(%x, %up@)
      %z@: f32[b, s, {INNER}] = add(%h@, %shift@)
      %g@: f32[b, s, {INNER}] = silu(%z@)
      %d@: f32[b, s, {HIDDEN}] = matmul(%g@, %down@)
      %y@: f32[b*s, {HIDDEN}] = reshape(%d@) {{shape = (b*s, {HIDDEN})}}"""
# what exporters make of a mask [tokens, chosen] whose rows are picked, weighed and added to where they came from
PICKED = f"""const %id@: i64[] = @
      %is@: bool[b*s, 2] = equal(%ids, %id@)
      %t@: bool[2, b*s] = transpose(%is@) {{perm = (1, 0)}}
      %m@: bool[2, b*s, 1] = reshape(%t@) {{shape = (2, b*s, 1)}}
      %wt@: f32[2, b*s] = transpose(%w) {{perm = (1, 0)}}
      %wc@: f32[2, b*s, 1] = reshape(%wt@) {{shape = (2, b*s, 1)}}
      %v@: f32[2, b*s, {HIDDEN}] = mul(%wc@, %y@)
      %o@: f32[2, b*s, {HIDDEN}] = where(%m@, %v@, %zero)
      %p@: f32[b*s, {HIDDEN}] = reduce_sum(%o@) {{axes = (0), keepdims = false}}"""
# a score for each expert, which is 0 where it was not chosen
WEIGHED = f"""const %id@: i64[] = @
      %is@: bool[b*s, 2] = equal(%ids, %id@)
      %own@: f32[b*s, 2] = where(%is@, %w, %zero)
      %c@: f32[b*s, 1] = reduce_sum(%own@) {{axes = (1), keepdims = true}}
      %p@: f32[b*s, {HIDDEN}] = mul(%y@, %c@)"""
SUM = f"""%s1: f32[b*s, {HIDDEN}] = add(%p0, %p1)
      %s2: f32[b*s, {HIDDEN}] = add(%s1, %p2)"""
STACKED = f"""%row: f32[1, b*s, {HIDDEN}] = reshape(%x) {{shape = (1, b*s, {HIDDEN})}}
      %rows: f32[{EXPERTS}, b*s, {HIDDEN}] = broadcast_to(%row) {{shape = ({EXPERTS}, b*s, {HIDDEN})}}
      %h: f32[{EXPERTS}, b*s, {INNER}] = matmul(%rows, %up)
      %z: f32[{EXPERTS}, b*s, {INNER}] = add(%h, %shift)
      %even: f32[{EXPERTS}, b*s, {INNER}] = slice(%z) {{
        starts = (0, 0, 0), sizes = ({EXPERTS}, b*s, {INNER}), steps = (1, 1, 1)}}
      %g: f32[{EXPERTS}, b*s, {INNER}] = silu(%even)
      %y: f32[{EXPERTS}, b*s, {HIDDEN}] = matmul(%g, %down)
      %e: i64[{EXPERTS}] = iota() {{size = {EXPERTS}, dtype = i64}}
      %ec: i64[{EXPERTS}, 1, 1] = reshape(%e) {{shape = ({EXPERTS}, 1, 1)}}
      %is: bool[{EXPERTS}, b*s, 2] = equal(%ec, %ids)
      %own: f32[{EXPERTS}, b*s, 2] = where(%is, %w, %zero)
      %c: f32[{EXPERTS}, b*s, 1] = reduce_sum(%own) {{axes = (2), keepdims = true}}
      %p: f32[{EXPERTS}, b*s, {HIDDEN}] = mul(%y, %c)
      %s2: f32[b*s, {HIDDEN}] = reduce_sum(%p) {{axes = (0), keepdims = false}}"""
SHAPES = {"up": (HIDDEN, INNER), "shift": (1, INNER), "down": (INNER, HIDDEN)}


def each(*texts: str) -> str:
    """The texts for every expert, and the sum."""
    return "\n".join(text.replace("@", str(n)) for n in range(EXPERTS) for text in texts) + SUM


def graph_of(body: str) -> Graph:
    """A mixture of tokens %x, with their residual."""
    rng = np.random.default_rng(1)
    names = [f"{name}{n}" for name in SHAPES for n in range(EXPERTS)] if "%y0" in body else list(SHAPES)
    constants = {n: rng.standard_normal(SHAPES[n.rstrip("0123456789")]).astype(np.float32) for n in names}
    if "%y0" not in body:
        constants = {n: rng.standard_normal((EXPERTS, *SHAPES[n])).astype(np.float32) for n in names}
    constants["router"] = rng.standard_normal((HIDDEN, EXPERTS)).astype(np.float32)
    told = "\n".join(f"const %{n}: f32[{', '.join(map(str, a.shape))}] = @{n}" for n, a in constants.items())
    return parse(f"""graph @g(%x: f32[b, s, {HIDDEN}]) {{
      {told}
      const %zero: f32[] = 0.0
      {ROUTER}
      {body}
      %r: f32[b, s, {HIDDEN}] = reshape(%s2) {{shape = (b, s, {HIDDEN})}}
      %out: f32[b, s, {HIDDEN}] = add(%x, %r)
      return %out
    }}""", constants)


def passed(graph: Graph) -> Report:
    """The report of the pass and of the one that sorts tokens behind it; results must stay."""
    before = clone(graph)
    report = run_passes(graph, [GatherExperts(), RouteExperts()])
    for tokens in (1, 7):
        compare(before, graph, random_feeds(before, sizes={"b": 2, "s": tokens}), 1e-5)
    return report


@pytest.mark.parametrize("body", [each(EXPERT, PICKED), each(EXPERT, WEIGHED), STACKED],
                         ids=["picked", "weighed", "stacked"])
def test_each_token_has_its_own_experts(body: str) -> None:
    graph = graph_of(body)
    assert "3 experts, of which a token has 2" in str([note.text for note in passed(graph).rewrites])
    ops = [n.op for n in graph.nodes]
    assert ops.count("expert_matmul") == 2 and ops.count("matmul") == 1 and ops.count("route") == 1


@pytest.mark.parametrize("change", [
    ("%s2: f32[b*s, 8] = add(%s1, %p2)", "%s2: f32[b*s, 8] = sub(%s1, %p2)"),       # no sum
    ("const %id2: i64[] = 2", "const %id2: i64[] = 1"),                              # an expert that is another
    ("mul(%y1, %c1)", "mul(%y1, %c0)"),                                              # another's score
    ("%p2: f32[b*s, 8] = mul(%y2, %c2)",                                             # none from the fifth token on
     """%i: i64[b*s] = iota() {size = b*s, dtype = i64}
      %n: i64[b*s, 1] = reshape(%i) {shape = (b*s, 1)}
      const %few: i64[] = 4
      %in: bool[b*s, 1] = less(%n, %few)
      %kept: f32[b*s, 1] = where(%in, %c2, %zero)
      %p2: f32[b*s, 8] = mul(%y2, %kept)"""),
    ("%g2: f32[b, s, 6] = silu(%z2)", "%g2: f32[b, s, 6] = tanh(%z2)")])             # another way of computing
def test_what_is_no_such_sum_stays(change: tuple[str, str]) -> None:
    text = each(EXPERT, WEIGHED)
    assert change[0] in text
    graph = graph_of(text.replace(*change))
    assert not [note for note in passed(graph).rewrites if note.pass_name == GatherExperts.name]
    assert "matmul" in {n.op for n in graph.nodes} and "route" not in {n.op for n in graph.nodes}
