"""Grows a random ONNX model, every node evaluated by ONNX's reference as soon as it is there.

So the grower knows what every value is on every feed: a node that the standard does not define for these operands is
simply not taken, and what an output should be needs no second run.
"""
from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

Array = NDArray[Any]
FEEDS = 3
MOST_ELEMENTS = 4096
LARGEST = 1e4  # of floats; beyond, one rounding is as large as other values
_SIZES = (1, 2, 3, 4, 5, 7, 8, 16, 17, 33)
_PRODUCTS = ("MatMul", "Gemm")
_BY_TYPE = ("Gelu",)  # whose definition depends on the types of operands, which a node alone does not have


class Discard(Exception):
    """The node that was thought of does not fit."""


@dataclass(eq=False)
class Val:
    """A value of the model: its elements on each feed, and a shadow, the elements that slightly different arithmetic
    gives. The elements of an `exact` value do not depend on how anything is rounded, so that steps may follow it."""

    name: str
    arrays: list[Array]
    shadows: list[Array]
    exact: bool
    constant: bool = False
    users: int = 0

    @property
    def kind(self) -> str:
        """numpy's letter: f, i, u or b."""
        return self.arrays[0].dtype.kind

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return self.arrays[0].ndim

    def sizes(self, axis: int) -> list[int]:
        """The size of an axis on each feed."""
        return [a.shape[axis] for a in self.arrays]

    def static(self, axis: int) -> bool:
        """Whether the axis is as long on every feed."""
        return len(set(self.sizes(axis))) == 1


@dataclass
class Grown:
    """A model, its feeds, and the values its outputs should have."""

    seed: int
    model: onnx.ModelProto
    feeds: list[dict[str, Array]]
    outputs: list[Val]
    quantize: bool


@dataclass
class Grower:
    """The model so far. With `quantize`, shadows come from products of 2 percent of noise, else from float64."""

    seed: int
    quantize: bool
    rng: np.random.Generator = field(init=False)
    values: list[Val] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    feeds: list[dict[str, Array]] = field(default_factory=lambda: [{} for _ in range(FEEDS)])

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng([self.seed, 77])
        self.opset = self.choice([18, 20, 21, 22, 23])
        self._symbols = {name: self._symbol() for name in ("n", "m", "k")}

    def _symbol(self) -> list[int]:
        sizes = [self.choice(_SIZES) for _ in range(FEEDS)]
        if self.chance(0.25):
            sizes[FEEDS - 1] = 0
        return sizes

    def choice(self, items: Sequence[Any]) -> Any:
        """One of the items."""
        return items[int(self.rng.integers(len(items)))]

    def chance(self, share: float) -> bool:
        """True in this share of cases."""
        return bool(self.rng.random() < share)

    def integer(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return int(self.rng.integers(low, high + 1))

    def fill(self, shape: Sequence[int], dtype: Any = np.float32) -> Array:
        """Random elements: floats around 0, integers among which there are small, negative and large ones."""
        dtype = np.dtype(dtype)
        if dtype.kind == "f":
            return np.asarray(self.rng.standard_normal(shape)).astype(dtype)
        if dtype.kind == "b":
            return np.asarray(self.rng.random(shape) < 0.5)
        low = 0 if dtype.kind == "u" else -9
        return np.asarray(self.rng.integers(low, 10, shape)).astype(dtype)

    def input(self, dtype: Any = np.float32, rank: int | None = None) -> Val:
        """A new graph input with dynamic and static sizes, sometimes 0 or 1."""
        rank = self.choice([0, 1, 2, 2, 3, 3, 3, 4]) if rank is None else rank
        dims: list[str | int] = []
        for _ in range(rank):
            dims.append(self.choice(list(self._symbols)) if self.chance(0.5) else
                        0 if self.chance(0.03) else self.choice(_SIZES))
        name = f"x{len(self.inputs)}"
        shapes = [[self._symbols[d][i] if isinstance(d, str) else d for d in dims] for i in range(FEEDS)]
        arrays = [self.fill(shape, dtype) for shape in shapes]
        if any(a.size > MOST_ELEMENTS for a in arrays):
            raise Discard
        for feed, array in zip(self.feeds, arrays, strict=True):
            feed[name] = array
        self.inputs.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), dims))
        value = Val(name, arrays, [_wide(a) for a in arrays], True)
        self.values.append(value)
        return value

    def const(self, array: Any) -> Val:
        """A new initializer."""
        array = np.asarray(array)
        name = f"c{len(self.constants)}"
        self.constants[name] = array
        return Val(name, [array] * FEEDS, [_wide(array)] * FEEDS, True, constant=True)

    def pick(self, kinds: str = "f", low: int = 0, high: int = 9, exact: bool = False,
             where: Callable[[Val], bool] = lambda v: True) -> Val:
        """A value so far, later ones more often. Raises Discard if there is none such."""
        fit = [v for v in self.values
               if v.kind in kinds and low <= v.rank <= high and (v.exact or not exact) and where(v)]
        if not fit:
            raise Discard
        return fit[max(self.integer(0, len(fit) - 1), self.integer(0, len(fit) - 1))]

    def axis(self, value: Val) -> int:
        """An axis of a value, negative or not. Raises Discard for a scalar."""
        if not value.rank:
            raise Discard
        return self.integer(-value.rank, value.rank - 1)

    def add(self, op: str, *operands: Val | None, count: int = 1, exact: bool = False, **attrs: Any) -> list[Val]:
        """Append a node and return its outputs; `exact` says that an op on exact operands rounds nothing.

        Raises Discard where the reference refuses it or gives what nothing can be compared with.
        """
        index = len(self.nodes)
        names = [f"v{index}" if count == 1 else f"v{index}_{i}" for i in range(count)]
        node = helper.make_node(op, [v.name if v else "" for v in operands], names, **attrs)
        real = [v for v in operands if v is not None]
        plain = [_run(node, self.opset, {v.name: v.arrays[i] for v in real}) for i in range(FEEDS)]
        shadow = [_shadow(node, self.opset, {v.name: v.shadows[i] for v in real}, plain[i]) for i in range(FEEDS)]
        for results in zip(*plain, strict=True):
            _check(results)
        if self.quantize and op in _PRODUCTS:
            shadow = [[self._noisy(s) for s in results] for results in shadow]
        self.nodes.append(node)
        known = exact and all(v.exact for v in real)
        made = [Val(n, [p[i] for p in plain], [s[i] for s in shadow],
                    known or plain[0][i].dtype.kind != "f" and all(v.exact or v.kind != "f" for v in real))
                for i, n in enumerate(names)]
        for v in real:
            v.users += 1
        self.values.extend(made)
        return made

    def _noisy(self, array: Array) -> Array:
        scale = np.abs(array).max(initial=0.0)
        return np.asarray(array + 0.02 * scale * self.rng.standard_normal(array.shape))

    def grown(self) -> Grown:
        """The model, its outputs all that nobody reads and some that somebody does."""
        made = [v for v in self.values if not v.constant and v.name.startswith("v")]
        outputs = [v for v in made if not v.users or self.chance(0.1)][-6:]
        return Grown(self.seed, self.model(outputs), self.feeds, outputs, self.quantize)

    def model(self, outputs: Sequence[Val]) -> onnx.ModelProto:
        """A model with these outputs and no more than they need."""
        return model_of(self.nodes, self.inputs, self.constants, outputs, self.opset)


def model_of(nodes: Sequence[onnx.NodeProto], inputs: Sequence[onnx.ValueInfoProto], constants: dict[str, Array],
             outputs: Sequence[Val], opset: int) -> onnx.ModelProto:
    """The part of a model that outputs depend on; all inputs stay."""
    needed, kept = {v.name for v in outputs}, []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    graph = helper.make_graph(
        kept[::-1], "fuzz", inputs,
        [helper.make_tensor_value_info(v.name, helper.np_dtype_to_tensor_dtype(v.arrays[0].dtype),
                                       [None] * v.rank) for v in outputs],
        [numpy_helper.from_array(a, n) for n, a in constants.items() if n in needed])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def _wide(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype == np.float32 else array


def _run(node: onnx.NodeProto, opset: int, feed: dict[str, Array]) -> list[Array]:
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            return [np.asarray(a) for a in _evaluator(node, opset, feed).run(None, feed)]
    except Exception as error:  # whatever a reference implementation raises on operands that do not fit
        raise Discard from error


def _evaluator(node: onnx.NodeProto, opset: int, feed: dict[str, Array]) -> ReferenceEvaluator:
    if node.op_type not in _BY_TYPE:
        return ReferenceEvaluator(node, opsets={"": opset})
    inputs = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
              for n, a in feed.items()]
    graph = helper.make_graph([node], "one", inputs, [onnx.ValueInfoProto(name=n) for n in node.output])
    return ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]))


def _shadow(node: onnx.NodeProto, opset: int, feed: dict[str, Array], plain: list[Array]) -> list[Array]:
    try:
        found = _run(node, opset, feed)
    except Discard:
        found = plain
    return [s.astype(p.dtype if p.dtype.kind != "f" else np.float64) if s.shape == p.shape else _wide(p)
            for s, p in zip(found, plain, strict=True)]


def _check(results: Sequence[Array]) -> None:
    """Raise Discard for an output that cannot be compared, or is of another rank on every feed."""
    if len({a.ndim for a in results}) > 1:
        raise Discard
    for a in results:
        if a.size > MOST_ELEMENTS or a.dtype == object:
            raise Discard
        if a.dtype.kind == "f" and not (np.abs(a) <= LARGEST).all():
            raise Discard
