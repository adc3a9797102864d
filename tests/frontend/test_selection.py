"""Rows picked by NonZero: the same results without knowing how many, and no results where that matters."""
from __future__ import annotations

import numpy as np
import onnx
import pytest

from q8c.errors import UnsupportedError
from q8c.frontend import import_onnx
from q8c.ir import interpret
from tests.frontend.support import BOOL, F32, I64, compare, load, model, node

TOKENS, HIDDEN, CHOICES = 5, 4, 2
RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((HIDDEN, HIDDEN)).astype(np.float32)
PICKED = [node("NonZero", "mask", "at"), node("Split", "at", "choice_row token_row", axis=0, num_outputs=2),
          node("Squeeze", "choice_row zero", "choice"), node("Squeeze", "token_row zero", "token")]
EXPERT = [node("Gather", "x token", "rows", axis=0), node("MatMul", "rows w", "product"),
          node("Tanh", "product", "expert"), node("Transpose", "at", "pairs", perm=[1, 0]),
          node("GatherND", "scores pairs", "score"), node("Unsqueeze", "score one", "column"),
          node("Mul", "expert column", "new")]
CONSTANTS = {"w": WEIGHT, "zero": np.array([0]), "one": np.array([1]), "first": np.array(0), "second": np.array(1)}


def experts(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    """Rows of x for which a mask [choices, tokens] is set, through a product, each weighted by its own score."""
    return model([*PICKED, *EXPERT, *nodes],
                 {"x": (F32, ["tokens", HIDDEN]), "mask": (BOOL, [CHOICES, "tokens"]),
                  "scores": (F32, [CHOICES, "tokens"]), "start": (F32, ["tokens", HIDDEN])}, {"y": F32}, CONSTANTS)


def feed(picked: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> dict[str, np.ndarray[tuple[int, ...],
                                                                                   np.dtype[np.generic]]]:
    """Made-up inputs with this mask."""
    tokens = picked.shape[1]
    floats = {"x": (tokens, HIDDEN), "scores": picked.shape, "start": (tokens, HIDDEN)}
    return {"mask": picked, **{n: RNG.standard_normal(s).astype(np.float32) for n, s in floats.items()}}


NONE = np.zeros((CHOICES, TOKENS), np.bool_)
SOME = np.array([[1, 0, 0, 1, 0], [0, 1, 0, 0, 0]], np.bool_)


@pytest.mark.parametrize("reduction", ["none", "add"])
def test_an_expert_works_on_the_tokens_that_chose_it(reduction: str) -> None:
    proto = experts(node("Shape", "new", "like"), node("Unsqueeze", "token one", "places"),
                    node("Expand", "places like", "wide"),
                    node("ScatterElements", "start wide new", axis=0, reduction=reduction))
    graph = compare(proto, feed(NONE), feed(SOME), feed(np.ones((1, 1), np.bool_).repeat(CHOICES, 0))
                    if reduction == "add" else feed(SOME[:, :2]))
    assert sum(n.op == "matmul" for n in graph.nodes) == 1 and not any(n.op in ("nonzero", "scatter_nd")
                                                                       for n in graph.nodes)
    product = next(n for n in graph.nodes if n.op == "matmul")
    assert str(product.output.shape[0]) == "tokens"  # once for each token, whatever the number of choices


def test_rows_put_by_a_mask_of_rows() -> None:
    nodes = [node("NonZero", "mask", "at"), node("Transpose", "at", "places", perm=[1, 0]),
             node("Squeeze", "at zero", "row"), node("Gather", "x row", "rows", axis=0), node("Exp", "rows", "new"),
             node("ScatterND", "x places new")]
    proto = model(nodes, {"x": (F32, ["n", 3]), "mask": (BOOL, ["n"])}, {"y": F32}, {"zero": np.array([0])})
    compare(proto, *({"x": RNG.standard_normal((4, 3)).astype(np.float32), "mask": mask} for mask in
                     (np.array([0, 1, 1, 0], np.bool_), np.zeros(4, np.bool_), np.ones(4, np.bool_))))


@pytest.mark.parametrize(("scalar", "found"), [(0, 0), (7, 1)])
def test_a_scalar_has_a_place_without_axes(scalar: int, found: int) -> None:
    proto = model([node("NonZero", "x", "at"), node("Cast", "at", to=1)], {}, {"y": F32}, {"x": np.array(scalar)})
    assert [y.shape for y in interpret(load(proto), {})] == [(0, found)]


PLACES = [node("NonZero", "mask", "at"), node("Transpose", "at", "places", perm=[1, 0])]


def put_by_mask(nodes: list[onnx.NodeProto], rank: int) -> None:
    """Check what is put by a mask of the first axes of x [n, m, 4], which becomes a choice between elements."""
    shape: list[int | str | None] = ["n", "m", 4]
    proto = model([*PLACES, *nodes], {"x": (F32, shape), "mask": (BOOL, shape[:rank])}, {"y": F32},
                  {"zero": np.array([0]), "minus": np.array([-1]), "two": np.array([2], F32)})
    graph = compare(proto, *({"x": RNG.standard_normal((2, 3, 4)).astype(np.float32),
                              "mask": RNG.random((2, 3, 4)[:rank]) < share} for share in (0.0, 0.5, 1.0)))
    assert "where" in {n.op for n in graph.nodes} and not {"nonzero", "scatter_nd"} & {n.op for n in graph.nodes}


@pytest.mark.parametrize("reduction", ["none", "add"])
def test_one_number_put_where_a_mask_is_set(reduction: str) -> None:
    """As PyTorch writes x[mask] = 2: as many numbers as the mask's sum tells."""
    put_by_mask([node("Reshape", "mask minus", "flat"), node("Cast", "flat", "ones", to=onnx.TensorProto.INT64),
                 node("ReduceSum", "ones zero", "count", keepdims=1), node("Expand", "two count", "many"),
                 node("ScatterND", "x places many", reduction=reduction)], 3)


def test_rows_put_where_a_mask_of_two_axes_is_set() -> None:
    put_by_mask([node("GatherND", "x places", "rows"), node("Exp", "rows", "new"),
                 node("ScatterND", "x places new")], 2)


def test_a_row_that_is_not_picked_is_not_read() -> None:
    proto = experts(node("Unsqueeze", "token one", "places"), node("ScatterND", "start places new", reduction="add"))
    given = feed(SOME)
    given["x"][2] = np.nan
    [y] = interpret(import_onnx(proto), given)
    assert np.array_equal(y[2], given["start"][2]) and np.isfinite(y).all()


SPANS = [node("Split", "ends", "e0 e1 e2", num_outputs=3, axis=0), node("Squeeze", "e0 zero", "end0"),
         node("Squeeze", "e1 zero", "end1"), node("Squeeze", "e2 zero", "end2"),
         node("Range", "first end0 second", "r0"), node("Range", "end0 end1 second", "r1"),
         node("Range", "end1 end2 second", "r2")]


def grouped(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    """Rows sorted by expert, each through the product of the span [ends[e - 1], ends[e]) it lies in, twice."""
    steps = [n for step, (x, y) in enumerate((("x", "y0"), ("y0", "y1"))) for n in [
        *(m for e in range(3) for m in (node("Gather", f"{x} r{e}", f"a{step}{e}", axis=0),
                                        node("MatMul", f"a{step}{e} w{e}", f"b{step}{e}"))),
        node("Concat", f"b{step}0 b{step}1 b{step}2", y, axis=0)]]
    weights = {f"w{e}": RNG.standard_normal((HIDDEN, HIDDEN)).astype(np.float32) for e in range(3)}
    return model([*SPANS, *steps, *(nodes or [node("Add", "y1 x")])],
                 {"x": (F32, ["tokens", HIDDEN]), "ends": (I64, [3])}, {"y": F32}, {**CONSTANTS, **weights})


def test_groups_of_sorted_rows() -> None:
    rows = RNG.standard_normal((5, HIDDEN)).astype(np.float32)
    compare(grouped(), *({"x": rows, "ends": np.array(ends)} for ends in ((2, 4, 5), (0, 0, 5), (5, 5, 5), (1, 1, 5))))


@pytest.mark.parametrize(("nodes", "problem"), [
    ([node("Neg", "r1", "n"), node("Cast", "n", to=1)], "not known to be rows"),
    ([node("Gather", "x r1", axis=0)], "is an output"),
    ([node("Concat", "b00 b02 b01", "z", axis=0), node("Add", "z x")], "takes others too"),
    ([node("Concat", "b00 b01", axis=0)], "takes others too"),  # which need not be all rows
    ([node("Concat", "x x", "wide", axis=1), node("Gather", "wide r1", "z", axis=1), node("ReduceSum", "z", "s"),
      node("Add", "y1 x", "t"), node("Add", "t s")], "is not of")])
def test_spans_that_are_no_groups_of_rows(nodes: list[onnx.NodeProto], problem: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"Range.*its length is computed from data .*{problem}"):
        import_onnx(grouped(*nodes))


@pytest.mark.parametrize(("nodes", "problem"), [
    ([node("Identity", "new")], "%.* is an output"),
    ([node("ReduceMean", "new", keepdims=1)], "reduce_mean .* does not work row by row"),
    ([node("Shape", "new", "s"), node("Cast", "s", "f", to=1), node("Gather", "f zero", "n"),
      node("Div", "start n")], "depends on how many there are"),
    ([node("Shape", "new", "s"), node("Gather", "s first", "n"), node("Range", "first n second", "r"),
      node("Cast", "r", "f", to=1), node("Add", "f score", "z"), node("Unsqueeze", "token one", "places"),
      node("Unsqueeze", "z one", "zs"), node("Mul", "zs expert", "news"),
      node("ScatterND", "start places news", reduction="add")], "has an operand for each"),
    ([node("ScatterND", "start pairs score", reduction="add")], "does not write each to where it came from"),
    ([node("Unsqueeze", "token one", "places"), node("ScatterND", "start places new", reduction="max")],
     "neither adds nor replaces"),
    ([node("Add", "new start")], "has an operand for each")])
def test_what_depends_on_other_rows_is_refused(nodes: list[onnx.NodeProto], problem: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"NonZero.*computed from data \(of input mask\).*{problem}") as caught:
        import_onnx(experts(*nodes))
    assert caught.value.inputs == {"mask"}


@pytest.mark.parametrize(("language", "count"), [(3, 1), (2, 0)])
def test_places_of_what_is_one_element_throughout(language: int, count: int) -> None:
    """As X-MOD asks which rows have its default language, and Longformer where ones are that it has just made."""
    nodes = [node("Shape", "x", "shape"), node("ConstantOfShape", "shape", "ones", value=onnx.numpy_helper.from_array(
                 np.array([1], np.int64))), node("Mul", "ones three", "languages"),
             node("Equal", "languages wanted", "mask"), node("NonZero", "mask", "at"),
             node("Transpose", "at", "places", perm=[1, 0]), node("GatherND", "x places", "y")]
    proto = model(nodes, {"x": (F32, ["rows", "cols"])}, {"y": F32},
                  {"three": np.array(3), "wanted": np.array([language])})
    feeds = [{"x": RNG.standard_normal(shape).astype(np.float32)} for shape in ((2, 3), (1, 4), (0, 2))]
    graph = compare(proto, *feeds)
    assert str(graph.outputs[0].shape[0]) == ("cols*rows" if count else "0")
