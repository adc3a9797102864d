"""Reductions in old and new opset forms against the reference evaluator."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from q8c.ir import interpret
from tests.frontend.support import BOOL, F32, I64, compare, integers, load, model, node, normal

OPS = ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
       "ReduceLogSum", "ReduceLogSumExp"]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("axes", [None, [1], [-1, 0]], ids=str)
@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("opset", [11, 18])
def test_reduce(op: str, axes: list[int] | None, keep: int, opset: int) -> None:
    as_operand = opset >= 18 and axes is not None
    attrs: dict[str, Any] = {"axes": axes} if axes is not None and not as_operand else {}
    constants = {"axes": np.array(axes)} if as_operand else {}
    proto = model([node(op, "x axes" if as_operand else "x", keepdims=keep, **attrs)], {"x": (F32, ["n", 3, 4])},
                  {"y": F32}, constants, opset=opset)
    compare(proto, *({"x": np.abs(normal(n, 3, 4)) + 0.1} for n in (1, 3)))


def test_reduce_sum_13_takes_axes_as_operand_and_may_do_nothing() -> None:
    nodes = [node("ReduceSum", "x axes", "a", keepdims=0), node("ReduceSum", "x none", "b", noop_with_empty_axes=1),
             node("ReduceSum", "x none", "c")]
    proto = model(nodes, {"x": (F32, ["n", 3])}, dict.fromkeys("abc", F32),
                  {"axes": np.array([1]), "none": np.zeros(0, np.int64)}, opset=13)
    compare(proto, {"x": normal(2, 3)})


def test_no_axes_may_mean_the_elementwise_part_alone() -> None:
    ops = ("ReduceL1", "ReduceSumSquare", "ReduceMean")
    proto = model([node(op, "x none", op, noop_with_empty_axes=1) for op in ops],
                  {"x": (F32, ["n", 3])}, dict.fromkeys(("ReduceL1", "ReduceSumSquare", "ReduceMean"), F32),
                  {"none": np.zeros(0, np.int64)}, opset=18)
    compare(proto, {"x": normal(2, 3)})


def test_reductions_of_integers_and_bools() -> None:
    nodes = [node("ReduceSum", "i", "s"), node("ReduceMax", "i", "m"), node("ReduceMax", "b axes", "any"),
             node("ReduceMin", "b axes", "all"), node("ReduceL2", "i", "l2")]
    proto = model(nodes, {"i": (I64, ["n", 3]), "b": (BOOL, ["n", 3])},
                  {"s": I64, "m": I64, "any": BOOL, "all": BOOL, "l2": I64}, {"axes": np.array([1])}, opset=20)
    compare(proto, {"i": integers(2, 3), "b": integers(2, 3, low=0, high=2, dtype=bool)})


def test_log_sum_exp_does_not_overflow() -> None:
    proto = model([node("ReduceLogSumExp", "x")], {"x": (F32, ["n", 3])}, {"y": F32}, opset=18)
    x = np.array([[1000, 1000, 0], [-np.inf, 2, 1]], F32)
    with np.errstate(all="ignore"):
        compare(proto, {"x": x})
    nothing = interpret(load(proto), {"x": np.full((1, 3), -np.inf, F32)})[0]
    assert nothing.tolist() == [[-np.inf]]


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("keep", [0, 1])
def test_arg_extremes(op: str, last: int, keep: int) -> None:
    proto = model([node(op, "x", axis=1, keepdims=keep, select_last_index=last)], {"x": (I64, ["n", "m"])}, {"y": I64},
                  opset=13)
    compare(proto, {"x": integers(3, 7, low=0, high=3)}, {"x": integers(1, 1)})


@pytest.mark.parametrize("p", [1, 2])
def test_lp_normalization(p: int) -> None:
    proto = model([node("LpNormalization", "x", axis=1, p=p)], {"x": (F32, ["n", 3])}, {"y": F32}, opset=20)
    compare(proto, {"x": np.vstack([normal(2, 3), np.zeros((1, 3), F32)])}, runtime=True)


@pytest.mark.parametrize(("axis", "opset"), [(0, 11), (1, 11), (2, 11), (-1, 11), (0, 13), (1, 13), (-1, 13)])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_softmax_before_13_takes_the_axes_from_axis_on_as_one(op: str, axis: int, opset: int) -> None:
    proto = model([node(op, "x", axis=axis)], {"x": (F32, ["n", 3, 4])}, {"y": F32}, opset=opset)
    feed: dict[str, Any] = {"x": normal(2, 3, 4)}
    if opset >= 13:
        compare(proto, feed)
        return
    axes = tuple(range(axis % 3, 3))
    e = np.exp(feed["x"] - feed["x"].max(axis=axes, keepdims=True))
    want = e / e.sum(axis=axes, keepdims=True)
    got = interpret(load(proto), feed)[0]
    np.testing.assert_allclose(got, np.log(want) if op == "LogSoftmax" else want, rtol=1e-5, atol=1e-6)


def test_softmax_11_has_axis_1() -> None:
    proto = model([node("Softmax", "x")], {"x": (F32, ["n", 3, 4])}, {"y": F32}, opset=11)
    y = interpret(load(proto), {"x": normal(2, 3, 4)})[0]
    np.testing.assert_allclose(y.sum(axis=(1, 2)), np.ones(2), rtol=1e-5)
