"""A cache of keys and values grows in place where that is all that is done with it."""
from __future__ import annotations

import numpy as np
import pytest

from q8c.errors import CompileError
from q8c.ir import clone
from q8c.ir.cache import Cache, find_cache
from q8c.ir.feeds import random_feeds
from q8c.passes.keep_cache import KeepCache
from q8c.passes.manager import run_passes
from tests.decoder import decoder_graph
from tests.passes.support import check, compare, parse

INPUTS = "%ids: i64[b, s], %k: f32[b, 2, past, 8], %v: f32[b, 2, past, 8], %q: f32[b, s, 32], %kv: f32[b, s, 36]"
KEYS = """
      %kp: f32[b, s, 16] = slice(%kv) {starts = (0, 0, 4), sizes = (b, s, 16), steps = (1, 1, 1)}
      %ks: f32[b, s, 2, 8] = reshape(%kp) {shape = (b, s, 2, 8)}
      %kn: f32[b, 2, s, 8] = transpose(%ks) {perm = (0, 2, 1, 3)} from "split"
"""
VALUES = """%va: f32[b, s, 36] = exp(%kv)
      %vp: f32[b, s, 16] = slice(%va) {starts = (0, 0, 20), sizes = (b, s, 16), steps = (1, 1, 1)}
      %vs: f32[b, s, 2, 8] = reshape(%vp) {shape = (b, s, 2, 8)}
      %vt: f32[b, 2, s, 8] = transpose(%vs) {perm = (0, 2, 1, 3)}
      %vn: f32[b, 2, s, 8] = tanh(%vt)"""
ATTENTION = "{heads = 4, kv_heads = 2, head_size = 8, scale = 0.5, causal = true}"


def decoder(body: str, inputs: str = INPUTS, results: str = "%y, %k2, %v2") -> str:
    """A graph of one attention to a cache."""
    return f"graph @g({inputs}) {{{KEYS}      {VALUES}\n{body}\n      return {results}\n    }}"


BEFORE = decoder(f"""
      %k2: f32[b, 2, past + s, 8] = concat(%k, %kn) {{axis = 2}} from "cat"
      %v2: f32[b, 2, past + s, 8] = concat(%v, %vn) {{axis = -2}}
      %y: f32[b, s, 32] = attention(%q, %k2, %v2) {ATTENTION}""")


def test_keys_and_values_grow_in_place() -> None:
    report = check(KeepCache(), BEFORE, f"""
    graph @g({INPUTS}) {{
      %lengths: i64[b] = past_lengths(%k)
      {VALUES}
      %k2: f32[b, 2, past + s, 8] = append(%k, %kv, %lengths) {{kv_heads = 2, head_size = 8, offset = 4, in_place = true}} from "split", "cat"
      %v2: f32[b, 2, past + s, 8] = append(%v, %vn, %lengths) {{kv_heads = 2, head_size = 8, in_place = true}}
      %counts: i64[b] = new_counts(%k) {{tokens = s}}
      %y: f32[b, s, 32] = attention(%q, %k2, %v2, -, -, %lengths, %counts) {ATTENTION}
      return %y, %k2, %v2
    }}""")
    assert [note.text for note in report.rewrites] == ["%k grows in place into %k2", "%v grows in place into %v2"]
    assert not report.declines


def test_an_append_is_put_in_place_as_well() -> None:
    check(KeepCache(), decoder(f"""
      %k2: f32[b, 2, past + s, 8] = append(%k, %kv) {{kv_heads = 2, head_size = 8, offset = 3}}
      %v2: f32[b, 2, past + s, 8] = concat(%v, %vn) {{axis = 2}}
      %y: f32[b, s, 32] = attention(%q, %k2, %v2) {ATTENTION.replace("true", "false")}"""), f"""
    graph @g({INPUTS}) {{
      %lengths: i64[b] = past_lengths(%k)
      {VALUES}
      %k2: f32[b, 2, past + s, 8] = append(%k, %kv, %lengths) {{kv_heads = 2, head_size = 8, offset = 3, in_place = true}}
      %v2: f32[b, 2, past + s, 8] = append(%v, %vn, %lengths) {{kv_heads = 2, head_size = 8, in_place = true}}
      %counts: i64[b] = new_counts(%k) {{tokens = s}}
      %y: f32[b, s, 32] = attention(%q, %k2, %v2, -, -, -, %counts) {ATTENTION.replace("true", "false")}
      return %y, %k2, %v2
    }}""")


def test_new_tokens_are_counted_for_every_attention_of_theirs() -> None:
    """That of other keys too; not one whose keys are as many as queries, which has no way for few."""
    graph = parse(decoder(f"""{GROWN}      %v2: f32[b, 2, past + s, 8] = concat(%v, %vn) {{axis = 2}}
      %x: f32[b, s, 32] = attention(%q, %k2, %v2) {ATTENTION}
      %z: f32[b, s, 32] = attention(%x, %other, %other) {ATTENTION.replace("true", "false")}
      %y: f32[b, s, 32] = attention(%z, %kn, %vn) {ATTENTION}""", INPUTS + ", %other: f32[b, t, 16]"))
    run_passes(graph, [KeepCache()])
    operands = {n.output.name: [v and v.name for v in n.inputs[3:]] for n in graph.nodes if n.op == "attention"}
    assert operands == {"x": [None, None, "lengths", "counts"], "z": [None, None, None, "counts"], "y": []}


def test_rows_of_8_bits() -> None:
    graph = parse(BEFORE)
    report = run_passes(graph, [KeepCache("int8")])
    assert [n.attrs.get("format") for n in graph.nodes if n.op == "append"] == ["int8-keys", "int8-values"]
    assert [note.text for note in report.rewrites] == [
        "%k grows in place into %k2, in 8 bits", "%v grows in place into %v2, in 8 bits"]
    with pytest.raises(CompileError, match="format 'int4' is unknown; expected f32 or int8"):
        KeepCache("int4")


@pytest.mark.parametrize("operands, extra", [
    ("%k2, %k2", ""), ("%k2, %v3", "%v3: f32[b, 2, past + s, 8] = concat(%vn, %v) {axis = 2}")])
def test_keys_that_are_values_too_or_go_with_others_stay_floats(operands: str, extra: str) -> None:
    values = "" if extra else "%v2: f32[b, 2, past + s, 8] = concat(%v, %vn) {axis = 2}"
    graph = parse(decoder(f"""{GROWN}{values}{extra}
      %y: f32[b, s, 32] = attention(%q, {operands}) {ATTENTION}""", results="%y, %k2" + ", %v2" * (not extra)))
    report = run_passes(graph, [KeepCache("int8")])
    found = find_cache(graph)
    assert found is not None and set(found.formats) == {"f32"}
    assert [note.text for note in report.declines if "8 bits" in note.text] == [
        "not in 8 bits: %k2 is not just keys, or values, or goes with some that do not grow in place"]


def read(rows: str) -> str:
    """A graph whose keys %k3 are made of %made, a product of those that are kept."""
    return decoder(f"""
      const %w: f32[8, 8] = @w
      %k2: f32[b, 2, past + s, 8] = concat(%k, %kn) {{axis = 2}}
      %v2: f32[b, 2, past + s, 8] = concat(%v, %vn) {{axis = 2}}
      %made: f32[b, 2, past + s, 8] = matmul(%k2, %w)
      {rows}
      %y: f32[b, s, 32] = attention(%q, %k3, %v2) {ATTENTION}""")


@pytest.mark.parametrize("rows, uniform", [
    ("%k3: f32[b, 2, past + s, 8] = tanh(%made)", False),
    ("""%t: f32[b, past + s, 2, 8] = transpose(%made) {perm = (0, 2, 1, 3)}
      %k3: f32[b, 2, past + s, 8] = transpose(%t) {perm = (0, 2, 1, 3)}""", False),
    ("%k3: f32[b, 2, past + s, 8] = softmax(%made) {axis = 2}", True),
    ("""%top: f32[b, 2, 1, 8] = reduce_max(%made) {axes = (2), keepdims = true}
      %k3: f32[b, 2, past + s, 8] = sub(%made, %top)""", True),
    ("""%i: f32[past + s] = iota() {size = past + s, dtype = f32}
      %at: f32[past + s, 1] = reshape(%i) {shape = (past + s, 1)}
      %k3: f32[b, 2, past + s, 8] = mul(%made, %at)""", True)])
def test_what_is_no_attention_reads_a_copy(rows: str, uniform: bool) -> None:
    """Sequences need not be of one length where each of its rows is one token's."""
    graph = parse(read(rows), {"w": np.eye(8, k=1, dtype=np.float32)})
    before = clone(graph)
    report = run_passes(graph, [KeepCache("int8")])
    compare(before, graph, random_feeds(before, sizes={"b": 2, "s": 3, "past": 4}), 0)
    [copy] = [n for n in graph.nodes if n.op == "kept"]
    assert copy.input(0).name == "k2" and [u.op for u in copy.output.users] == ["matmul"]
    cache = find_cache(graph)
    assert cache is not None and cache.uniform is uniform and set(cache.formats) == {"f32"}
    assert "all of %k2 is copied in every run: matmul" in str([note.text for note in report.declines])


GROWN = "%k2: f32[b, 2, past + s, 8] = concat(%k, %kn) {axis = 2}\n"
DECLINED = {
    "past read elsewhere": (decoder(f"""{GROWN}
      %v2: f32[b, 2, past, 8] = neg(%k)
      %y: f32[b, s, 32] = attention(%q, %k2, %k2) {ATTENTION}"""), "%k is read elsewhere too"),
    "another axis": (decoder("""
      %k2: f32[2*b, 2, past, 8] = concat(%k, %k) {axis = 0}
      %v2: f32[b, s, 36] = neg(%va)
      %y: f32[b, s, 32] = neg(%q)"""), "tokens are put along axis 0, expected new ones behind"),
    "in front": (decoder(f"""
      %k2: f32[b, 2, past + s, 8] = concat(%kn, %k) {{axis = 2}}
      %v2: f32[b, s, 36] = neg(%va)
      %y: f32[b, s, 32] = attention(%q, %k2, %k2) {ATTENTION}"""), None),
    "fixed length": (decoder(f"""
      %k2: f32[b, 2, s + 4, 8] = concat(%k, %kn) {{axis = 2}}
      %v2: f32[b, s, 36] = neg(%va)
      %y: f32[b, s, 32] = attention(%q, %k2, %k2) {ATTENTION}""", INPUTS.replace("past", "4")),
        "heads and their size must be fixed, and the length free"),
    "passed through": (decoder(f"""
      %y: f32[b, s, 32] = attention(%q, %k, %v) {ATTENTION.replace("true", "false")}""", results="%y, %k, %v"),
        "%k goes in and comes out as it is: nothing is appended"),
    "not as many": (decoder(f"""{GROWN}
      %v2: f32[b, 2, other + s, 8] = concat(%v, %vn) {{axis = 2}}
      %y: f32[b, s, 32] = attention(%q, %k2, %k2) {ATTENTION}""",
        INPUTS.replace("%v: f32[b, 2, past", "%v: f32[b, 2, other")), "not as many tokens"),
    "no input of that length": (decoder(f"""
      %kw: f32[b, 2, 2*s, 8] = concat(%kn, %kn) {{axis = 2}}
      %k2: f32[b, 2, past + 2*s, 8] = concat(%k, %kw) {{axis = 2}}
      %v2: f32[b, s, 36] = neg(%va)
      %y: f32[b, s, 32] = attention(%q, %k2, %k2) {ATTENTION}"""), "no input is as long as there are new tokens, 2*s"),
}


@pytest.mark.parametrize("name", DECLINED)
def test_what_is_used_otherwise_is_left_alone_and_why(name: str) -> None:
    text, reason = DECLINED[name]
    graph = parse(text)
    report = run_passes(graph, [KeepCache()])
    found = " | ".join(note.text for note in report.declines)
    assert (reason or "") in found and bool(found) == (reason is not None)
    assert sum(n.op == "append" for n in graph.nodes) == (1 if name == "not as many" else 0)


F32 = ("f32", "f32")


def roles(text: str) -> Cache | None:
    graph = parse(text)
    run_passes(graph, [KeepCache()])
    return find_cache(graph)


MASKED = INPUTS.replace("%k:", "%attention_mask: i64[b, total], %position_ids: i64[b, s], %k:")


def masked(between: str, operands: str, results: str = "%y, %k2, %v2") -> str:
    """The decoder with a mask and positions, which the attention is given in some way."""
    return decoder(f"""{GROWN}      %v2: f32[b, 2, past + s, 8] = concat(%v, %vn) {{axis = 2}}
      {between}
      %y: f32[b, s, 32] = attention(%q, %k2, %v2{operands}) {ATTENTION}""", MASKED, results).replace(
        "{\n", "{\n      assume total == past + s\n", 1)


def test_how_far_back_tokens_see() -> None:
    """In all layers, where nothing else goes by a key's place."""
    def window(*windows: int, positions: bool = True) -> int:
        graph = decoder_graph(len(windows), positions, window=6)
        for node, size in zip((n for n in graph.nodes if n.op == "attention"), windows, strict=True):
            node.attrs["window"] = size
        run_passes(graph, [KeepCache()])
        found = find_cache(graph)
        assert found is not None
        return found.window

    assert (window(6, 6), window(6, 9), window(6, 0), window(0, 0)) == (6, 9, 0, 0)
    assert window(6, 6, positions=False) == 0
    text = masked("", ", -, %attention_mask").replace(ATTENTION, ATTENTION.replace("}", ", window = 5}"))
    found = roles(text)
    assert found is not None and found.window == 5
    found = roles(text.replace("-, %attention_mask", "%m").replace("%k:", "%m: f32[b, 1, s, total], %k:", 1))
    assert found is not None and found.window == 0


def test_what_inputs_are_for() -> None:
    assert roles(BEFORE) == Cache(((1, 1), (2, 2)), F32, (0, 1), None, None, uniform=False)
    by_keys = Cache(((3, 1), (4, 2)), F32, (0, 1), 1, 2, uniform=False)
    assert roles(masked("", ", -, %attention_mask")) == by_keys
    assert roles(masked("%m: bool[b, total] = cast(%attention_mask) {to = bool}", ", -, %m")) == by_keys
    # The last column of the mask, a number of kept tokens: right for one length only.
    column = "%n: i64[b, s] = slice(%attention_mask) {starts = (0, past), sizes = (b, s), steps = (1, 1)}"
    number = "%n: i64[1] = sizes() {values = (past)}"
    for extra in (column, number):
        found = roles(masked(extra, ", -, %attention_mask", "%y, %k2, %v2, %n"))
        assert found == Cache(((3, 1), (4, 2)), F32, (0, 1), 1, 2, uniform=True)
    assert roles(BEFORE.replace("true", "false")) == Cache(((1, 1), (2, 2)), F32, (0, 1), None, None, uniform=True)
    assert roles("graph @g(%x: f32[b]) {\n return %x\n }") is None
