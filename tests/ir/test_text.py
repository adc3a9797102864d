"""Text: every graph prints, parses back to the same graph, and wrong text is one error with a line number."""
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from q8c.errors import CompileError
from q8c.ir import DType, Graph, TensorType, constant_data, interpret, parse_graph, print_graph, verify
from tests.ir.graphs import graphs

EVERY_LEVEL = """graph @all(%x: f32[batch, past + seq, 8], %"odd name": f32[batch, 1]) {
  assume seq == min(512, seq)
  assume past == 4
  stretch %x on 0, 1
  stretch %"odd name" on 0
  const %w: u8[8, 16] = @w
  const %scale: f32[16] = 0.5
  const %few: f32[3] = [1.0, nan, -inf]
  const %none: i64[0] = @none
  const %half: f32[] = 0.5
  const %flags: bool[2] = [true, false]
  const %tiny: f64[2] = [1e-300, -0.0]
  const %big: u64[] = 18446744073709551615
  QUANTIZE
  %y: f32[batch, past + seq, 16] @3 = q8_linear(%q, %s, %t, %w, %scale, -, %"res 1") {activation = "gelu"}
  %z: f32[batch, past + seq, 16] @0 = loop(%y, %half) body(%a: f32[batch, past + seq, 16], %b: f32[]) {
    const %two: f32[] = 2.0
    %c: f32[batch, past + seq, 16] = mul(%a, %two)
    %d: f32[batch, past + seq, 16] = add(%c, %b)
    return %d
  }
  return %z as "last hidden", %q
}
""".replace("QUANTIZE", "%q: i8[batch, past + seq, 8] @0, %s: f32[batch, past + seq, 1] @1, "
            '%t: i32[batch, past + seq, 1] @2 = dynamic_quantize(%x) from "a/MatMul", "b \\"quoted\\""')


def build_every_level() -> Graph:
    text = EVERY_LEVEL.replace(', -, %"res 1")', ")")
    return parse_graph(text, {"w": np.ones((8, 16), np.uint8), "none": np.zeros(0, np.int64)})


@given(graphs(max_nodes=25))
@settings(max_examples=100, deadline=None)
def test_random_graphs_come_back_the_same(graph: Graph) -> None:
    text = print_graph(graph)
    again = parse_graph(text, constant_data(graph))
    verify(again)
    assert print_graph(again) == text
    for name, value in graph.constants.items():
        assert again.constants[name].array().tobytes() == value.array().tobytes()


def test_every_level_prints_as_it_was_written() -> None:
    graph = build_every_level()
    text = print_graph(graph)
    assert text == EVERY_LEVEL.replace(', -, %"res 1")', ")").replace(
        "const %w: u8[8, 16] = @w", "const %w: u8[8, 16] = 1")
    assert print_graph(parse_graph(text, constant_data(graph))) == text
    assert graph.nodes[0].source == ("a/MatMul", 'b "quoted"')
    assert [v.slot for v in graph.nodes[0].outputs] == [0, 1, 2]
    assert graph.output_names == ["last hidden", "q"]


def test_a_missing_operand_is_a_dash() -> None:
    text = """graph @g(%x: f32[n, 4], %r: f32[n, 2]) {
  const %w: f32[4, 2] = @w
  %y: f32[n, 2] = linear(%x, %w, -, %r)
  return %y
}
"""
    graph = parse_graph(text)
    assert graph.nodes[0].inputs[2] is None and print_graph(graph) == text


def test_a_constant_without_data_prints_and_verifies_but_does_not_run() -> None:
    graph = parse_graph("graph @g(%x: f32[2]) {\n  const %w: f32[2] = @w\n  %y: f32[2] = add(%x, %w)\n  return %y\n}\n")
    verify(graph)
    with pytest.raises(CompileError, match="constant %w: its data was not given; expected f32"):
        interpret(graph, {"x": np.zeros(2, np.float32)})


def test_spacing_comments_and_trailing_commas_do_not_matter() -> None:
    graph = parse_graph("""# a comment
        graph @g ( %x : f32[ n , 4, ], ) { # the input
          %y: f32[n,4]=softmax( %x , ){axis = -1 ,}from "a",
            "b" return %y }  # the end""")
    assert graph.nodes[0].source == ("a", "b") and graph.nodes[0].attrs == {"axis": -1}


@given(st.sampled_from(list(DType)), st.data())
@settings(max_examples=200, deadline=None)
def test_constants_keep_every_bit(dtype: DType, data: st.DataObject) -> None:
    raw = data.draw(st.binary(min_size=3 * dtype.itemsize, max_size=3 * dtype.itemsize))
    array = np.frombuffer(raw, np.uint8) & 1 if dtype is DType.bool else np.frombuffer(raw, dtype.numpy)
    array = array[:3].astype(dtype.numpy)
    array[array != array] = np.nan if dtype.is_float else 0  # which NaN it is does not print
    graph = Graph("g")
    graph.add_output(graph.constant(array, "c"))
    again = parse_graph(print_graph(graph), constant_data(graph)).constants["c"]
    assert again.type == TensorType(dtype, (3,)) and again.array().tobytes() == array.tobytes()


HEAD = "graph @g(%x: f32[n, 4]) {\n"
WRONG = {
    "graf @g() {}": r"line 1: expected 'graph', got 'graf @g\(\) \{\}'",
    HEAD + "%y: f32[n, 4] = expp(%x)\nreturn %y }": "line 2: unknown op 'expp'",
    HEAD + "%y: f32[n, 4] = exp(%z)\nreturn %y }": "line 2: %z is not defined",
    HEAD + "%x: f32[n, 4] = exp(%x)\nreturn %x }": "line 2: %x is defined twice",
    HEAD + "%y: f31[n, 4] = exp(%x)\nreturn %y }": "line 2: unknown element type 'f31'",
    HEAD + "%y: f32[n, 5] = exp(%x)\nreturn %y }": r"line 2: .*stated as f32\[n, 5\] but the op gives f32\[n, 4\]",
    HEAD + "%y: f32[n -] = exp(%x)\nreturn %y }": "line 2: not a dimension expression",
    HEAD + "%y: f32[n, 4] = exp(%x) {axis = 1}\nreturn %y }": "line 2: exp has no attribute 'axis'",
    HEAD + "%y: f32[n, 4] = softmax(%x) {axis = x}\nreturn %y }": "line 2: attribute axis expected int",
    HEAD + "%y: f32[n, 4] = gelu(%x) {approximate = none}\nreturn %y }": "line 2: attribute approximate expected str",
    HEAD + "%y: f32[4, n] = transpose(%x) {perm = 1}\nreturn %y }": "line 2: attribute perm expected ints",
    HEAD + "%y: i64[n, 4] = cast(%x) {to = int}\nreturn %y }": "line 2: attribute to expected dtype",
    HEAD + "%y: f32[n, 4] = exp(%x, %x)\nreturn %y }": "line 2: .*expected operands",
    HEAD + "%y: f32[n, 4] = exp()\nreturn %y }": "line 2: .*expected operands",
    HEAD + "%y: f32[n, 4] = exp(-)\nreturn %y }": "line 2: .*expected operands",
    HEAD + "%y: f32[n, 4] = softmax(%x) from axis\nreturn %y }": "line 2: expected a string",
    HEAD + '%y: f32[n, 4] = exp(%x) from "\\q"\nreturn %y }': "line 2: bad string",
    HEAD + "const %c: f32[2] = [1.0, 2.0, 3.0]\nreturn %x }": r"line 2: bad elements for f32\[2\]",
    HEAD + "const %c: f32[2] = [1.0, two]\nreturn %x }": r"line 2: bad elements for f32\[2\]",
    HEAD + "const %c: u8[] = 256\nreturn %x }": r"line 2: bad elements for u8\[\]",
    HEAD + "const %c: bool[] = 1\nreturn %x }": r"line 2: bad elements for bool\[\]",
    HEAD + "const %c: f32[n] = 1.0\nreturn %x }": "line 2: a constant needs a fixed shape",
    HEAD + "assume n = 4\nreturn %x }": "line 2: expected '=='",
    HEAD + "return %x": "line 2: expected '}'",
    HEAD + "return %x } more": "line 2: expected the end of the text",
    HEAD + "%y: f32[n, 4] = loop(%x)\nreturn %y }": "line 2: .*needs body",
    HEAD + "%y: f32[n, 4] = exp(%x) body(%a: f32[n, 4]) {\nreturn %a }\nreturn %y }": "takes no body",
    HEAD + "%y: f32[n, 4] = loop(%x) body(%a: f32[n]) {\nreturn %a }\nreturn %y }": "expects %a as f32",
    HEAD + "%y: f32[n, 4] = loop(%x) body(%a: f32[n, 4]) {\n%y1: f32[n, 4] = exp(%x)\nreturn %y1 }\nreturn %y }":
        "line 3: %x is not defined",
    "graph @g(%a: f32[n], %b: f32[m]) {\n%y: f32[n] = add(%a, %b)\nreturn %y }": "line 2: .*which is not assumed",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda t: t.removeprefix(HEAD).replace("\n", " ")[:50])
def test_wrong_text_is_one_error_with_its_line(text: str) -> None:
    with pytest.raises(CompileError, match=WRONG[text]) as caught:
        parse_graph(text)
    assert str(caught.value).startswith("graph text, line ") and "\n" not in str(caught.value)


def test_bodies_nested_too_deeply_are_an_error_not_a_crash() -> None:
    text = HEAD + "%y: f32[n, 4] = loop(%x) body(%x: f32[n, 4]) {\n" * 3000
    with pytest.raises(CompileError, match="bodies are nested deeper than 16"):
        parse_graph(text)


def test_every_prefix_is_an_error() -> None:
    text = print_graph(build_every_level())
    for end in range(len(text) - 2):
        with pytest.raises(CompileError):
            parse_graph(text[:end])


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_altered_text_parses_or_is_a_compile_error(data: st.DataObject) -> None:
    text = print_graph(build_every_level())
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start, min(start + 4, len(text))))
    insert = data.draw(st.text('%@{}[](),=-+*/"\\ 0129ax.#\n', max_size=3))
    try:
        graph = parse_graph(text[:start] + insert + text[end:])
    except CompileError as error:
        assert "\n" not in str(error)
    else:
        verify(graph)


def test_numbers_too_large_are_errors() -> None:
    for dim in ("9" * 5000, "2**9999999999", "1" + "*n" * 1500, "(" * 500 + "n" + ")" * 500):
        with pytest.raises(CompileError, match="line 1"):
            parse_graph(f"graph @g(%x: f32[{dim}]) {{ return %x }}")
    with pytest.raises(CompileError, match="line 2"):
        parse_graph(HEAD + f"const %c: f32[{2**60}] = 0.0\nreturn %x }}")
