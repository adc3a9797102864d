"""What the names of a graph, a branch or a function body stand for."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from q8c.errors import CompileError
from q8c.frontend.load import Weights
from q8c.frontend.registry import describe
from q8c.frontend.tensor import Found, constant

if TYPE_CHECKING:
    import onnx

_DEPTH_LIMIT = 64  # functions and branches inside one another


@dataclass(frozen=True)
class Absent:
    """An output that is not there: `what` it is, or None after its node was already reported."""

    what: str | None


@dataclass
class Scope:
    """Names and opsets; a branch sees the names around it (`outer`), a function body does not.

    `source` is what emitted nodes are said to stand for, where it is not the node itself.
    """

    opsets: dict[str, int]
    weights: Weights
    names: dict[str, Found | Absent] = field(default_factory=dict)
    outer: Scope | None = None
    depth: int = 0
    source: tuple[str, ...] | None = None

    def find(self, name: str) -> Found | Absent:
        """What a name stands for. Raises CompileError if nothing does."""
        scope: Scope | None = self
        while scope is not None:
            found = scope.names.get(name)
            if found is None and name in scope.weights:
                found = scope.names[name] = constant(scope.weights.array(name), name)
            if found is not None:
                return found
            scope = scope.outer
        raise CompileError(f"the value {name!r} is read before anything computes it")

    def define(self, node: onnx.NodeProto, name: str, found: Found | Absent) -> None:
        """Give a node's output its meaning. Raises CompileError if the name has one."""
        if name in self.names or name in self.weights:
            raise CompileError(f"{describe(node)}: the value {name!r} is there twice")
        self.names[name] = found

    def opset(self, node: onnx.NodeProto) -> int:
        """The opset version a node is of. Raises CompileError if its domain is not imported."""
        if node.domain not in self.opsets:
            raise CompileError(f"{describe(node)}: the model does not import the opset of the domain "
                               f"{node.domain or 'ai.onnx'!r}")
        return self.opsets[node.domain]

    def branch(self, graph: onnx.GraphProto) -> Scope:
        """The scope of a subgraph."""
        weights = self.weights.beside()
        weights.add(graph)
        return Scope(self.opsets, weights, outer=self, depth=self._deeper(), source=self.source)

    def body(self, opsets: dict[str, int], source: tuple[str, ...]) -> Scope:
        """The scope of a function body."""
        return Scope(opsets, self.weights.beside(), depth=self._deeper(), source=source)

    def _deeper(self) -> int:
        if self.depth >= _DEPTH_LIMIT:
            raise CompileError(f"functions and branches are nested more than {_DEPTH_LIMIT} deep")
        return self.depth + 1
