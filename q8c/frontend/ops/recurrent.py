"""Recurrent networks over a fixed, small number of steps, written out: RNN, GRU, LSTM."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from q8c.frontend.registry import MICROSOFT, Call, importer
from q8c.frontend.tensor import Tensor

MOST_STEPS = 64
"""Steps that are written out; each is a dozen nodes for each direction."""
_KNOWN = {"Sigmoid": "sigmoid", "Tanh": "tanh", "Relu": "relu", "Softplus": "softplus"}
State: TypeAlias = tuple[Tensor, ...]
"""The hidden state [batch, hidden], and of an LSTM the cell's."""


@dataclass(frozen=True)
class Direction:
    """One direction of a network: x times its weights for all steps [steps, batch, gates * hidden], recurrent weights
    [hidden, gates * hidden] and what is added behind these (a GRU's; else x has it), peepholes [3 * hidden]."""

    x: Tensor
    weights: Tensor
    bias: Tensor | None
    peepholes: Tensor | None
    activations: Sequence[str]
    hidden: int


Step: TypeAlias = Callable[[Call, Direction, Tensor, State], State]


def rnn_step(c: Call, d: Direction, x: Tensor, state: State) -> State:
    """f(x + h R)."""
    return (_activated(c, d, 0, c.emit("add", x, c.emit("matmul", state[0], d.weights))),)


def gru_step(c: Call, d: Direction, x: Tensor, state: State) -> State:
    """z h + (1 - z) g(x + (r h) R), or g(x + r (h R)) with `linear_before_reset`, for the gates z and r."""
    h, n = state[0], d.hidden
    linear = c.attr_int("linear_before_reset", 0) != 0
    seen = c.emit("matmul", h, d.weights if linear else _part(c, d.weights, 0, 2 * n))
    if d.bias is not None:
        seen = c.emit("add", seen, d.bias if linear else _part(c, d.bias, 0, 2 * n))
    z, r = (_activated(c, d, 0, c.emit("add", _part(c, x, i * n, n), _part(c, seen, i * n, n))) for i in (0, 1))
    if linear:
        own = c.emit("mul", r, _part(c, seen, 2 * n, n))
    else:
        own = c.emit("matmul", c.emit("mul", r, h), _part(c, d.weights, 2 * n, n))
        own = own if d.bias is None else c.emit("add", own, _part(c, d.bias, 2 * n, n))
    new = _activated(c, d, 1, c.emit("add", _part(c, x, 2 * n, n), own))
    return (c.emit("add", c.emit("mul", z, h), c.emit("mul", c.emit("sub", c.scalar(1, z), z), new)),)


def lstm_step(c: Call, d: Direction, x: Tensor, state: State) -> State:
    """o h(c') for c' = f c + i g(...); gates are input, output, forget and cell."""
    h, cell = state
    n = d.hidden
    gates = c.emit("add", x, c.emit("matmul", h, d.weights))

    def gate(i: int, f: int, seen: Tensor | None) -> Tensor:
        value = _part(c, gates, i * n, n)
        if d.peepholes is not None and seen is not None:
            value = c.emit("add", value, c.emit("mul", seen, _part(c, d.peepholes, i * n, n)))
        return _activated(c, d, f, value)

    entry = gate(0, 0, cell)
    forget = c.emit("sub", c.scalar(1, entry), entry) if c.attr_int("input_forget", 0) else gate(2, 0, cell)
    new = c.emit("add", c.emit("mul", forget, cell), c.emit("mul", entry, gate(3, 1, None)))
    return c.emit("mul", gate(1, 0, new), c.emit(d.activations[2], new)), new


@dataclass(frozen=True)
class Kind:
    """A kind of network: its gates, what a step of it does, its usual activations."""

    gates: int
    step: Step
    activations: tuple[str, ...]


KINDS = {"RNN": Kind(1, rnn_step, ("Tanh",)), "GRU": Kind(3, gru_step, ("Sigmoid", "Tanh")),
         "LSTM": Kind(4, lstm_step, ("Sigmoid", "Tanh", "Tanh"))}


@importer(*KINDS)
def recurrent(c: Call) -> list[Tensor]:
    """What each step of each direction gives, and the last states."""
    return _network(c, c.op, c.input(1), c.input(2))


@importer("DynamicQuantizeLSTM", domain=MICROSOFT)
def dynamic_quantize_lstm(c: Call) -> list[Tensor]:
    """The LSTM of weights that are integers and lie as [directions, depth, gates * hidden]."""
    weights = []
    for i in (1, 2):
        scale, zero = (t if t is None else c.builder.reshape(t, (t.shape[0], 1, t.shape[1] if t.rank > 1 else 1))
                       for t in (c.input(6 + 2 * i), c.optional(7 + 2 * i)))
        weights.append(c.builder.transpose(c.emit("dequantize_linear", c.input(i), scale, zero), (0, 2, 1)))
    return _network(c, "LSTM", *weights)


def _network(c: Call, name: str, w: Tensor, r: Tensor) -> list[Tensor]:
    kind, batch_first = KINDS[name], c.attr_int("layout", 0) == 1
    if c.input(0).rank != 3 or w.rank != 3 or r.rank != 3:
        c.unsupported(f"x {c.input(0).type}, weights {w.type} and {r.type}; expected 3 axes each")
    x = c.builder.transpose(c.input(0), (1, 0, 2)) if batch_first else c.input(0)
    steps, batch, _ = x.shape
    ways = {"forward": [1], "reverse": [-1], "bidirectional": [1, -1]}.get(c.attr_str("direction", "forward"), [])
    if not isinstance(steps, int) or not 0 < steps <= MOST_STEPS:
        c.unsupported(f"{steps} steps; expected a fixed number of up to {MOST_STEPS}: state the input's shape")
    if r.shape != (len(ways), kind.gates * r.shape[2], r.shape[2]) or not isinstance(r.shape[2], int):
        c.fail(f"recurrent weights {r.type}, expected [{len(ways)}, {kind.gates} * hidden, hidden]")
    zero = c.builder.broadcast(c.scalar(0, x), (batch, r.shape[2]))
    count = 2 if name == "LSTM" else 1
    outputs, ends = [], []
    for n, way in enumerate(ways):
        given = (c.optional(5 + i) for i in range(count))
        state = tuple(zero if t is None else _own(c, t, n, int(batch_first)) for t in given)
        ys, state = _unrolled(c, kind.step, _direction(c, kind, n, x, w, r), state, range(steps)[::way])
        outputs.append(c.emit("concat", *ys[::way], axis=0) if steps > 1 else ys[0])
        ends.append(state)
    y = _stacked(c, outputs, 1)
    last = [_stacked(c, [state[i] for state in ends], int(batch_first)) for i in range(count)]
    return [c.builder.transpose(y, (2, 0, 1, 3)) if batch_first else y, *last][:max(1, c.outputs)]


def _direction(c: Call, kind: Kind, n: int, x: Tensor, w: Tensor, r: Tensor) -> Direction:
    weights, recurrent_weights = (c.builder.transpose(_own(c, t, n), (1, 0)) for t in (w, r))
    biases, peepholes = c.optional(3), c.optional(7)
    products, bias = c.emit("matmul", x, weights), None
    if biases is not None:
        rows = recurrent_weights.shape[1]
        added, bias = (c.builder.slice_axis(_own(c, biases, n), 0, i * rows, rows) for i in (0, 1))
        if kind.step is not gru_step:
            added, bias = c.emit("add", added, bias), None
        products = c.emit("add", products, added)
    count = len(kind.activations)
    named = [s.decode("utf-8", "replace") for s in c.attr("activations", "STRINGS") or []]
    names = named[n * count:(n + 1) * count] or kind.activations
    if len(names) != count or any(name not in _KNOWN for name in names):
        c.unsupported(f"activations {', '.join(names)}; expected {count} of {', '.join(_KNOWN)} for each direction")
    return Direction(products, recurrent_weights, bias, None if peepholes is None else _own(c, peepholes, n),
                     [_KNOWN[name] for name in names], int(str(r.shape[2])))


def _unrolled(c: Call, step: Step, d: Direction, state: State, order: Sequence[int]) -> tuple[list[Tensor], State]:
    """What the steps give in that order, each [1, batch, hidden], and the last state; a sequence that is over keeps its
    state and gives 0."""
    lengths, found = c.optional(4), []
    batch, hidden = state[0].shape
    for t in order:
        x = c.builder.slice_axis(d.x, 0, t, 1)
        new = step(c, d, c.builder.reshape(x, x.shape[1:]), state)
        y = new[0]
        if lengths is not None:
            on = c.builder.reshape(c.emit("less", c.scalar(t, lengths), lengths), (batch, 1))
            new = tuple(c.emit("where", on, a, b) for a, b in zip(new, state, strict=True))
            y = c.emit("where", on, y, c.scalar(0, y))
        state = new
        found.append(c.builder.reshape(y, (1, batch, hidden)))
    return found, state


def _own(c: Call, t: Tensor, n: int, axis: int = 0) -> Tensor:
    """Slice n of an axis, which is left out."""
    return c.builder.reshape(c.builder.slice_axis(t, axis, n, 1), (*t.shape[:axis], *t.shape[axis + 1:]))


def _part(c: Call, t: Tensor, start: int, size: int) -> Tensor:
    return c.builder.slice_axis(t, t.rank - 1, start, size)


def _activated(c: Call, d: Direction, i: int, x: Tensor) -> Tensor:
    """Activation i of x, cut off at `clip`."""
    clip = c.attr("clip", "FLOAT")
    if clip is not None:
        x = c.emit("max", c.emit("min", x, c.scalar(float(clip), x)), c.scalar(-float(clip), x))
    return c.emit(d.activations[i], x)


def _stacked(c: Call, parts: Sequence[Tensor], axis: int) -> Tensor:
    apart = [c.builder.reshape(t, (*t.shape[:axis], 1, *t.shape[axis:])) for t in parts]
    return apart[0] if len(apart) == 1 else c.emit("concat", *apart, axis=axis)
