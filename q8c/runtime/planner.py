"""From input shapes to one run's plan: solves for the symbolic sizes, checks them, lays out the arena."""
from __future__ import annotations

import math
import struct
from collections.abc import Set
from dataclasses import dataclass

import numpy as np

from q8c.errors import ArtifactError, InputError
from q8c.runtime.dims import Program, Tape, is_affine, symbols_of
from q8c.runtime.model import Model, Tensor
from q8c.runtime.sections import ALIGNMENT

Shape = tuple[int, ...]
SIZE_LIMIT = 2**47
"""Every size the code is given is below this, the end of the address space."""
THREAD_COST = 200_000
"""Nanoseconds of work that are worth a thread: waking one takes about a tenth of that."""


@dataclass(frozen=True)
class Plan:
    """One run for one set of input shapes.

    `symbols` are the sizes found, `outputs` the shapes of the outputs and `output_bytes` what they take together,
    `tail` the end of the frame (dims table, slot offsets). The run's working memory is `arena` bytes
    and `scratch` more for each thread. It is worth `threads` threads.
    """

    symbols: tuple[int, ...]
    outputs: tuple[Shape, ...]
    output_bytes: int
    tail: bytes
    arena: int
    scratch: int
    threads: int


@dataclass(frozen=True)
class _Step:
    """How one symbol is found: dimension `axis` of input `index` is `constant + slope * symbol`, or the symbol itself
    if there is no tape."""

    symbol: int
    index: int
    axis: int
    tape: Tape | None


class Planner:
    """Makes a model's plans. Called with the shapes of its inputs, in order, and what `counts` of the model say of
    them; has no state of its own."""

    def __init__(self, model: Model) -> None:
        """Raises ArtifactError if the input shapes do not determine every symbol."""
        self._model = model
        self._steps = _solution(model)
        self._stretch = [(i, axis) for i, t in enumerate(model.inputs) for axis in t.stretch]
        self._places = [(i, axis) for i, t in enumerate(model.inputs) for axis in range(len(t.shape))]
        dims: list[Program] = [p for t in model.inputs for p in t.shape]
        pairs = [p for c in model.constraints for p in (c.left, c.right)]
        self._checks = Tape([*dims, *pairs], len(model.symbols))
        outputs: list[Program] = [p for t in model.outputs for p in t.shape]
        self._sizes = Tape([*outputs, *model.dims, *model.slots, model.scratch, model.cost], len(model.symbols))
        self._tail = struct.Struct(f"={model.frame.size - model.frame.dims}q")

    def __call__(self, shapes: tuple[Shape, ...], counts: tuple[int, ...] = ()) -> Plan:
        """The plan for these input shapes. Raises InputError where they fit no sizes, or lead to impossible ones."""
        self._check_ranks(shapes)
        values = self._solve(shapes, counts, self._steps)
        self._check(shapes, values)
        return self._plan(values)

    def stretched(self, shapes: tuple[Shape, ...]) -> tuple[Shape, ...]:
        """The shapes with axes of 1 as long as other inputs say, where the model says that they may be given as 1.

        Raises InputError where the others fit no sizes.
        """
        self._check_ranks(shapes)
        ones = {(i, axis) for i, axis in self._stretch if shapes[i][axis] == 1}
        if not ones:
            return shapes
        values = self._solve(shapes, (0,) * len(self._model.counts), _solution(self._model, ones))
        sizes = dict(zip(self._places, _evaluate(self._checks, values), strict=False))
        return tuple(tuple(sizes[i, axis] if (i, axis) in ones and sizes[i, axis] > 1 else size
                           for axis, size in enumerate(shape)) for i, shape in enumerate(shapes))

    def _check_ranks(self, shapes: tuple[Shape, ...]) -> None:
        for tensor, shape in zip(self._model.inputs, shapes, strict=True):
            if len(shape) != len(tensor.shape):
                raise InputError(f"input {tensor.name!r} must have {len(tensor.shape)} dimensions, {describe(tensor)}, "
                                 f"got shape {shape}")

    def _solve(self, shapes: tuple[Shape, ...], counts: tuple[int, ...], steps: list[_Step]) -> list[int]:
        values = [0] * len(self._model.symbols)
        for count, found in zip(self._model.counts, counts, strict=True):
            values[count.symbol] = found
        for step in steps:
            size = shapes[step.index][step.axis]
            if step.tape is None:
                values[step.symbol] = size
                continue
            constant = _evaluate(step.tape, values)[0]
            values[step.symbol] = 1
            slope = _evaluate(step.tape, values)[0] - constant
            value, rest = divmod(size - constant, slope) if slope else (0, size - constant)
            if value < 0 or rest:
                needs = f"which no {self._model.symbols[step.symbol]} >= 0 gives"
                raise self._wrong(step.index, step.axis, shapes, needs)
            values[step.symbol] = value
        return values

    def _check(self, shapes: tuple[Shape, ...], values: list[int]) -> None:
        computed = _evaluate(self._checks, values)
        for (i, axis), expected in zip(self._places, computed, strict=False):
            if shapes[i][axis] != expected:
                program = self._model.inputs[i].shape[axis]
                found = "" if isinstance(program, int) else f"which is {expected} as {self._found(values, program)}"
                raise self._wrong(i, axis, shapes, found)
        rest = computed[len(self._places):]
        for constraint, left, right in zip(self._model.constraints, rest[::2], rest[1::2], strict=True):
            if left != right:
                unequal = f": {left} is not {right}" if " == " in constraint.text else ""  # a bound says so itself
                raise InputError(f"the input shapes break {constraint.text}{unequal}, as {self._found(values)}")

    def _plan(self, values: list[int]) -> Plan:
        sizes = _evaluate(self._sizes, values)
        cost = sizes.pop()
        for size in sizes:
            if not 0 <= size < SIZE_LIMIT:
                raise InputError(f"the input shapes lead to a size of {size}, which must be in [0, 2**47), "
                                 f"as {self._found(values)}")
        outputs: list[Shape] = []
        used = total = 0
        for tensor in self._model.outputs:
            outputs.append(tuple(sizes[used:used + len(tensor.shape)]))
            used += len(tensor.shape)
            total += math.prod(outputs[-1]) * np.dtype(tensor.dtype).itemsize
        slots = used + len(self._model.dims)
        offsets, arena = [], 0
        for size in sizes[slots:-1]:
            offsets.append(arena)
            arena += -(-size // ALIGNMENT) * ALIGNMENT
        if max(total, arena) >= SIZE_LIMIT:
            raise InputError(f"the input shapes ask for {max(total, arena)} bytes of memory; use smaller inputs")
        if self._model.scratch != 0:
            offsets.append(arena)
        tail = self._tail.pack(*sizes[used:slots], *offsets)
        return Plan(tuple(values), tuple(outputs), total, tail, arena, sizes[-1], max(1, cost // THREAD_COST))

    def _wrong(self, index: int, axis: int, shapes: tuple[Shape, ...], reason: str) -> InputError:
        tensor = self._model.inputs[index]
        return InputError(f"input {tensor.name!r}: dimension {axis} must be {tensor.text[axis]}"
                          f"{', ' if reason else ''}{reason}, got {shapes[index][axis]} "
                          f"(shape {shapes[index]}, expected {describe(tensor)})")

    def _found(self, values: list[int], program: Program | None = None) -> str:
        """Where the values of the program's symbols, or of all, come from."""
        parts = [f"{self._model.symbols[s.symbol]} = {values[s.symbol]} "
                 f"in dimension {s.axis} of {self._model.inputs[s.index].name!r}"
                 for s in self._steps if program is None or s.symbol in symbols_of(program)]
        parts += [f"{self._model.symbols[c.symbol]} = {values[c.symbol]} counted in "
                  f"{self._model.inputs[c.input].name!r}"
                  for c in self._model.counts if program is None or c.symbol in symbols_of(program)]
        return ", ".join(parts) or "the model has no free sizes"


def describe(tensor: Tensor) -> str:
    """A tensor as messages name it: `float32[batch, seq, 384]`."""
    return f"{tensor.dtype}[{', '.join(tensor.text)}]"


def _evaluate(tape: Tape, values: list[int]) -> list[int]:
    try:
        return tape.evaluate(values)
    except ValueError as error:
        raise InputError(f"{error}; use other input shapes") from None


def _solution(model: Model, last: Set[tuple[int, int]] = frozenset()) -> list[_Step]:
    """Steps that find every symbol: from dimensions that are one first, then from those linear in one unknown; from the
    (input, axis) in `last` only what others do not tell."""
    steps: dict[int, _Step] = {}
    counted = {c.symbol for c in model.counts}
    places = [(i, axis, p) for i, t in enumerate(model.inputs) for axis, p in enumerate(t.shape)]
    _find(model, [p for p in places if p[:2] not in last], steps, counted)
    _find(model, [p for p in places if p[:2] in last], steps, counted)
    unsolved = [name for i, name in enumerate(model.symbols) if i not in steps.keys() | counted]
    if unsolved:
        raise ArtifactError(f"the input shapes do not determine {', '.join(unsolved)}; compile the model again "
                            "with inputs that do")
    return list(steps.values())


def _find(model: Model, places: list[tuple[int, int, Program]], steps: dict[int, _Step], counted: set[int]) -> None:
    """Add the steps that find what is not found yet."""
    for i, axis, program in places:
        if isinstance(program, tuple) and program[0] == "$" and program[1] not in steps.keys() | counted:
            steps[program[1]] = _Step(program[1], i, axis, None)
    waiting = [(i, axis, p, symbols_of(p)) for i, axis, p in places]
    count = len(waiting) + 1
    while len(waiting) < count:
        count, listed, waiting = len(waiting), waiting, []
        for i, axis, program, symbols in listed:
            left = symbols - steps.keys() - counted
            if len(left) > 1:
                waiting.append((i, axis, program, symbols))
            elif left and is_affine(program, min(left)):
                steps[min(left)] = _Step(min(left), i, axis, Tape([program], len(model.symbols)))
