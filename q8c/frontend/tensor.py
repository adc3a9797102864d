"""What the importer knows of one ONNX value: its type, and its elements where they are known at compile time."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from q8c.ir.dims import Dim, Expr
from q8c.ir.graph import Array, Value
from q8c.ir.types import DType, TensorType

KNOWN_LIMIT = 1024  # elements; larger results stay ops, so that a tiny file cannot ask for a huge array


@dataclass(eq=False)
class Tensor:
    """An ONNX value during import.

    `known` holds the elements if they are constants (an array of the type's own dtype) or sizes (an array of objects,
    each an int or an Expr). `value` is its place in the graph, made when something first reads it as data.
    """

    type: TensorType
    known: Array | None = None
    value: Value | None = None
    name: str = "c"

    @property
    def shape(self) -> tuple[Dim, ...]:
        """The symbolic shape."""
        return self.type.shape

    @property
    def dtype(self) -> DType:
        """The element type."""
        return self.type.dtype

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return self.type.rank

    @property
    def is_symbolic(self) -> bool:
        """Whether the elements are known as sizes, not as numbers."""
        return self.known is not None and self.known.dtype == object


@dataclass(frozen=True)
class TensorList:
    """A sequence of ONNX: tensors in order, each of a type of its own."""

    tensors: tuple[Tensor, ...]


Found: TypeAlias = "Tensor | TensorList"
"""What a name of a model can stand for."""


def constant(array: Array, name: str = "c") -> Tensor:
    """A tensor of known numbers. Raises ValueError for an element type the IR does not have."""
    return Tensor(TensorType(DType.of(array.dtype), tuple(array.shape)), known=array, name=name)


def from_elements(elements: Array, dtype: DType) -> Tensor:
    """A tensor of known elements given as objects: numbers if all of them are, else sizes."""
    if not any(isinstance(e, Expr) for e in elements.flat):
        return constant(np.asarray(elements.astype(dtype.numpy)))
    return Tensor(TensorType(dtype, tuple(elements.shape)), known=elements)


def from_sizes(sizes: Iterable[Dim], dtype: DType = DType.i64) -> Tensor:
    """A vector of sizes."""
    return from_elements(as_objects(list(sizes)), dtype)


def from_size(size: Dim, dtype: DType = DType.i64) -> Tensor:
    """A scalar size."""
    return from_elements(as_objects([size]).reshape(()), dtype)


def as_objects(elements: Sequence[Dim]) -> Array:
    """A vector of Python objects, never unpacked further."""
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array
