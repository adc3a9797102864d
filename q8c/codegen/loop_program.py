"""A loop's work as a flat list of lane operations and reductions over a row, each equal expression once.

A value is a vector (it varies along the columns) or one number per row.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from q8c.ir.types import DType

REDUCTIONS = frozenset({"row_sum", "row_prod", "row_max", "row_min", "row_umax", "row_any_max", "row_low", "row_high",
                        "row_r8_sum"})
"""`row_max` and `row_min` keep NaN; `row_any_max` of floats may lose it; `row_umax` compares bits as unsigned.
`row_low` and `row_high` are, from the bits of floats, those of the extremes of the row and 0; a NaN is beyond the
infinity of its sign. `row_r8_sum` adds bytes up in 32 bits.
"""
BLOCK_RESULTS = ("block_q", "block_scale", "block_sum", "block_zero")
"""What quantizing a row by blocks gives: its bytes, and numbers per block."""


@dataclass(frozen=True)
class Instr:
    """One operation. `args` are earlier instructions by number; `vector` says whether it varies along the columns."""

    op: str
    dtype: DType
    args: tuple[int, ...] = ()
    attrs: tuple[tuple[str, Any], ...] = ()
    vector: bool = False

    def attr(self, name: str) -> Any:
        """An attribute's value."""
        return dict(self.attrs)[name]


@dataclass
class Program:
    """Instructions in order of definition, and the ones that are results. With `one_column`, rows have one element."""

    one_column: bool = False
    instrs: list[Instr] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    _numbers: dict[Instr, int] = field(default_factory=dict)

    def _put(self, instr: Instr) -> int:
        if instr not in self._numbers:
            self._numbers[instr] = len(self.instrs)
            self.instrs.append(instr)
        return self._numbers[instr]

    def input(self, index: int, dtype: DType, vector: bool) -> int:
        """Operand `index` of the kernel."""
        return self._put(Instr("input", dtype, (), (("index", index),), vector))

    def constant(self, value: Any, dtype: DType) -> int:
        """A number (kept as bytes, so that -0.0 and NaN stay apart)."""
        return self._put(Instr("constant", dtype, (), (("bytes", dtype.numpy.type(value).tobytes()),)))

    def add(self, op: str, dtype: DType, *args: int, **attrs: Any) -> int:
        """A lane operation: a vector if any argument is one."""
        vector = any(self.instrs[a].vector for a in args)
        return self._put(Instr(op, dtype, args, tuple(sorted(attrs.items())), vector))

    def reduce(self, op: str, x: int, dtype: DType | None = None) -> int:
        """A reduction over the row, in x's element type unless told; a row of one element is its own result."""
        return self._put(Instr(op, dtype or self.dtype(x), (x,))) if self.spans(x) else x

    def columns(self, reciprocal: bool, dtype: DType, x: int) -> int:
        """The number of columns of x, or 1 over it, as a float."""
        op = "reciprocal_columns" if reciprocal else "columns"
        return self._put(Instr(op, dtype)) if self.spans(x) else self.constant(1, dtype)

    def spans(self, x: int) -> bool:
        """Whether x has more than one element per row."""
        return self.instrs[x].vector and not self.one_column

    def dtype(self, number: int) -> DType:
        """An instruction's element type."""
        return self.instrs[number].dtype

    def number(self, value: int | float, like: int) -> int:
        """A constant of the element type of another instruction."""
        return self.constant(value, self.dtype(like))
