"""Emits IR for the importers. What is known at compile time is computed instead of emitted."""
from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from q8c.errors import CompileError, Error
from q8c.frontend.symbolic import evaluate_symbolic
from q8c.frontend.tensor import KNOWN_LIMIT, Tensor, constant, from_elements
from q8c.ir.dims import SIZE_LIMIT, Dim, sym
from q8c.ir.graph import Array, Attr, Graph, Node, Value
from q8c.ir.nested import sizes_in
from q8c.ir.ops import attributes, definition_of, infer
from q8c.ir.types import DType, TensorType


class Builder:
    """Appends nodes to a graph; `source` is put on each of them."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.source: tuple[str, ...] = ()
        self._fresh: set[str] = set()

    def emit(self, op: str, *inputs: Tensor | None, **attrs: Attr) -> Tensor:
        """The first output of an op. Raises CompileError where operands do not fit."""
        while inputs and inputs[-1] is None:
            inputs = inputs[:-1]
        known = self._compute(op, inputs, attrs)
        if known is not None:
            return known
        operands = [None if t is None else self.value(t) for t in inputs]
        output = self.graph.add(op, operands, attrs, source=self.source).output
        size = output.type.size
        if isinstance(size, int) and size >= SIZE_LIMIT:
            raise CompileError(f"{output.producer}: {output.type} has {size} elements; no machine holds so many")
        return Tensor(output.type, value=output)

    def value(self, tensor: Tensor) -> Value:
        """The tensor as a graph value; known elements become a constant, or ops that read the sizes."""
        if tensor.value is None:
            if tensor.known is None:
                raise CompileError(f"{tensor.type} has no value")
            tensor.value = self._sizes(tensor) if tensor.is_symbolic else self._constant(tensor)
        return tensor.value

    def scalar(self, x: float | int | bool, dtype: DType) -> Tensor:
        """A known scalar."""
        return constant(np.array(x, dtype=dtype.numpy))

    def fresh_size(self, hint: str) -> Dim:
        """A size that follows from no shape, by a name that no other has."""
        taken = {*self.graph.symbols(), *self._fresh}
        name = next(n for i in itertools.count() if (n := f"{hint}_{i}") not in taken)
        self._fresh.add(name)
        return sym(name)

    def same(self, a: Dim, b: Dim) -> None:
        """State that two sizes are equal. Raises CompileError for two different integers."""
        if isinstance(a, int) and isinstance(b, int) and a != b:
            raise CompileError(f"{', '.join(self.source)}: sizes {a} and {b} do not match")
        self.graph.assume_equal(a, b)

    def cast(self, x: Tensor, to: DType) -> Tensor:
        """x in another element type."""
        return x if x.dtype is to else self.emit("cast", x, to=to)

    def reshape(self, x: Tensor, shape: Sequence[Dim]) -> Tensor:
        """x in another shape of the same size."""
        return x if x.shape == tuple(shape) else self.emit("reshape", x, shape=tuple(shape))

    def transpose(self, x: Tensor, perm: Sequence[int]) -> Tensor:
        """x with its axes in another order."""
        return x if list(perm) == list(range(x.rank)) else self.emit("transpose", x, perm=tuple(perm))

    def broadcast(self, x: Tensor, shape: Sequence[Dim]) -> Tensor:
        """x stretched to a shape; an axis stays where the shape says 1."""
        padded = (*[1] * (x.rank - len(shape)), *shape)
        kept = (*[1] * (len(padded) - x.rank), *x.shape)
        if len(padded) == x.rank and all(b in (1, a) for a, b in zip(kept, padded, strict=True)):
            return x
        return self.emit("broadcast_to", x, shape=padded)

    def slice_axis(self, x: Tensor, axis: int, start: Dim, size: Dim, step: int = 1) -> Tensor:
        """`size` elements of one axis from `start` on."""
        starts: list[Dim] = [0] * x.rank
        sizes, steps = list(x.shape), [1] * x.rank
        starts[axis], sizes[axis], steps[axis] = start, size, step
        return self.slice(x, starts, sizes, steps)

    def slice(self, x: Tensor, starts: Sequence[Dim], sizes: Sequence[Dim], steps: Sequence[int]) -> Tensor:
        """A strided part of x."""
        if tuple(sizes) == x.shape and all(s == 1 for s in steps):
            return x
        return self.emit("slice", x, starts=tuple(starts), sizes=tuple(sizes), steps=tuple(steps))

    def _constant(self, tensor: Tensor) -> Value:
        assert tensor.known is not None
        return self.graph.constant(tensor.known, tensor.name)

    def _sizes(self, tensor: Tensor) -> Value:
        assert tensor.known is not None
        values = tuple(int(e) if isinstance(e, (bool, np.integer)) else e for e in tensor.known.flat)
        vector = self.graph.add("sizes", [], {"values": values}, source=self.source).output
        made = Tensor(vector.type, value=vector)
        return self.value(self.cast(self.reshape(made, tensor.shape), tensor.dtype))

    def _compute(self, op: str, inputs: Sequence[Tensor | None], attrs: dict[str, Attr]) -> Tensor | None:
        """The result if every operand is known and it is small, else None."""
        arrays: list[Array | None] = []
        for t in inputs:
            if t is not None and (t.known is None or t.known.size > KNOWN_LIMIT):
                return None
            arrays.append(None if t is None else t.known)
        node = Node(op, [None if t is None else Value("known", t.type) for t in inputs], [], attrs, self.source)
        if definition_of(node).has_body:
            return None
        type = infer(self.graph, node)[0]
        if not all(isinstance(d, int) for d in type.shape) or not isinstance(type.size, int) or type.size > KNOWN_LIMIT:
            return None
        if any(a is not None and a.dtype == object for a in arrays):
            return _symbolic(node, [a for a in arrays if a is not None], type, inputs)
        return _number(node, arrays, type)


def _symbolic(node: Node, arrays: Sequence[Array], type: TensorType, inputs: Sequence[Tensor | None]) -> Tensor | None:
    first = inputs[0]
    is_float = first is not None and first.dtype.is_float
    try:
        found = evaluate_symbolic(node.op, arrays, attributes(node), is_float)
    except (Error, ValueError, IndexError) as error:
        raise CompileError(f"{node}: {error}") from error
    if found is None or found.shape != type.shape:
        return None
    try:
        return from_elements(found, type.dtype)
    except OverflowError:
        return None


def _number(node: Node, arrays: Sequence[Array | None], type: TensorType) -> Tensor | None:
    if any(sizes_in(node.attrs.values())):
        return None
    try:
        found = definition_of(node).reference(arrays, attributes(node))[0]
    except (Error, ValueError, IndexError, TypeError) as error:
        raise CompileError(f"{node}: {error}") from error
    return constant(np.ascontiguousarray(found).reshape(found.shape).astype(type.dtype.numpy, copy=False))
