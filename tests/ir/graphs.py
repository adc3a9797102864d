"""Random graphs for hypothesis: tensor ops of every family over a few symbolic and fixed sizes."""
from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

from q8c.ir import DType, Graph, TensorType, Value
from q8c.ir.dims import Dim, product, sym

N, M = sym("n"), sym("m")
# Left out: what tells 0 from -0, which x + 0 -> x does not keep (div, reciprocal, rsqrt), and log, exp, pow, whose
# huge results overflow one way or another.
FLOAT_UNARY = ("neg", "abs", "relu", "tanh", "sigmoid", "floor", "sign", "sin", "silu", "gelu")
BINARY = ("add", "sub", "mul", "min", "max")
COMPARISONS = ("equal", "less", "less_equal", "greater", "greater_equal")
REDUCTIONS = ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min")
CASTS = (DType.f32, DType.f64, DType.i64, DType.i32, DType.i8, DType.bool)


class Maker:
    """Grows a graph by one node at a time; `draw(n)` gives an integer in [0, n)."""

    def __init__(self, draw: Callable[[int], int]) -> None:
        self.draw = draw
        self.graph = Graph("random")
        self.values: list[Value] = [
            self.graph.add_input("x", TensorType(DType.f32, (N, M, 4))),
            self.graph.add_input("y", TensorType(DType.f32, (M, 1))),
            self.graph.add_input("k", TensorType(DType.i64, (N, 1, 4)))]

    def pick(self, *dtypes: DType, rank: int = 0) -> Value:
        """A value of one of the types (any if none is given) and at least a rank; a new constant if there is none."""
        found = [v for v in self.values if (not dtypes or v.dtype in dtypes) and v.type.rank >= rank]
        return found[self.draw(len(found))] if found else self.constant(dtypes[0], rank)

    def constant(self, dtype: DType, rank: int = 0, uniform: bool = False) -> Value:
        """A constant: 0, 1 or -1 everywhere, or a row of four."""
        if uniform or self.draw(2):
            data = np.full((1,) * rank, (0, 1, -1)[self.draw(3)])
        else:
            data = np.arange(4).reshape((1,) * max(rank - 1, 0) + (4,)) - self.draw(3)
        value = self.graph.constant(data.astype(dtype.numpy))
        self.values.append(value)
        return value

    def partner(self, value: Value) -> Value:
        """A value of the same type that broadcasts with it."""
        fits = [v for v in self.values if v.dtype is value.dtype and all(
            a in (1, b) or b == 1 for a, b in zip(v.shape[::-1], value.shape[::-1], strict=False))]
        if fits and self.draw(3):
            return fits[self.draw(len(fits))]
        return self.constant(value.dtype, uniform=value.shape[-1:] not in ((4,), (1,)))

    def add(self, op: str, *inputs: Value, **attrs: object) -> None:
        """One node more."""
        self.values.append(self.graph.add(op, inputs, attrs).output)  # type: ignore[arg-type]

    def step(self) -> None:
        """One node more, of a random family."""
        families = (self.unary, self.binary, self.compare, self.logic, self.cast, self.where, self.reshape,
                    self.transpose, self.broadcast, self.slice, self.concat, self.reduce, self.sizes, self.gather,
                    self.gather_nd)
        families[self.draw(len(families))]()

    def unary(self) -> None:
        """A float op of one operand."""
        self.add(FLOAT_UNARY[self.draw(len(FLOAT_UNARY))], self.pick(DType.f32, DType.f64))

    def binary(self) -> None:
        """Arithmetic."""
        a = self.pick(DType.f32, DType.f64, DType.i64, DType.i32)
        pair = [a, self.partner(a)]
        self.add(BINARY[self.draw(len(BINARY))], *(pair if self.draw(2) else pair[::-1]))

    def compare(self) -> None:
        """A comparison."""
        a = self.pick(DType.i64, DType.i32, DType.f32)
        pair = [a, self.partner(a)]
        self.add(COMPARISONS[self.draw(len(COMPARISONS))], *(pair if self.draw(2) else pair[::-1]))

    def logic(self) -> None:
        """Boolean algebra."""
        a = self.pick(DType.bool)
        op = ("and", "or", "xor", "not")[self.draw(4)]
        self.add(op, a, *([] if op == "not" else [self.partner(a)]))

    def cast(self) -> None:
        """Another element type."""
        self.add("cast", self.pick(), to=CASTS[self.draw(len(CASTS))])

    def where(self) -> None:
        """A choice."""
        condition = self.pick(DType.bool)
        a, b = (v if self.draw(2) else self.constant(v.dtype) for v in [self.pick(DType.f32)] * 2)
        shapes = [v.shape[::-1] for v in (condition, a, b)]
        sizes = [{s[i] for s in shapes if len(s) > i} - {1} for i in range(max(map(len, shapes)))]
        if all(len(s) <= 1 for s in sizes):
            self.add("where", condition, a, b)

    def reshape(self) -> None:
        """Two neighbouring axes merged, one of size 1 put in or taken out, or back to an earlier shape."""
        x = self.pick(rank=1)
        shape = list(x.shape)
        at = self.draw(len(shape))
        alike = [v.shape for v in self.values if v.type.size == x.type.size]
        kind = self.draw(4)
        if kind == 0 and len(shape) < 5:
            shape.insert(at, 1)
        elif kind == 1 and 1 in shape:
            shape.remove(1)
        elif kind == 2 and at:
            shape[at - 1:at + 1] = [product(shape[at - 1:at + 1])]
        elif alike:
            shape = list(alike[self.draw(len(alike))])
        self.add("reshape", x, shape=tuple(shape))

    def transpose(self) -> None:
        """Axes in another order."""
        x = self.pick(rank=1)
        perm = list(range(x.type.rank))
        a, b = self.draw(len(perm)), self.draw(len(perm))
        perm[a], perm[b] = perm[b], perm[a]
        self.add("transpose", x, perm=tuple(perm))

    def broadcast(self) -> None:
        """Sizes 1 stretched, or an axis more."""
        x = self.pick()
        wide: tuple[Dim, ...] = tuple((1, 4, N, M)[self.draw(4)] if d == 1 else d for d in x.shape)
        self.add("broadcast_to", x, shape=(2, *wide) if not self.draw(3) and x.type.rank < 4 else wide)

    def slice(self) -> None:
        """Part of a fixed axis, or all of it, maybe turned round."""
        x = self.pick(rank=1)
        starts, sizes, steps = [0] * x.type.rank, list(x.shape), [1] * x.type.rank
        axis = self.draw(x.type.rank)
        size = x.shape[axis]
        if isinstance(size, int) and size:
            starts[axis] = self.draw(size)
            steps[axis] = (1, 2, -1)[self.draw(3)]
            room = starts[axis] if steps[axis] < 0 else size - 1 - starts[axis]
            sizes[axis] = room // abs(steps[axis]) + 1
        self.add("slice", x, starts=tuple(starts), sizes=tuple(sizes), steps=tuple(steps))

    def concat(self) -> None:
        """A value once, twice or with its own part."""
        x = self.pick(rank=1)
        self.add("concat", *[x] * (1 + self.draw(2)), axis=self.draw(x.type.rank) - x.type.rank)

    def reduce(self) -> None:
        """A reduction of one axis."""
        x = self.pick(DType.f32, DType.i64, rank=1)
        self.add(REDUCTIONS[self.draw(len(REDUCTIONS))], x, axes=(self.draw(x.type.rank) - x.type.rank,),
                 keepdims=bool(self.draw(2)))

    def sizes(self) -> None:
        """Positions and sizes."""
        d = (N, M, 4, N + M, N * M)[self.draw(5)]
        if self.draw(2):
            self.add("iota", size=d, dtype=(DType.i64, DType.i32)[self.draw(2)])
        else:
            self.add("sizes", values=(d, M)[:1 + self.draw(2)])

    def gather(self) -> None:
        """Elements at positions that are in range: all of an axis, some of a fixed one, or turned round."""
        x = self.pick(rank=1)
        axis = self.draw(x.type.rank)
        size = x.shape[axis]
        self.add("iota", size=size)
        positions = self.values[-1]

        def move(op: str, **attrs: object) -> Value:
            return self.graph.add(op, [positions], attrs).output  # type: ignore[arg-type]

        if isinstance(size, int) and size > 1 and self.draw(2):
            step = (1, -1, 2)[self.draw(3)]
            starts, sizes = (size - 1 if step < 0 else 1,), (size // 2,)
            positions = move("slice", starts=starts, sizes=sizes, steps=(step,))
        if self.draw(2):
            positions = move("reshape", shape=(*positions.shape, 1))
            positions = move("broadcast_to", shape=(*positions.shape[:-1], 2))
        self.add("gather", x, positions, axis=axis - x.type.rank)

    def gather_nd(self) -> None:
        """All elements of two axes by index tuples, rows or columns first, with an axis of size 1 or 2 between."""
        x = self.pick(rank=2)
        rows, cols = x.shape[:2]
        swap, between = self.draw(2), 1 + self.draw(2)
        shape = (cols, between, rows) if swap else (rows, between, cols)
        columns = []
        for index, size in enumerate((rows, cols)):
            near: list[Dim] = [1, 1, 1, 1]
            near[2 * (index ^ swap)] = size
            line = self.graph.add("iota", [], {"size": size}).output
            shaped = self.graph.add("reshape", [line], {"shape": tuple(near)}).output
            columns.append(self.graph.add("broadcast_to", [shaped], {"shape": (*shape, 1)}).output)
        self.add("concat", *columns, axis=-1)
        self.add("gather_nd", x, self.values[-1])


def grow(entropy: bytes) -> Graph:
    """The graph a string of bytes stands for: each choice is one byte, and each node takes a few."""
    left = deque(entropy)
    maker = Maker(lambda n: left.popleft() % n if left else 0)
    while left:
        maker.step()
    graph = maker.graph
    made = [v for v in maker.values if v.producer is not None]
    for value in [v for v in made if not v.users] or maker.values[:1]:
        graph.add_output(value)
    return graph


def graphs(max_nodes: int = 14) -> st.SearchStrategy[Graph]:
    """Verified graphs that return everything nobody reads. Drawing bytes at once is much faster than choices."""
    return st.binary(min_size=4, max_size=4 * max_nodes).map(grow)
