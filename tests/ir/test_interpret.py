"""The reference interpreter: sizes solved from shapes, errors that say what was expected."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from q8c.errors import Error, InputError
from q8c.ir import DType, Graph, TensorType, Value, interpret, parse_graph
from q8c.ir.dims import sym
from q8c.ir.feeds import random_feeds

TEXT = """graph @g(%x: f32[batch, seq, 2], %past: f32[batch, past + seq], %k: i64[2*half]) {
  assume seq == min(8, seq)
  const %two: f32[] = 2.0
  %y: f32[batch, seq, 2] = mul(%x, %two)
  %s: f32[batch*seq, 2] = reshape(%y) {shape = (batch*seq, 2)}
  %n: i64[3] = sizes() {values = (past, half, batch*seq)}
  return %s as "doubled", %n
}"""


def feeds(**changes: Any) -> dict[str, Any]:
    given = {"x": np.ones((2, 3, 2), np.float32), "past": np.ones((2, 7), np.float32), "k": np.zeros(10, np.int64)}
    return {**given, **changes}


def test_sizes_follow_from_the_shapes() -> None:
    y, n = interpret(parse_graph(TEXT), feeds())
    assert y.shape == (6, 2) and (y == 2).all() and n.tolist() == [4, 5, 6]


def test_lists_are_taken_as_arrays_and_values_can_be_kept_or_watched() -> None:
    graph = parse_graph("graph @g(%x: i64[n]) {\n%a: i64[n] = neg(%x)\n%b: i64[n] = abs(%a)\nreturn %b }")
    keep: dict[str, Any] = {}
    seen: list[str] = []
    assert interpret(graph, {"x": [1, -2]}, keep, lambda v, a: seen.append(v.name))[0].tolist() == [1, 2]
    assert keep["a"].tolist() == [-1, 2] and seen == ["a", "b"]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"x": np.ones((2, 3, 2))}, r"input 'x': expected f32\[batch, seq, 2\], got float64\[2, 3, 2\]"),
    ({"x": np.ones((2, 3), np.float32)}, r"input 'x': expected f32\[batch, seq, 2\], got float32\[2, 3\]"),
    ({"x": np.ones((2, 3, 4), np.float32)}, r"input 'x': expected f32\[batch, seq, 2\], got \[2, 3, 4\]; 2 is 2"),
    ({"past": np.ones((5, 7), np.float32)}, r"input 'past': .*got \[5, 7\]; batch is 2"),
    ({"k": np.zeros(9, np.int64)}, r"input 'k': expected i64\[2\*half\], got \[9\]; 2\*half is 8"),
    ({"x": np.ones((2, 9, 2), np.float32), "past": np.ones((2, 9), np.float32)},
     "the model needs seq <= 8, which seq = 9 does not give"),
]


@pytest.mark.parametrize("changes, message", WRONG)
def test_feeds_that_do_not_fit_are_input_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        interpret(parse_graph(TEXT), feeds(**changes))


def test_a_missing_input_is_named() -> None:
    given = feeds()
    del given["past"]
    with pytest.raises(InputError, match=r"input 'past' is missing; expected f32\[batch, past \+ seq\]"):
        interpret(parse_graph(TEXT), given)


def test_a_size_no_shape_tells_is_an_error() -> None:
    graph = parse_graph("graph @g(%x: f32[a*b]) {\nreturn %x }")
    with pytest.raises(InputError, match=r"input 'x': a in f32\[a\*b\] does not follow from the shapes"):
        interpret(graph, {"x": np.zeros(6, np.float32)})


def test_division_by_a_size_of_zero_is_an_error() -> None:
    graph = parse_graph("graph @g(%x: f32[n]) {\n%y: i64[1] = sizes() {values = ((8 // n))}\nreturn %y }")
    assert interpret(graph, {"x": np.zeros(3, np.float32)})[0].tolist() == [2]
    with pytest.raises(InputError, match="graph g: the inputs' shapes make a size divide by zero"):
        interpret(graph, {"x": np.zeros(0, np.float32)})


def test_a_reference_that_fails_or_gives_another_type_names_the_node() -> None:
    graph = Graph()
    x = graph.add_input("x", TensorType(DType.f32, (sym("n"),)))
    node = graph.add("slice", [x], {"starts": (2,), "sizes": (2,), "steps": (1,)}, source=("Slice_7",))
    graph.add_output(node.output)
    with pytest.raises(Error, match=r"slice %slice \(Slice_7\): %slice is f32\[2\], \(2,\) here, but .* float32\[1\]"):
        interpret(graph, {"x": np.zeros(3, np.float32)})


def test_an_index_out_of_range_is_an_input_error() -> None:
    graph = parse_graph("""graph @g(%x: f32[4, 2], %i: i64[n]) {
      %y: f32[n, 2] = gather(%x, %i) {axis = 0}
      return %y
    }""")
    x = np.arange(8, dtype=np.float32).reshape(4, 2)
    assert interpret(graph, {"x": x, "i": np.array([3, -4])})[0].tolist() == [[6, 7], [0, 1]]
    for index in (4, -5, 2**40):
        with pytest.raises(InputError, match=rf"index {index} is out of range \[0, 4\)"):
            interpret(graph, {"x": x, "i": np.array([0, index])})


def test_a_loop_means_its_body() -> None:
    graph = parse_graph("""graph @g(%x: f32[n, 4], %b: f32[4]) {
      %y: f32[n, 4], %m: f32[n, 1] = loop(%x, %b) body(%r: f32[n, 4], %c: f32[4]) {
        const %two: f32[] = 2.0
        %s: f32[n, 4] = add(%r, %c)
        %m: f32[n, 1] = reduce_max(%s) {axes = (-1)}
        %t: f32[n, 4] = mul(%s, %two)
        return %t, %m
      }
      return %y, %m
    }""")
    x, b = np.arange(8, dtype=np.float32).reshape(2, 4), np.array([1, 0, 0, 5], np.float32)
    y, m = interpret(graph, {"x": x, "b": b})
    assert np.array_equal(y, (x + b) * 2) and m.tolist() == [[8], [12]]


def test_random_feeds_fit_and_repeat() -> None:
    graph = parse_graph(TEXT)
    one, two, other = random_feeds(graph), random_feeds(graph), random_feeds(graph, seed=1)
    assert all(np.array_equal(one[k], two[k]) for k in one) and not np.array_equal(one["x"], other["x"])
    assert set(np.unique(one["k"])) <= {0, 1}
    interpret(graph, one)
    sized = random_feeds(graph, sizes={"seq": 8, "batch": 1})
    assert sized["x"].shape == (1, 8, 2)


def test_random_feeds_without_a_fit_are_an_error() -> None:
    graph = parse_graph("graph @g(%x: f32[n]) {\nassume n == n + 1\nreturn %x }")
    with pytest.raises(InputError, match=r"no sizes were found that fit graph g \(the model needs n == n \+ 1"):
        random_feeds(graph)


def test_outputs_may_be_inputs_constants_and_repeated() -> None:
    graph = parse_graph("graph @g(%x: f32[n]) {\nconst %c: f32[1] = 4.0\nreturn %x, %c, %x }")
    x = np.ones(3, np.float32)
    assert [a.tolist() for a in interpret(graph, {"x": x})] == [[1, 1, 1], [4], [1, 1, 1]]
    assert isinstance(graph.outputs[0], Value)


@pytest.mark.parametrize(("dtype", "largest", "smallest"), [("f32", -np.inf, np.inf), ("i32", -2**31, 2**31 - 1),
                                                            ("u8", 0, 255), ("bool", False, True)])
def test_extremes_of_nothing_are_the_types_limits(dtype: str, largest: float, smallest: float) -> None:
    graph = parse_graph(f"""graph @g(%x: {dtype}[n, 2]) {{
      %a: {dtype}[2] = reduce_max(%x) {{axes = (0), keepdims = false}}
      %b: {dtype}[2] = reduce_min(%x) {{axes = (0), keepdims = false}}
      return %a, %b
    }}""")
    a, b = interpret(graph, {"x": np.zeros((0, 2), DType[dtype].numpy)})
    assert a.tolist() == [largest] * 2 and b.tolist() == [smallest] * 2
