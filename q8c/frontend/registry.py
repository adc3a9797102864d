"""The importers by domain, op and opset, and what an importer sees of a node."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias, TypeVar

import numpy as np

from q8c.errors import CompileError, UnsupportedError
from q8c.frontend.builder import Builder
from q8c.frontend.tensor import Tensor, TensorList
from q8c.ir.dims import Dim
from q8c.ir.graph import Attr, ancestors
from q8c.ir.types import DType

if TYPE_CHECKING:
    import onnx

    from q8c.frontend.load import Weights

MICROSOFT = "com.microsoft"
Results: TypeAlias = "Tensor | TensorList | Sequence[Tensor | None]"
Importer: TypeAlias = "Callable[[Call], Results]"
Function = TypeVar("Function", bound="Callable[[Call], Results]")

_IMPORTERS: dict[tuple[str, str], list[tuple[int, Importer]]] = {}


def importer(*ops: str, since: int = 1, domain: str = "") -> Callable[[Function], Function]:
    """Register the importer of one or more ops, from an opset version on."""
    def add(function: Function) -> Function:
        for op in ops:
            versions = _IMPORTERS.setdefault((domain, op), [])
            versions.append((since, function))
            versions.sort(key=lambda v: v[0])
        return function
    return add


def find_importer(domain: str, op: str, opset: int) -> Importer | None:
    """The importer of the newest version of an op that is not newer than the opset."""
    found = None
    for since, function in _IMPORTERS.get((domain, op), ()):
        if since <= opset:
            found = function
    return found


def registered() -> dict[tuple[str, str], int]:
    """Domain and op of every importer, and since which opset there is one."""
    return {key: versions[0][0] for key, versions in _IMPORTERS.items()}


@dataclass
class Call:
    """One ONNX node with its operands, and the builder that takes what the importer emits. Operands that are sequences
    are in `lists`, by number."""

    node: onnx.NodeProto
    opset: int
    inputs: Sequence[Tensor | None]
    builder: Builder
    weights: Weights
    lists: Mapping[int, TensorList] = field(default_factory=dict)

    @property
    def op(self) -> str:
        """The ONNX op."""
        return self.node.op_type

    @property
    def outputs(self) -> int:
        """The number of outputs the node names."""
        return len(self.node.output)

    def emit(self, op: str, *inputs: Tensor | None, **attrs: Attr) -> Tensor:
        """The first output of an IR op."""
        return self.builder.emit(op, *inputs, **attrs)

    def scalar(self, x: float | int | bool, like: Tensor | DType) -> Tensor:
        """A known scalar of the element type of `like`."""
        return self.builder.scalar(x, like.dtype if isinstance(like, Tensor) else like)

    def has(self, index: int) -> bool:
        """Whether the optional operand `index` is there."""
        return self.optional(index) is not None

    def optional(self, index: int) -> Tensor | None:
        """Operand `index`, or None."""
        if index in self.lists:
            self.unsupported(f"operand {index} is a sequence, expected a tensor")
        return self.inputs[index] if index < len(self.inputs) else None

    def input(self, index: int) -> Tensor:
        """Operand `index`, which must be there."""
        found = self.optional(index)
        if found is None:
            self.fail(f"operand {index} is missing")
        return found

    def sequence(self, index: int) -> TensorList:
        """Operand `index`, which must be a sequence."""
        if index not in self.lists:
            self.fail(f"operand {index} is no sequence")
        return self.lists[index]

    def every(self) -> list[Tensor]:
        """All operands, each of which must be there."""
        return [self.input(i) for i in range(max(1, len(self.inputs)))]

    def sizes(self, index: int, purpose: str) -> list[Dim]:
        """The elements of a vector (or scalar) operand as sizes known at compile time."""
        tensor = self.input(index)
        if tensor.known is None:
            self.unknown(tensor, purpose)
        if tensor.rank > 1 or not (tensor.dtype.is_int or tensor.dtype.is_float):
            self.fail(f"{purpose} is {tensor.type}, expected a vector of integers")
        return [e if tensor.is_symbolic else int(e) for e in tensor.known.reshape(-1)]

    def numbers(self, index: int, purpose: str) -> list[int]:
        """The elements of an operand as integers, the same for all sizes."""
        found: list[int] = []
        for size in self.sizes(index, purpose):
            if not isinstance(size, int):
                self.unsupported(f"{purpose} is {size}; it must be the same for all sizes")
            found.append(size)
        return found

    def axis(self, value: int, rank: int) -> int:
        """An axis as a number in [0, rank)."""
        if not -rank <= value < rank:
            self.fail(f"axis {value} is outside rank {rank}")
        return value % rank

    def axes(self, values: Sequence[int], rank: int) -> list[int]:
        """Distinct axes as numbers in [0, rank), sorted."""
        found = sorted({self.axis(v, rank) for v in values})
        if len(found) != len(values):
            self.fail(f"axes {list(values)} name an axis twice")
        return found

    def attr(self, name: str, kind: str) -> Any:
        """An attribute's value or None; it must be of the kind (`INT`, `FLOATS`, …)."""
        import onnx

        for attribute in self.node.attribute:
            if attribute.name == name:
                if onnx.AttributeProto.AttributeType.Name(attribute.type) != kind:
                    self.fail(f"attribute {name} expected {kind}, got "
                              f"{onnx.AttributeProto.AttributeType.Name(attribute.type)}")
                return onnx.helper.get_attribute_value(attribute)
        return None

    def attr_int(self, name: str, default: int | None = None) -> int:
        """An integer attribute."""
        return int(self._default(name, "INT", default))

    def attr_float(self, name: str, default: float | None = None) -> float:
        """A float attribute, as the shortest decimal that reads back to it."""
        return float(str(np.float32(self._default(name, "FLOAT", default))))

    def attr_str(self, name: str, default: str | None = None) -> str:
        """A string attribute."""
        found = self._default(name, "STRING", default)
        return found.decode("utf-8", "replace") if isinstance(found, bytes) else str(found)

    def attr_ints(self, name: str) -> list[int] | None:
        """An attribute of integers, or None."""
        found = self.attr(name, "INTS")
        return None if found is None else [int(i) for i in found]

    def _default(self, name: str, kind: str, default: Any) -> Any:
        found = self.attr(name, kind)
        if found is None and default is None:
            self.fail(f"attribute {name} is missing")
        return default if found is None else found

    def fail(self, problem: str) -> NoReturn:
        """Raise the CompileError for a node that is wrong."""
        raise CompileError(f"{describe(self.node)}: {problem}")

    def unknown(self, tensor: Tensor, purpose: str) -> NoReturn:
        """Raise the UnsupportedError for a tensor that must be known at compile time, naming the inputs it is of."""
        raise unknown(tensor, purpose)

    def unsupported(self, problem: str) -> NoReturn:
        """Raise the UnsupportedError for a node q8c does not know how to compile."""
        raise UnsupportedError(problem)


def unknown(tensor: Tensor, purpose: str) -> UnsupportedError:
    """The error for a tensor that is computed from data, though it must be known at compile time."""
    names = sorted(v.name for v in ancestors(tensor.value) if v.producer is None and not v.is_constant)
    origin = f" (of input {', '.join(names)})" if names else ""
    return UnsupportedError(f"{purpose} is computed from data{origin}; it must follow from shapes and constants", names)


def describe(node: onnx.NodeProto) -> str:
    """How an error names a node: op and name, or its first output."""
    return f"{node.op_type} {source_name(node)!r}"


def source_name(node: onnx.NodeProto) -> str:
    """The node's name, or its first output's if it has none."""
    return node.name or next((o for o in node.output if o), node.op_type)
