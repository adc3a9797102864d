"""Arithmetic on float64 tensors as formulas are written, done at compile time where everything is known."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from q8c.frontend.builder import Builder
from q8c.frontend.tensor import Tensor, from_size
from q8c.ir.dims import Dim
from q8c.ir.types import DType

Number: TypeAlias = "Numbers | float"


@dataclass(frozen=True, eq=False)
class Numbers:
    """A float64 tensor, or what a comparison of two gives; operators broadcast as numpy's do."""

    builder: Builder
    tensor: Tensor

    @classmethod
    def iota(cls, builder: Builder, size: Dim) -> Numbers:
        """0, 1, … up to a size."""
        return cls(builder, builder.cast(builder.emit("iota", size=size, dtype=DType.i64), DType.f64))

    @classmethod
    def size(cls, builder: Builder, size: Dim) -> Numbers:
        """A size."""
        return cls(builder, builder.cast(from_size(size), DType.f64))

    @classmethod
    def constant(cls, builder: Builder, x: float) -> Numbers:
        """A number known now."""
        return cls(builder, builder.scalar(x, DType.f64))

    def __add__(self, other: Number) -> Numbers:
        return self._with("add", other)

    def __sub__(self, other: Number) -> Numbers:
        return self._with("sub", other)

    def __rsub__(self, other: float) -> Numbers:
        return Numbers.constant(self.builder, other) - self

    def __mul__(self, other: Number) -> Numbers:
        return self._with("mul", other)

    def __truediv__(self, other: Number) -> Numbers:
        return self._with("div", other)

    def __lt__(self, other: Number) -> Numbers:
        return self._with("less", other)

    def __le__(self, other: Number) -> Numbers:
        return self._with("less_equal", other)

    def __gt__(self, other: Number) -> Numbers:
        return self._with("greater", other)

    def __and__(self, other: Numbers) -> Numbers:
        return self._with("and", other)

    def is_equal(self, other: Number) -> Numbers:
        """Where the elements are equal."""
        return self._with("equal", other)

    def clip(self, low: Number, high: Number) -> Numbers:
        """The elements, none below `low` or above `high`."""
        return self._with("max", low)._with("min", high)

    def floor(self) -> Numbers:
        """The elements rounded down."""
        return Numbers(self.builder, self.builder.emit("floor", self.tensor))

    def ceil(self) -> Numbers:
        """The elements rounded up."""
        return Numbers(self.builder, self.builder.emit("ceil", self.tensor))

    def abs(self) -> Numbers:
        """Distances from 0."""
        return Numbers(self.builder, self.builder.emit("abs", self.tensor))

    def choose(self, yes: Number, no: Number) -> Numbers:
        """Elements of `yes` where a comparison holds, of `no` elsewhere."""
        return Numbers(self.builder, self.builder.emit("where", self.tensor, self._other(yes), self._other(no)))

    def cast(self, to: DType) -> Tensor:
        """The elements in another type."""
        return self.builder.cast(self.tensor, to)

    def _with(self, op: str, other: Number) -> Numbers:
        return Numbers(self.builder, self.builder.emit(op, self.tensor, self._other(other)))

    def _other(self, other: Number) -> Tensor:
        return other.tensor if isinstance(other, Numbers) else self.builder.scalar(other, DType.f64)
