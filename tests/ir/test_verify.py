"""The verifier finds each way a graph can be wrong, and the graph's own methods keep it right."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from q8c.errors import CompileError
from q8c.ir import DType, Graph, Node, TensorType, Value, clone, parse_graph, print_graph, verify
from q8c.ir.dims import sym
from q8c.ir.graph import view_root

TEXT = """graph @g(%x: f32[n, 4], %z: f32[m, 4]) {
  assume n == m
  const %w: f32[4, 2] = @w
  %s: f32[m, 4] = add(%x, %z)
  %h: f32[m, 2] = matmul(%s, %w)
  %y: f32[m, 2] = mul(%h, %h)
  %l: f32[m, 2] = loop(%y) body(%a: f32[m, 2]) {
    %b: f32[m, 2] = exp(%a)
    return %b
  }
  return %l
}
"""


def build() -> Graph:
    return parse_graph(TEXT)


def stale_user(g: Graph) -> None:
    g.nodes[0].output.users.clear()


def extra_user(g: Graph) -> None:
    g.inputs[0].users.append(g.nodes[2])


def wrong_order(g: Graph) -> None:
    g.nodes[0], g.nodes[1] = g.nodes[1], g.nodes[0]


def wrong_dtype(g: Graph) -> None:
    g.nodes[0].output.type = TensorType(DType.f64, g.nodes[0].output.shape)


def wrong_shape(g: Graph) -> None:
    g.nodes[1].output.type = TensorType(DType.f32, (sym("m"), 3))


def wrong_rank(g: Graph) -> None:
    g.nodes[2].output.type = TensorType(DType.f32, (sym("m"),))


def forgotten_assumption(g: Graph) -> None:
    g.assumptions.clear()


def wrong_producer(g: Graph) -> None:
    g.nodes[0].output.producer = g.nodes[1]


def name_twice(g: Graph) -> None:
    g.nodes[0].output.name = "x"


def constant_under_another_name(g: Graph) -> None:
    g.constants["v"] = g.constants.pop("w")


def input_among_constants(g: Graph) -> None:
    g.constants["x"] = g.inputs.pop(0)


def output_from_nowhere(g: Graph) -> None:
    g.outputs = (Value("lost", g.outputs[0].type),)


def output_without_name(g: Graph) -> None:
    g.output_names.pop()


def unknown_op(g: Graph) -> None:
    g.nodes[2].op = "multiply"


def unknown_attribute(g: Graph) -> None:
    g.nodes[2].attrs["axis"] = 1


def attribute_of_another_kind(g: Graph) -> None:
    g.nodes[1].attrs["transpose_b"] = 1


def operand_missing(g: Graph) -> None:
    g.nodes[1].inputs[1] = None
    g.constants["w"].users.clear()


def output_missing(g: Graph) -> None:
    g.nodes[3].outputs.append(Value("second", g.outputs[0].type, producer=g.nodes[3]))


def wrong_body(g: Graph) -> None:
    body = g.nodes[3].body
    assert body is not None
    body.inputs[0].users.clear()


def body_of_another_type(g: Graph) -> None:
    body = g.nodes[3].body
    assert body is not None
    body.inputs[0].type = TensorType(DType.f32, (4, 4))


WRONG: dict[Callable[[Graph], None], str] = {
    stale_user: r"%s: f32\[m, 4\]: 0 users are noted, 1 read it",
    extra_user: r"%x: f32\[n, 4\]: 2 users are noted, 1 read it",
    wrong_order: r"matmul %h: reads %s: f32\[m, 4\] before it is defined",
    wrong_dtype: r"add %s: %s is stated as f64\[m, 4\] but the op gives f32\[m, 4\]",
    wrong_shape: r"matmul %h: %h is stated as f32\[m, 3\] but the op gives f32\[m, 2\]",
    wrong_rank: r"mul %y: %y is stated as f32\[m\] but the op gives f32\[m, 2\]",
    forgotten_assumption: "add %s: needs n == m, which is not assumed",
    wrong_producer: r"add %s: %s: f32\[m, 4\] does not name it as its producer",
    name_twice: "the name %x is defined twice",
    constant_under_another_name: r"constant %w: f32\[4, 2\] is kept under the name 'v'",
    input_among_constants: r"constant %x: f32\[n, 4\] is kept under the name 'x'",
    output_from_nowhere: r"the output %lost: f32\[m, 2\] is not defined",
    output_without_name: "graph g: 1 outputs but 0 names",
    unknown_op: "multiply %y: there is no op of this name",
    unknown_attribute: "mul %y: no attribute 'axis'; expected none",
    attribute_of_another_kind: "matmul %h: attribute transpose_b expected bool, got 1",
    operand_missing: r"matmul %h: expected operands \(a b\), got",
    output_missing: "loop %l: expected 1 outputs, got 2",
    wrong_body: r"%a: f32\[m, 2\]: 0 users are noted, 1 read it",
    body_of_another_type: r"loop %l: the body expects %a as f32\[4, 4\]",
}


def test_the_graph_itself_is_right() -> None:
    verify(build())


@pytest.mark.parametrize("damage", WRONG, ids=lambda d: d.__name__)
def test_damage_is_found_and_named(damage: Callable[[Graph], None]) -> None:
    graph = build()
    damage(graph)
    with pytest.raises(CompileError, match=WRONG[damage]) as caught:
        verify(graph)
    assert "\n" not in str(caught.value)


def test_a_check_that_fails_leaves_no_assumption_behind() -> None:
    graph = build()
    graph.assumptions.clear()
    for _ in range(2):
        with pytest.raises(CompileError):
            verify(graph)
    assert graph.assumptions == []


def test_a_clone_is_equal_and_separate() -> None:
    graph = build()
    copy = clone(graph)
    assert print_graph(copy) == print_graph(graph)
    verify(copy)
    copy.nodes[3].body.nodes[0].op = "tanh"  # type: ignore[union-attr]
    copy.assume_equal(sym("n"), 3)
    copy.add("neg", [copy.outputs[0]])
    verify(copy)
    assert print_graph(graph) == print_graph(build())
    assert copy.nodes[3].body is not None and copy.nodes[3].body.assumptions is copy.assumptions


def test_replacing_erasing_and_pruning_keep_uses_right() -> None:
    graph = build()
    s, h, y = (n.output for n in graph.nodes[:3])
    with pytest.raises(CompileError, match="matmul %h: cannot be erased, %h is still read"):
        graph.erase(graph.nodes[1])
    new = graph.add("tanh", [h], name="y", before=graph.nodes[2])
    assert new.output.name == "y_1" and graph.nodes.index(new) == 2
    graph.replace_uses(y, new.output)
    graph.erase(graph.nodes[3])
    verify(graph)
    assert h.users == [new] and s.users == [graph.nodes[1]]
    graph.set_inputs(new, [graph.nodes[1].output])
    graph.replace_uses(graph.nodes[3].output, new.output)
    assert graph.is_output(new.output) and graph.prune() and not graph.prune()
    verify(graph)
    assert [n.op for n in graph.nodes] == ["add", "matmul", "tanh"]
    graph.outputs = [graph.inputs[0]]
    assert graph.prune() and not graph.nodes and not graph.constants
    verify(graph)


def test_names_are_fresh() -> None:
    graph = Graph()
    assert [graph.fresh_name(n) for n in ("a", "a", "a_1", "a", "b")] == ["a", "a_1", "a_1_1", "a_2", "b"]


def test_constants_are_checked() -> None:
    graph = Graph()
    with pytest.raises(CompileError, match=r"constant %c: expected f32\[2\], got float64\[2\]"):
        graph.declare_constant("c", TensorType(DType.f32, (2,)), np.zeros(2))
    assert graph.constant(3, type=TensorType(DType.f32, ())).array().dtype == np.float32


def test_sizes_known_equal() -> None:
    graph = Graph()
    n, m = sym("n"), sym("m")
    graph.assume_equal(n, m)
    graph.assume_equal(m, n)
    graph.assume_equal(n, n)
    assert graph.assumptions == [(n, m)]
    assert graph.known_equal(m, n) and graph.known_equal(n + 0, n) and not graph.known_equal(n, 4)


def test_accessors_of_nodes() -> None:
    graph = parse_graph("""graph @g(%x: f32[n, 4], %r: f32[n, 2]) {
      const %w: f32[4, 2] = @w
      %y: f32[n, 2] = linear(%x, %w, -, %r) from "dense", "other"
      %v: f32[2*n] = reshape(%y) {shape = (2*n)}
      return %v
    }""")
    node = graph.nodes[0]
    assert str(node) == "linear %y (dense)" and [v.name for v in node.operands] == ["x", "w", "r"]
    assert str(Node("sink", [], [])) == "sink" and graph.symbols() == ["n"]
    with pytest.raises(CompileError, match=r"linear %y \(dense\): operand 2 is missing"):
        node.input(2)
    assert view_root(graph.outputs[0]) is node.output and view_root(graph.inputs[0]) is graph.inputs[0]
    assert str(graph.inputs[0].type.nbytes) == "16*n" and graph.inputs[0].type.rank == 2
