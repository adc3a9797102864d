"""Graph inputs: the dimension names of a model become symbols of the IR."""
from __future__ import annotations

import keyword
import re
from typing import TYPE_CHECKING

from q8c.errors import CompileError
from q8c.frontend.weights import border_type
from q8c.ir.dim_text import parse_dim
from q8c.ir.dims import Dim, as_symbol, floordiv, nonnegative, substitute, sym, symbols
from q8c.ir.graph import Graph
from q8c.ir.types import TensorType

if TYPE_CHECKING:
    import onnx

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def input_types(inputs: list[onnx.ValueInfoProto]) -> list[TensorType]:
    """The types of the graph inputs.

    Equal names are one symbol; a name that is an expression of other inputs' names is that expression; an unnamed
    dimension gets a symbol of its own.
    """
    names = _Names(inputs)
    for value in inputs:
        if not value.type.HasField("tensor_type"):
            raise CompileError(f"input {value.name!r}: expected a tensor, got {value.type.WhichOneof('value')}")
    unknown = [v.name for v in inputs if not v.type.tensor_type.HasField("shape")]
    if unknown:
        raise CompileError(f"the model does not state the shape of its inputs {', '.join(map(repr, unknown))}; state "
                           f"it with names for sizes that vary, such as `--shape {unknown[0]}=batch,128` or "
                           f"shapes={{{unknown[0]!r}: ['batch', 128]}}")
    types = []
    for value in inputs:
        tensor = value.type.tensor_type
        shape = tuple(names.dim(d, f"{value.name}_{i}") for i, d in enumerate(tensor.shape.dim))
        types.append(TensorType(border_type(tensor.elem_type, f"input {value.name!r}"), shape))
    return types


def solve(graph: Graph) -> dict[str, Dim]:
    """The sizes that assumptions of the graph state by others: of `total == past + seq`, `total`.

    Only those stated by sizes that are read off the inputs directly; of two equal ones, the later is stated.
    """
    direct = list(dict.fromkeys(n for v in graph.inputs for d in v.shape if (n := as_symbol(d)) is not None))
    solved: dict[str, Dim] = {}
    for a, b in graph.assumptions:
        zero = substitute(a - b, solved)
        free = [n for n in direct if n not in solved]
        for name in reversed(free):
            stated = _isolate(zero, name)
            if stated is not None and symbols(stated) <= set(free) - {name}:
                solved = {n: substitute(d, {name: stated}) for n, d in solved.items()}
                solved[name] = stated
                break
    return solved


def _isolate(zero: Dim, name: str) -> Dim | None:
    """What `name` is if `zero` is 0, where it can be said without a division; sums of other sizes only."""
    if isinstance(zero, int):
        return None
    factors = [c for m, c in zero.terms if m == (name,)]
    if not factors:
        return None
    rest = (zero - factors[0] * sym(name)) * -1
    stated = floordiv(rest, factors[0])
    if stated * factors[0] != rest or name in symbols(stated) or not nonnegative(stated):
        return None
    return stated


class _Names:
    def __init__(self, inputs: list[onnx.ValueInfoProto]) -> None:
        found = [d.dim_param for v in inputs for d in v.type.tensor_type.shape.dim if d.dim_param]
        self._plain = {n for n in found if _is_plain(n)}
        self._taken = set(self._plain)
        self._given: dict[str, Dim] = {n: sym(n) for n in self._plain}

    def dim(self, d: onnx.TensorShapeProto.Dimension, place: str) -> Dim:
        """One declared dimension as a size."""
        if d.WhichOneof("value") == "dim_value" and d.dim_value >= 0:
            return int(d.dim_value)
        name = d.dim_param.strip()
        if not re.search(r"[A-Za-z0-9]", name):
            return self._fresh(place)
        if name not in self._given:
            self._given[name] = self._expression(name)
        return self._given[name]

    def _expression(self, name: str) -> Dim:
        """`past + 1` as an expression, where the symbols in it are known or it is the one way to know its symbol."""
        try:
            parsed = parse_dim(name)
        except (ValueError, OverflowError):
            return self._fresh(name)
        used = symbols(parsed)
        unknown = used - self._plain
        if isinstance(parsed, int) or unknown or not all(_is_plain(n) for n in used) or as_symbol(parsed):
            return self._fresh(name)
        return parsed

    def _fresh(self, hint: str) -> Dim:
        base = re.sub(r"\W+", "_", hint, flags=re.ASCII).strip("_") or "size"
        if not _is_plain(base):
            base = f"size_{base}"
        name, count = base, 1
        while name in self._taken:
            count += 1
            name = f"{base}_{count}"
        self._taken.add(name)
        return sym(name)


def _is_plain(name: str) -> bool:
    return bool(_IDENTIFIER.fullmatch(name)) and not keyword.iskeyword(name) and name not in ("max", "min")
