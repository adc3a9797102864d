"""Expression programs: the run-time integers of a compiled model as functions of its symbolic sizes.

In JSON a program is an int, `["$", i]` (the value of symbol i), or `[op, a, b, ...]` with op one of `+ * max min`
(two or more operands) or `// %` (exactly two, floor semantics). `freeze` turns JSON into nested tuples and checks it;
`Tape` evaluates many programs at once, each common subexpression once, without recursion.
"""
from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Program = int | tuple[Any, ...]
"""A checked program: an int, ("$", index) or (op, *programs)."""

VALUE_LIMIT = 2**62
"""Every intermediate value is smaller than this in magnitude, so no program can make Python's integers large."""
MAX_DEPTH = 32
MAX_NODES = 2048

_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add, "*": operator.mul, "//": operator.floordiv, "%": operator.mod, "max": max, "min": min}


def freeze(value: object, symbols: int) -> Program:
    """The program a JSON value stands for, over `symbols` symbols. Raises ValueError for anything else."""
    budget = [MAX_NODES]
    return _freeze(value, symbols, MAX_DEPTH, budget)


def thaw(program: Program) -> object:
    """The JSON value `freeze` turns back into this program."""
    return program if isinstance(program, int) else [program[0], *map(thaw, program[1:])]


def symbols_of(program: Program) -> frozenset[int]:
    """Indices of the symbols a program reads."""
    if isinstance(program, int):
        return frozenset()
    if program[0] == "$":
        return frozenset((program[1],))
    return frozenset[int]().union(*map(symbols_of, program[1:]))


def is_affine(program: Program, symbol: int) -> bool:
    """Whether the program is a + b * symbol, where a and b depend on other symbols only."""
    if symbol not in symbols_of(program) or isinstance(program, int) or program[0] == "$":
        return True
    if program[0] == "+":
        return all(is_affine(p, symbol) for p in program[1:])
    holders = [p for p in program[1:] if symbol in symbols_of(p)]
    return program[0] == "*" and len(holders) == 1 and is_affine(holders[0], symbol)


def text(program: Program, names: Sequence[str]) -> str:
    """The program as a person writes it, for instance `past + 2*seq`."""
    if isinstance(program, int):
        return str(program)
    op, *args = program
    if op == "$":
        return names[args[0]]
    if op in ("max", "min"):
        return f"{op}({', '.join(text(a, names) for a in args)})"
    if op == "+":
        return " + ".join(text(a, names) for a in args)
    parts = [f"({text(a, names)})" if isinstance(a, tuple) and a[0] in ("+", "*", "//", "%") else text(a, names)
             for a in args]
    return ("*" if op == "*" else f" {op} ").join(parts)


class Tape:
    """Several programs flattened into one list of binary instructions over registers."""

    __slots__ = ("_code", "_constants", "_results", "symbols")

    def __init__(self, programs: Iterable[Program], symbols: int) -> None:
        self.symbols = symbols
        self._constants: list[int] = []
        self._code: list[tuple[Callable[[int, int], int], int, int]] = []
        programs = list(programs)
        known: dict[object, int] = {("$", i): i for i in range(symbols)}
        for program in programs:
            self._collect_constants(program, known)
        self._results = [self._emit(program, known) for program in programs]

    def evaluate(self, symbols: Sequence[int]) -> list[int]:
        """Each program's value. Raises ValueError where one divides by zero or leaves the range of a size."""
        registers = [*symbols, *self._constants]
        append = registers.append
        try:
            for function, a, b in self._code:
                value = function(registers[a], registers[b])
                if not -VALUE_LIMIT < value < VALUE_LIMIT:
                    raise ValueError("a size computed from the input shapes is too large")
                append(value)
        except ZeroDivisionError:
            raise ValueError("a size computed from the input shapes divides by zero") from None
        return [registers[i] for i in self._results]

    def _collect_constants(self, program: Program, known: dict[object, int]) -> None:
        if isinstance(program, int):
            if program not in known:
                known[program] = self.symbols + len(self._constants)
                self._constants.append(program)
        elif program[0] != "$":
            for operand in program[1:]:
                self._collect_constants(operand, known)

    def _emit(self, program: Program, known: dict[object, int]) -> int:
        if program in known:
            return known[program]
        assert isinstance(program, tuple)
        op, *operands = program
        left = self._emit(operands[0], known)
        for operand in operands[1:]:
            right = self._emit(operand, known)
            instruction = (op, left, right, "instruction")
            if instruction not in known:
                known[instruction] = self.symbols + len(self._constants) + len(self._code)
                self._code.append((_OPERATORS[op], left, right))
            left = known[instruction]
        known[program] = left
        return left


def _freeze(value: object, symbols: int, depth: int, budget: list[int]) -> Program:
    budget[0] -= 1
    if budget[0] < 0 or depth < 0:
        raise ValueError(f"an expression has more than {MAX_NODES} parts or {MAX_DEPTH} levels")
    if type(value) is int:
        if not -VALUE_LIMIT < value < VALUE_LIMIT:
            raise ValueError("an expression holds an integer of more than 62 bits")
        return value
    if not isinstance(value, (list, tuple)) or not value or not isinstance(value[0], str):
        raise ValueError(f"an expression is an integer or [operator, operand, ...], got a {type(value).__name__}")
    op, operands = value[0], value[1:]
    if op == "$":
        if len(operands) != 1 or type(operands[0]) is not int or not 0 <= operands[0] < symbols:
            raise ValueError(f"an expression names a symbol that is none of the {symbols}")
        return "$", operands[0]
    if op not in _OPERATORS or len(operands) < 2 or (op in ("//", "%") and len(operands) != 2):
        raise ValueError(f"an expression applies {op[:20]!r} to {len(operands)} operands")
    return op, *(_freeze(operand, symbols, depth - 1, budget) for operand in operands)
