"""If, Loop and Scan, written out: trip counts must be known at compile time, and so must conditions of loops."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn, TypeAlias

import numpy as np

from q8c.errors import CompileError, UnsupportedError
from q8c.frontend.builder import Builder
from q8c.frontend.choices import Choices
from q8c.frontend.registry import describe, unknown
from q8c.frontend.scope import Scope
from q8c.frontend.tensor import Found, Tensor, constant
from q8c.ir.types import DType

if TYPE_CHECKING:
    import onnx

MOST_STEPS = 1024
"""Steps of a loop that are written out; each is code of its own."""
Operands: TypeAlias = "Sequence[Found | None]"
Inside: TypeAlias = "Callable[[Sequence[onnx.NodeProto], Sequence[str], Scope], Sequence[Found | None]]"
"""Imports nodes in a scope and gives the values of names."""


class Stopped(Exception):
    """A node in a subgraph cannot be compiled, so that neither can the node with the subgraph."""


def is_control(node: onnx.NodeProto) -> bool:
    """Whether a node has subgraphs that say what is computed, or how often."""
    return node.op_type in CONTROL_OPS and not node.domain


def control_flow(node: onnx.NodeProto, opset: int, operands: Operands, scope: Scope, builder: Builder,
                 choices: Choices, inside: Inside) -> Sequence[Found | None]:
    """The results of an If, Loop or Scan; none if a node in them cannot be compiled, which is noted.

    Raises UnsupportedError where how it goes on depends on data, and Undecided where `choices` are to decide that."""
    try:
        return _FLOWS[node.op_type](_Flow(node, opset, operands, scope, builder, choices, inside))
    except Stopped:
        return []


class _Flow:
    """A node with subgraphs, and how they are imported."""

    def __init__(self, node: onnx.NodeProto, opset: int, operands: Operands, scope: Scope, builder: Builder,
                 choices: Choices, inside: Inside) -> None:
        self.node, self.opset, self.operands, self.scope = node, opset, operands, scope
        self.builder, self.choices, self._inside = builder, choices, inside

    def graph(self, name: str) -> onnx.GraphProto:
        """A subgraph."""
        for attribute in self.node.attribute:
            if attribute.name == name:
                found: onnx.GraphProto = attribute.g
                return found
        self.fail(f"{name} is missing")

    def ints(self, name: str) -> list[int]:
        """An attribute of integers, empty if not there."""
        return [i for a in self.node.attribute if a.name == name for i in ([a.i] if a.type == a.INT else a.ints)]

    def step(self, graph: onnx.GraphProto, inputs: Sequence[Found]) -> list[Found]:
        """The subgraph's outputs for its inputs. Raises Stopped if one of them cannot be compiled, which was noted."""
        inner = self.scope.branch(graph)
        inner.names.update((v.name, t) for v, t in zip(graph.input, inputs, strict=True))
        found = [t for t in self._inside(graph.node, [v.name for v in graph.output], inner) if t is not None]
        if len(found) < len(graph.output):
            raise Stopped
        return found

    def need(self, index: int) -> Tensor:
        """An operand that must be there, and a tensor."""
        return tensor(self.found(index), f"operand {index}")

    def found(self, index: int) -> Found:
        """An operand that must be there."""
        found = self.operands[index] if index < len(self.operands) else None
        return self.fail(f"operand {index} is missing") if found is None else found

    def rest(self, first: int) -> list[Found]:
        """The operands from one on."""
        return [self.found(i) for i in range(first, len(self.operands))]

    def number(self, tensor: Tensor, purpose: str) -> int:
        """The one element of a tensor, which must be known."""
        if tensor.type.size != 1:
            self.fail(f"{purpose} is {tensor.type}, expected one element")
        if tensor.known is None:
            raise unknown(tensor, purpose)
        if tensor.is_symbolic:
            raise UnsupportedError(f"{purpose} is {tensor.known.reshape(-1)[0]}; it must be the same for all sizes")
        return int(tensor.known.reshape(-1)[0])

    def stacked(self, parts: Sequence[Tensor], axis: int) -> Tensor:
        """Tensors of one shape along a new axis."""
        apart = [self.builder.reshape(t, (*t.shape[:axis], 1, *t.shape[axis:])) for t in parts]
        return apart[0] if len(apart) == 1 else self.builder.emit("concat", *apart, axis=axis)

    def fail(self, problem: str) -> NoReturn:
        """Raise the CompileError for a node that is wrong."""
        raise CompileError(f"{describe(self.node)}: {problem}")


def tensor(found: Found, what: str) -> Tensor:
    """What is found, which must be a tensor."""
    if not isinstance(found, Tensor):
        raise UnsupportedError(f"{what} is a sequence, expected a tensor")
    return found


def _if(f: _Flow) -> Sequence[Found | None]:
    """The branch that the condition picks."""
    condition = f.need(0)
    f.choices.meet()
    try:
        holds = bool(f.number(condition, "its condition"))
    except UnsupportedError as problem:
        if condition.dtype is not DType.bool:
            f.fail(f"its condition is {condition.type}, expected bool")
        holds = f.choices.take(f.builder.value(condition), f.node.input[0], problem)
    wanted = "then_branch" if holds else "else_branch"
    graph = f.graph(wanted)
    if len(graph.output) != len(f.node.output):
        f.fail(f"{wanted} does not give its {len(f.node.output)} outputs")
    return f.step(graph, [])


def _loop(f: _Flow) -> Sequence[Found | None]:
    """The body once for each step: (index, condition, states…) -> (condition, states…, rows of results…)."""
    body, states = f.graph("body"), f.rest(2)
    limit = None if f.operands[0] is None else f.number(f.need(0), "its trip count")
    going = f.operands[1] is None or bool(f.number(f.need(1), "its condition"))
    if len(body.input) != len(states) + 2 or len(body.output) <= len(states):
        f.fail(f"the body takes {len(body.input)} and gives {len(body.output)} values for {len(states)} states")
    rows: list[list[Tensor]] = [[] for _ in body.output[len(states) + 1:]]
    count = 0
    while going and (limit is None or count < limit):
        if count == MOST_STEPS:
            raise UnsupportedError(f"it makes more than {MOST_STEPS} steps")
        index = constant(np.array(count, dtype=np.int64))
        condition, *found = f.step(body, [index, constant(np.array(True)), *states])
        going = bool(f.number(tensor(condition, "its condition"), "its condition"))
        states = found[:len(states)]
        for part, value in zip(rows, found[len(states):], strict=True):
            part.append(tensor(value, "a row of its results"))
        count += 1
    if rows and not count:
        raise UnsupportedError("it makes no step, so the shape of its results is not known")
    return [*states, *(f.stacked(part, 0) for part in rows)]


def _scan(f: _Flow) -> Sequence[Found | None]:
    """The body once for each slice of the operands: (states…, slices…) -> (states…, rows of results…)."""
    if f.opset < 9:
        raise UnsupportedError("Scan of opset 8")
    body, operands = f.graph("body"), f.rest(0)
    count, = f.ints("num_scan_inputs") or [0]
    given = len(operands) - count
    if not 0 < count <= len(operands) or len(body.input) != len(operands) or len(body.output) < given:
        f.fail(f"{count} of {len(operands)} operands are scanned, the body takes {len(body.input)}")
    states, scanned = operands[:given], [f.need(i) for i in range(given, len(operands))]
    axes = [a % max(t.rank, 1) for a, t in zip(f.ints("scan_input_axes") or [0] * count, scanned, strict=True)]
    backward = f.ints("scan_input_directions") or [0] * count
    steps = {t.shape[a] for a, t in zip(axes, scanned, strict=True)}
    size = steps.pop()
    if steps or not isinstance(size, int) or not 0 < size <= MOST_STEPS:
        raise UnsupportedError(f"it makes {size} steps; expected a fixed number up to {MOST_STEPS}")
    rows: list[list[Tensor]] = [[] for _ in body.output[given:]]
    for step in range(size):
        slices = [_slice(f, t, a, size - 1 - step if b else step)
                  for t, a, b in zip(scanned, axes, backward, strict=True)]
        found = f.step(body, [*states, *slices])
        states = found[:given]
        for part, value in zip(rows, found[given:], strict=True):
            part.append(tensor(value, "a row of its results"))
    ends = f.ints("scan_output_directions") or [0] * len(rows)
    places = f.ints("scan_output_axes") or [0] * len(rows)
    return [*states, *(f.stacked(part[::-1] if b else part, a % (part[0].rank + 1))
                       for part, a, b in zip(rows, places, ends, strict=True))]


def _slice(f: _Flow, x: Tensor, axis: int, index: int) -> Tensor:
    part = f.builder.slice_axis(x, axis, index, 1)
    return f.builder.reshape(part, (*x.shape[:axis], *x.shape[axis + 1:]))


_FLOWS: dict[str, Callable[[_Flow], Sequence[Found | None]]] = {"If": _if, "Loop": _loop, "Scan": _scan}
CONTROL_OPS = frozenset(_FLOWS)
"""Ops with subgraphs that say what is computed, or how often."""
