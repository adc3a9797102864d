"""Ops that move elements, in old and new opset forms, against the reference evaluator."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from q8c.errors import CompileError, UnsupportedError
from tests.frontend.support import BOOL, F32, I64, compare, integers, load, model, node, normal

END = np.iinfo(np.int64).max
START = np.iinfo(np.int64).min


def ints(*values: int) -> Any:
    return np.array(values, dtype=np.int64)


@pytest.mark.parametrize("perm", [None, [2, 0, 1], [0, 1, 2]])
def test_transpose(perm: list[int] | None) -> None:
    attrs: dict[str, Any] = {} if perm is None else {"perm": perm}
    proto = model([node("Transpose", "x", **attrs)], {"x": (F32, ["n", 3, "m"])}, {"y": F32})
    compare(proto, {"x": normal(2, 3, 4)}, {"x": normal(1, 3, 0)})


def test_concat_with_sizes_that_vary() -> None:
    proto = model([node("Concat", "x y x", "z", axis=-2)], {"x": (F32, ["b", "n", 3]), "y": (F32, ["b", "m", 3])},
                  {"z": F32})
    graph = compare(proto, {"x": normal(2, 1, 3), "y": normal(2, 4, 3)})
    assert str(graph.outputs[0].type) == "f32[b, m + 2*n, 3]"


@pytest.mark.parametrize(("opset", "attrs", "split"), [
    (11, {"split": [1, 3]}, None), (13, {}, ints(3, 1)), (13, {}, None), (18, {"num_outputs": 2}, None)])
def test_split(opset: int, attrs: dict[str, Any], split: Any) -> None:
    constants = {} if split is None else {"split": split}
    proto = model([node("Split", "x split" if constants else "x", "a b", axis=1, **attrs)], {"x": (F32, ["n", 4])},
                  {"a": F32, "b": F32}, constants, opset=opset)
    compare(proto, {"x": normal(2, 4)})


def test_split_into_unequal_parts_and_of_a_size_that_varies() -> None:
    proto = model([node("Split", "x", "a b c", axis=1, num_outputs=3), node("Split", "x", "d e", num_outputs=2)],
                  {"x": (F32, ["n", 5])}, dict.fromkeys("abcde", F32))
    graph = compare(proto, *({"x": normal(n, 5)} for n in range(6)))
    assert [str(v.type) for v in graph.outputs] == [
        "f32[n, 2]", "f32[n, 2]", "f32[n, 1]", "f32[((n + 1) // 2), 5]", "f32[-((n + 1) // 2) + n, 5]"]


def test_split_of_a_size_that_varies_into_more_parts_than_it_may_have_elements() -> None:
    proto = model([node("Split", "x", "a b c d", num_outputs=4)], {"x": (F32, ["n", 2])}, dict.fromkeys("abcd", F32))
    compare(proto, *({"x": normal(n, 2)} for n in range(10)))


SLICES = [  # starts, ends, axes, steps
    (ints(0), ints(END), ints(1), None), (ints(1), ints(END), ints(1), ints(1)), (ints(-2), ints(END), ints(1), None),
    (ints(-1), ints(START), ints(1), ints(-1)), (ints(0), ints(-1), ints(-1), None), (ints(3), ints(1), ints(1), None),
    (ints(0), ints(END), ints(1), ints(2)), (ints(END), ints(START), ints(1), ints(-2)),
    (ints(1, 2), ints(3, 9), None, None), (ints(-1, 0), ints(-4, END), ints(1, 0), ints(-2, 3)),
    (ints(-100), ints(100), ints(1), None), (ints(2), ints(0), ints(1), ints(-1))]


@pytest.mark.parametrize(("starts", "ends", "axes", "steps"), SLICES)
def test_slice(starts: Any, ends: Any, axes: Any, steps: Any) -> None:
    given = {"starts": starts, "ends": ends, "axes": axes, "steps": steps}
    constants = {k: v for k, v in given.items() if v is not None}
    names = " ".join(k if v is not None else "-" for k, v in given.items())
    feeds = [{"x": normal(n, m)} for n in (1, 4) for m in (0, 1, 2, 5, 9)]
    proto = model([node("Slice", f"x {names}")], {"x": (F32, ["n", "m"])}, {"y": F32}, constants, opset=13)
    compare(proto, *feeds)
    for feed in feeds:  # fixed sizes take another way through the importer
        fixed = model([node("Slice", f"x {names}")], {"x": (F32, feed["x"].shape)}, {"y": F32}, constants, opset=13)
        compare(fixed, feed)


def test_slice_bounds_that_are_sizes() -> None:
    nodes = [node("Shape", "x", "n", end=1), node("Sub", "n one", "last"), node("Slice", "table zero n zero", "head"),
             node("Slice", "x last n zero", "tail")]
    proto = model(nodes, {"x": (F32, ["n", 2])}, {"head": F32, "tail": F32},
                  {"table": normal(6, 2), "zero": ints(0), "one": ints(1)})
    graph = compare(proto, *({"x": normal(n, 2)} for n in (1, 3, 6, 8)))
    assert str(graph.outputs[0].type) == "f32[min(6, n), 2]"


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather(axis: int) -> None:
    proto = model([node("Gather", "x i", axis=axis)], {"x": (F32, ["n", 4]), "i": (I64, ["b", 2])}, {"y": F32})
    compare(proto, {"x": normal(4, 4), "i": integers(3, 2, low=-4, high=4)})


@pytest.mark.parametrize("axis", [0, 1])
def test_gather_elements(axis: int) -> None:
    proto = model([node("GatherElements", "x i", axis=axis)], {"x": (F32, [3, 4]), "i": (I64, ["n", 2])}, {"y": F32})
    compare(proto, {"x": normal(3, 4), "i": integers(3, 2, low=-3, high=3)}, runtime=True)


@pytest.mark.parametrize(("shape", "batch"), [((3, 2), 0), ((3, 1), 0), ((2, 3, 1), 1)])
def test_gather_nd(shape: tuple[int, ...], batch: int) -> None:
    proto = model([node("GatherND", "x i", batch_dims=batch)],
                  {"x": (F32, ["n", 3, 4]), "i": (I64, ["n" if batch else None, *shape[1:]])}, {"y": F32})
    compare(proto, {"x": normal(2, 3, 4), "i": integers(*shape, low=0, high=2)})


@pytest.mark.parametrize(("pads", "axes"), [(ints(1, 0, 2, 3), None), (ints(-1, 2), ints(1)), (ints(0, 0, 0, 0), None),
                                            (ints(2, 1), ints(-2))])
def test_pad(pads: Any, axes: Any) -> None:
    constants = {"pads": pads, "value": np.array(1.5, F32), **({} if axes is None else {"axes": axes})}
    proto = model([node("Pad", "x pads value" + ("" if axes is None else " axes"))], {"x": (F32, ["n", 4])},
                  {"y": F32}, constants, opset=18)
    compare(proto, {"x": normal(2, 4)}, runtime=True)


def test_a_size_settled_by_padding_or_cutting() -> None:
    """As a model brings one length to another's, whichever is longer."""
    nodes = [node("Shape", "x", "s"), node("Shape", "like", "t"), node("Sub", "t s", "more"),
             node("Concat", "zero more", "pads", axis=0), node("Pad", "x pads")]
    proto = model(nodes, {"x": (F32, ["n"]), "like": (F32, ["m"])}, {"y": F32}, {"zero": ints(0)}, opset=18)
    compare(proto, *({"x": normal(n), "like": normal(m)} for n, m in ((2, 5), (5, 2), (3, 3))), runtime=True)


def test_pad_of_bools() -> None:
    proto = model([node("Pad", "x pads")], {"x": (BOOL, ["n"])}, {"y": BOOL}, {"pads": ints(1, 2)}, opset=18)
    compare(proto, {"x": np.ones(3, bool)})


@pytest.mark.parametrize("attrs", [{}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1}], ids=str)
def test_cumsum(attrs: dict[str, Any]) -> None:
    proto = model([node("CumSum", "x axis", **attrs)], {"x": (F32, ["n", 4])}, {"y": F32},
                  {"axis": ints(-1).reshape(())})
    compare(proto, {"x": normal(2, 4)})


def test_tile_expand_and_flatten() -> None:
    nodes = [node("Tile", "x reps", "tiled"), node("Expand", "x wide", "expanded"),
             node("Flatten", "x", "flat", axis=2), node("Flatten", "x", "all", axis=0),
             node("Flatten", "x", "last", axis=-1)]
    proto = model(nodes, {"x": (F32, ["n", 1, 3])}, dict.fromkeys(("tiled", "expanded", "flat", "all", "last"), F32),
                  {"reps": ints(2, 3, 1), "wide": ints(2, 1, 4, 1)})
    compare(proto, {"x": normal(2, 1, 3)}, {"x": normal(1, 1, 3)})


@pytest.mark.parametrize("opset", [11, 13])
def test_squeeze_and_unsqueeze(opset: int) -> None:
    attribute = opset < 13
    def over(op: str, x: str, y: str, *axes: int) -> Any:
        constants[f"{y}_axes"] = ints(*axes)
        return node(op, x, y, axes=list(axes)) if attribute else node(op, f"{x} {y}_axes", y)
    constants: dict[str, Any] = {}
    nodes = [over("Unsqueeze", "x", "u", -1, 0), over("Squeeze", "u", "s", 0, -1), node("Squeeze", "c", "t")]
    constants["c"] = normal(1, 3, 1)
    proto = model(nodes, {"x": (F32, ["n", 3])}, {"u": F32, "s": F32, "t": F32}, constants, opset=opset)
    graph = compare(proto, {"x": normal(2, 3)})
    assert [v.type.rank for v in graph.outputs] == [4, 2, 1]


def test_squeeze_of_a_size_that_varies_needs_it_to_be_1() -> None:
    proto = model([node("Squeeze", "x axes")], {"x": (F32, ["n", 3])}, {"y": F32}, {"axes": ints(0)})
    assert str(load(proto).inputs[0].type) == "f32[1, 3]"
    with pytest.raises(UnsupportedError, match="no axes are given and n may be 1 or not"):
        load(model([node("Squeeze", "x")], {"x": (F32, ["n", 3])}, {"y": F32}))


def test_dropout_does_nothing_at_inference() -> None:
    proto = model([node("Dropout", "x ratio", "y mask")], {"x": (F32, ["n", 3])}, {"y": F32, "mask": BOOL},
                  {"ratio": np.array(0.5, F32)}, opset=13)
    graph = compare(proto, {"x": normal(2, 3)})
    assert graph.outputs[0] is graph.inputs[0]


@pytest.mark.parametrize(("upper", "k"), [(1, None), (0, None), (1, 1), (0, -1), (1, -2), (0, 2**63 - 1),
                                          (1, 2**63 - 1), (1, -2**62)])
def test_trilu(upper: int, k: int | None) -> None:
    constants = {} if k is None else {"k": np.array(k, np.int64)}
    proto = model([node("Trilu", "x" if k is None else "x k", upper=upper)], {"x": (F32, ["b", "n", "m"])}, {"y": F32},
                  constants)
    compare(proto, {"x": normal(2, 3, 4)}, {"x": normal(1, 4, 2)})


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_one_hot(axis: int) -> None:
    proto = model([node("OneHot", "i depth values", axis=axis)], {"i": (I64, ["n", 2])}, {"y": F32},
                  {"depth": ints(4).reshape(()), "values": np.array([-1, 3], F32)})
    compare(proto, {"i": integers(3, 2, low=-4, high=4)})


@pytest.mark.parametrize(("bad", "message"), [
    (node("Transpose", "x", perm=[0, 0]), "perm"), (node("Concat", "x x", axis=3), "axis 3 is outside rank 2"),
    (node("Gather", "x f"), "expected i32 or i64 indices"), (node("Split", "x", "y z", axis=1), "does not split"),
    (node("Reshape", "x five"), "sizes"), (node("Expand", "x five"), "do not match")])
def test_wrong_operands_name_the_node(bad: Any, message: str) -> None:
    bad.name = "the node"
    proto = model([bad], {"x": (F32, [2, 3])}, {"y": F32}, {"f": normal(1), "five": ints(5)}, opset=13)
    with pytest.raises(CompileError, match=message) as caught:
        load(proto)
    assert "the node" in str(caught.value) and "\n" not in str(caught.value)
