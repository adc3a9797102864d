"""Random shape arithmetic gives the numbers the reference evaluator gives, whether it is resolved or left as ops."""
from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from q8c.errors import InputError
from q8c.ir import interpret
from tests.frontend.support import BOOL, F32, I64, load, model, node

SIZES = [(0, 1, 2), (3, 3, 3), (7, 2, 11), (1, 64, 5)]
BINARY = ["Add", "Sub", "Mul", "Min", "Max"]
BY_CONSTANT = ["Div", "Mod", *BINARY]
COMPARE = ["Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"]


class Program:
    """Grows a model of vectors of three integers, beginning with the shape of the input."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.nodes = [node("Shape", "x", "v0")]
        self.constants: dict[str, Any] = {}
        self.vectors, self.bools = ["v0"], [self.constant(np.array([True, False, True]))]

    def constant(self, data: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = data
        return name

    def emit(self, op: str, *operands: str, kind: str = "v", **attrs: Any) -> str:
        name = f"{kind}{len(self.nodes)}"
        self.nodes.append(node(op, " ".join(operands), name, **attrs))
        return name

    def number(self, low: int, high: int) -> Any:
        return np.array([self.draw(st.integers(low, high))])

    def step(self) -> None:
        a, b = (self.draw(st.sampled_from(self.vectors)) for _ in range(2))
        kind = self.draw(st.integers(0, 7))
        if kind == 0:
            self.vectors.append(self.emit(self.draw(st.sampled_from(BINARY)), a, b))
        elif kind == 1:
            op = self.draw(st.sampled_from(BY_CONSTANT))
            by = self.number(1, 4) if op in ("Div", "Mod") else self.number(-4, 4)
            self.vectors.append(self.emit(op, self.emit("Abs", a) if op == "Div" else a, self.constant(by)))
        elif kind == 2:
            self.bools.append(self.emit(self.draw(st.sampled_from(COMPARE)), a, b, kind="b"))
        elif kind == 3:
            self.vectors.append(self.emit("Where", self.draw(st.sampled_from(self.bools)), a, b))
        elif kind == 4:
            order = self.draw(st.lists(st.integers(-3, 2), min_size=3, max_size=3))
            self.vectors.append(self.emit("Gather", a, self.constant(np.array(order))))
        elif kind == 5:
            both = self.emit("Concat", a, b, kind="long", axis=0)
            step = self.draw(st.sampled_from([1, 2, -1, -2]))
            start = self.draw(st.integers(0, 1)) + (3 if step < 0 and abs(step) == 1 else 4 if step < 0 else 0)
            end = start + 3 * step
            bounds = [self.constant(np.array([n])) for n in (start, end if end >= 0 else -100, 0, step)]
            self.vectors.append(self.emit("Slice", both, *bounds))
        elif kind == 6:
            op = self.draw(st.sampled_from(["ReduceSum", "ReduceProd", "ReduceMax", "ReduceMin"]))
            self.vectors.append(self.emit("Add", self.emit(op, a, kind="one", keepdims=1), b))
        else:
            self.vectors.append(self.emit(self.draw(st.sampled_from(["Neg", "Abs", "Identity"])), a))


@st.composite
def programs(draw: st.DrawFn) -> onnx.ModelProto:
    program = Program(draw)
    for _ in range(draw(st.integers(1, 10))):
        program.step()
    outputs = {**dict.fromkeys(program.vectors, I64), **dict.fromkeys(program.bools[1:], BOOL)}
    return model(program.nodes, {"x": (F32, ["a", "b", "c"])}, outputs, program.constants)


@settings(max_examples=150, deadline=None)
@given(programs())
def test_shape_programs(proto: onnx.ModelProto) -> None:
    graph = load(proto)
    reference = ReferenceEvaluator(proto)
    for sizes in SIZES:
        x = np.zeros(sizes, F32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numbers may grow beyond 64 bits, where data wraps and sizes are refused
            wanted = reference.run(None, {"x": x})
        try:
            found = interpret(graph, {"x": x})
        except InputError as error:
            assert "a size computed from the input shapes is too large" in str(error)
            continue
        for want, got in zip(wanted, found, strict=True):
            np.testing.assert_array_equal(got, want)


def test_sizes_beyond_62_bits_are_refused() -> None:
    nodes = [node("Shape", "x", "s"), *(node("Mul", f"{a} {a}", b) for a, b in zip("sabcd", "abcdy", strict=True))]
    graph = load(model(nodes, {"x": (F32, ["n"])}, {"y": I64}))
    assert interpret(graph, {"x": np.zeros(3, F32)})[0] == 3**32
    with pytest.raises(InputError, match="a size computed from the input shapes is too large"):
        interpret(graph, {"x": np.zeros(4, F32)})


@settings(max_examples=100, deadline=None)
@given(st.integers(-9, 9), st.integers(-9, 9), st.sampled_from([1, 2, 3, -1, -2]), st.booleans(), st.booleans())
def test_slices_whose_bounds_are_sums_of_sizes(start: int, end: int, step: int, from_size: bool, to_size: bool) -> None:
    nodes = [node("Shape", "x", "n", end=1), node("Shape", "x", "m", start=1)]
    nodes.append(node("Add", "m start" if from_size else "start zero", "first"))
    nodes.append(node("Add", "m end" if to_size else "end zero", "last"))
    nodes.append(node("Slice", "x first last zero step"))
    proto = model(nodes, {"x": (F32, ["n", "m"])}, {"y": F32},
                  {"start": np.array([start]), "end": np.array([end]), "zero": np.array([0]), "step": np.array([step])})
    graph = load(proto)
    for n in (1, 2, 5, 8):
        for m in (1, 4):
            x = np.arange(n * m, dtype=F32).reshape(n, m)
            first, last = start + m * from_size, end + m * to_size
            want = expected_slice(x, first, last, step)
            np.testing.assert_array_equal(interpret(graph, {"x": x})[0], want)


@pytest.mark.parametrize("end", [-2**63, -2**63 + 1, -2**62, -2**47, 2**62, 2**63 - 1])
@pytest.mark.parametrize("step", [1, 2, -1, -2])
def test_slices_that_end_far_outside(end: int, step: int) -> None:
    nodes = [node("Slice", "x start end axis step")]
    proto = model(nodes, {"x": (F32, ["n"])}, {"y": F32},
                  {"start": np.array([3]), "end": np.array([end]), "axis": np.array([0]), "step": np.array([step])})
    graph = load(proto)
    for n in (1, 3, 8):
        x = np.arange(n, dtype=F32)
        np.testing.assert_array_equal(interpret(graph, {"x": x})[0], expected_slice(x, 3, end, step))


def test_sizes_of_slices_of_slices_stay_short() -> None:
    """They were thousands of letters long, more than a compiled file takes."""
    bounds = [(2, -4, -1), (2, 2**63 - 1, 1), (-4, 5, 1), (2, -1, 1), (-4, 5, 2)]
    nodes = [node("Slice", f"x{i} s{i} e{i} zero t{i}", f"x{i + 1}") for i in range(len(bounds))]
    constants = {f"{k}{i}": np.array([v]) for i, b in enumerate(bounds) for k, v in zip("set", b, strict=True)}
    graph = load(model(nodes, {"x0": (F32, ["n"])}, {f"x{len(bounds)}": F32}, {**constants, "zero": np.array([0])}))
    assert all(len(str(d)) < 200 for n in graph.nodes for v in n.outputs for d in v.type.shape)
    for n in range(12):
        x = want = np.arange(n, dtype=F32)
        for bound in bounds:
            want = expected_slice(want, *bound)
        np.testing.assert_array_equal(interpret(graph, {"x0": x})[0], want)


def expected_slice(x: Any, start: int, end: int, step: int) -> Any:
    """ONNX's Slice, which unlike Python's begins at 0 where a negative step starts before the axis."""
    size = len(x)
    start = start + size if start < 0 else start
    end = end + size if end < 0 else end
    if step > 0:
        return x[min(max(start, 0), size):min(max(end, 0), size):step]
    start, end = min(max(start, 0), size - 1), min(max(end, -1), size - 1)
    return x[list(range(start, end, step))]
