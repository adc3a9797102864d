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
import onnxruntime
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from tests.fuzz.dress import MICROSOFT, imports, model_of

Array = NDArray[Any]
FEEDS = 3
MOST_ELEMENTS = 4096
LARGEST = 1e4  # of floats; beyond, one rounding is as large as other values
_SIZES = (1, 2, 3, 4, 5, 7, 8, 16, 17, 33)
OPSETS = (11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 23, 24, 24, 25, 26, 27, 27)
_PRODUCTS = ("MatMul", "Gemm", "Conv", "Attention", "Einsum")
_REDUCTIONS = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceProd",
               "ReduceLogSum", "ReduceLogSumExp")
_SUMS = (*_PRODUCTS, *_REDUCTIONS, "ReduceSum", "LayerNormalization", "RMSNormalization", "BatchNormalization",
         "InstanceNormalization", "GroupNormalization", "GlobalAveragePool", "AveragePool", "CumSum")
_OPERAND_SINCE = {"Squeeze": 13, "Unsqueeze": 13, "Split": 13, "ReduceSum": 13, **dict.fromkeys(_REDUCTIONS, 18)}
_LAST_ONLY = ("Softmax", "LogSoftmax")  # which took all axes from one on, before opset 13
_ODD_FLOATS = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-40, 1e6, 0.0], np.float32)
_IN_A_MODEL = ("Gelu", "Squeeze")  # definitions by types of operands, or by opset, that a node alone is not given


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
    """The model so far. With `quantize`, shadows come from products of 2 percent of noise, else from float64.

    Some are `special`: their inputs hold NaN, infinities, and very large and small numbers.
    """

    seed: int
    quantize: bool
    rng: np.random.Generator = field(init=False)
    _jitter: np.random.Generator = field(init=False)
    values: list[Val] = field(default_factory=list)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    feeds: list[dict[str, Array]] = field(default_factory=lambda: [{} for _ in range(FEEDS)])

    def __post_init__(self) -> None:
        self.rng, self._jitter = (np.random.default_rng([self.seed, n]) for n in (77, 78))
        self.opset = self.choice(OPSETS)
        self.special = not self.quantize and self.chance(0.1)
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
            made = np.asarray(self.rng.standard_normal(shape)).astype(dtype)
            odd = self.rng.random(shape) < 0.05 * self.special
            return np.where(odd, self.rng.choice(_ODD_FLOATS, shape), made).astype(dtype)
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
        return self._new_input(dims, dtype)

    def input_of(self, sizes: Sequence[Sequence[int]], dtype: Any = np.float32) -> Val:
        """A new graph input whose axes are as long as told on each feed."""
        return self._new_input([each[0] if len(set(each)) == 1 else self._symbol_of(list(each)) for each in sizes],
                               dtype)

    def _symbol_of(self, sizes: list[int]) -> str:
        found = [name for name, known in self._symbols.items() if known == sizes]
        if found:
            return found[0]
        name = f"d{len(self._symbols)}"
        self._symbols[name] = sizes
        return name

    def _new_input(self, dims: Sequence[str | int], dtype: Any) -> Val:
        name = f"x{len(self.inputs)}"
        shapes = [[self._symbols[d][i] if isinstance(d, str) else d for d in dims] for i in range(FEEDS)]
        if any(np.prod(shape) > MOST_ELEMENTS for shape in shapes):
            raise Discard
        arrays = [self.fill(shape, dtype) for shape in shapes]
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
        operands, attrs = _as_of(self.opset, op, operands, attrs)
        node = helper.make_node(op, [v.name if v else "" for v in operands], names, **attrs)
        _defined(node, self.opset)
        real = [v for v in operands if v is not None]
        plain = [_run(node, self.opset, {v.name: v.arrays[i] for v in real}) for i in range(FEEDS)]
        shadow = [_shadow(node, self.opset, {v.name: self._rounded(node, v.shadows[i]) for v in real}, plain[i])
                  for i in range(FEEDS)]
        for results in zip(*plain, strict=True):
            _check(results, self.special)
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

    def _rounded(self, node: onnx.NodeProto, array: Array) -> Array:
        """An operand of a shadow. What is summed is off by a rounding: the standard leaves open in which order it is,
        and the sum of equal numbers may be exact in one order only. ONNX Runtime's shadows are in float32 too."""
        if array.dtype.kind != "f" or node.op_type not in _SUMS and node.domain != MICROSOFT:
            return array
        off = 2.0 ** (-24 if node.domain != MICROSOFT else -22) * self._jitter.choice([-1, 1], array.shape)
        return np.asarray(array * (1 + off), np.float64 if node.domain != MICROSOFT else np.float32)

    def _noisy(self, array: Array) -> Array:
        scale = np.abs(array).max(initial=0.0)
        return np.asarray(array + 0.02 * scale * self.rng.standard_normal(array.shape))

    def grown(self) -> Grown:
        """The model, its outputs all that nobody reads and some that somebody does."""
        made = [v for v in self.values if v.name.startswith("v")]
        outputs = [v for v in made if not v.users or self.chance(0.1)][-6:]
        given = [v for v in self.values if v.name.startswith("x") and self.chance(0.03)]
        known = [Val(n, [a] * FEEDS, [_wide(a)] * FEEDS, True) for n, a in self.constants.items() if self.chance(0.01)]
        outputs += given + known
        return Grown(self.seed, self.model(outputs), self.feeds, outputs, self.quantize)

    def model(self, outputs: Sequence[Val]) -> onnx.ModelProto:
        """A model with these outputs and no more than they need."""
        return model_of(self.seed, self.nodes, self.inputs, self.constants, {v.name: v.arrays[0] for v in outputs},
                        self.opset)


def _wide(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype == np.float32 else array


def _run(node: onnx.NodeProto, opset: int, feed: dict[str, Array]) -> list[Array]:
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            if node.domain == MICROSOFT:
                return [np.asarray(a) for a in _runtime(node, feed).run(None, feed)]
            return [np.asarray(a) for a in _evaluator(node, opset, feed).run(None, feed)]
    except Exception as error:  # whatever a reference implementation raises on operands that do not fit
        raise Discard from error


def _evaluator(node: onnx.NodeProto, opset: int, feed: dict[str, Array]) -> ReferenceEvaluator:
    if node.op_type not in _IN_A_MODEL:
        return ReferenceEvaluator(node, opsets={"": opset})
    return ReferenceEvaluator(_alone(node, opset, feed))


def _runtime(node: onnx.NodeProto, feed: dict[str, Array]) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return onnxruntime.InferenceSession(_alone(node, 17, feed).SerializeToString(), options,
                                        providers=["CPUExecutionProvider"])


def _alone(node: onnx.NodeProto, opset: int, feed: dict[str, Array]) -> onnx.ModelProto:
    """A model of one node."""
    inputs = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
              for n, a in feed.items()]
    graph = helper.make_graph([node], "one", inputs, [onnx.ValueInfoProto(name=n) for n in node.output])
    return helper.make_model(graph, ir_version=10, opset_imports=imports(opset))


def _shadow(node: onnx.NodeProto, opset: int, feed: dict[str, Array], plain: list[Array]) -> list[Array]:
    try:
        found = _run(node, opset, feed)
    except Discard:
        found = plain
    return [s.astype(p.dtype if p.dtype.kind != "f" else np.float64) if s.shape == p.shape else _wide(p)
            for s, p in zip(found, plain, strict=True)]


def _as_of(opset: int, op: str, operands: tuple[Val | None, ...],
           attrs: dict[str, Any]) -> tuple[tuple[Val | None, ...], dict[str, Any]]:
    """Operands and attributes of a node as an opset spells it. Raises Discard where it cannot."""
    if op in _LAST_ONLY and opset < 13 and attrs["axis"] not in (-1, operands[0].rank - 1 if operands[0] else 0):
        raise Discard
    if opset < 18:
        attrs = {k: v for k, v in attrs.items() if k not in ("num_outputs", "noop_with_empty_axes")}
    if opset >= _OPERAND_SINCE.get(op, 0) or len(operands) < 2:
        return operands, attrs
    given = operands[1]
    if given is None or not given.constant:
        raise Discard
    listed = given.arrays[0].tolist()
    return operands[:1], attrs | ({"split" if op == "Split" else "axes": listed} if listed else {})


def _defined(node: onnx.NodeProto, opset: int) -> None:
    """Raise Discard for a node that the opset does not define."""
    context = onnx.checker.C.CheckerContext()
    context.ir_version, context.opset_imports = 10, {i.domain: i.version for i in imports(opset)}
    try:
        onnx.checker.check_node(node, context)
    except onnx.checker.ValidationError as error:
        raise Discard from error


def _check(results: Sequence[Array], special: bool) -> None:
    """Raise Discard for an output that cannot be compared, or is of another rank on every feed."""
    if len({a.ndim for a in results}) > 1:
        raise Discard
    for a in results:
        if a.size > MOST_ELEMENTS or a.dtype == object:
            raise Discard
        if a.dtype.kind == "f" and not special and not (np.abs(a) <= LARGEST).all():
            raise Discard
