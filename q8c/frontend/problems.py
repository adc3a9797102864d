"""What q8c cannot compile in a model, collected so that one error tells all of it."""
from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from q8c.errors import UnsupportedError
from q8c.frontend.registry import source_name

if TYPE_CHECKING:
    import onnx

_LIST_ALL = 20  # nodes; of more, each group names its first three
_NAMED = 3


class Problems:
    """Unsupported nodes, grouped by op and reason."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, int, str], list[str]] = {}
        self.inputs: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._groups)

    def add(self, node: onnx.NodeProto, opset: int, reason: str = "",
            inputs: Iterable[str] = ()) -> None:
        """Note a node that cannot be compiled, and why if the op as such can be; with constants in the place of
        `inputs` of the model it could."""
        self.inputs.update(inputs)
        op = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
        self._groups.setdefault((op, opset, reason), []).append(source_name(node))

    def check(self) -> None:
        """Raise UnsupportedError that lists everything noted; return nothing if there is nothing."""
        if self._groups:
            count = sum(map(len, self._groups.values()))
            nodes = "1 node" if count == 1 else f"{count} nodes"
            raise UnsupportedError(f"cannot compile {nodes} of this model: {self}", self.inputs)

    def __str__(self) -> str:
        count = sum(map(len, self._groups.values()))
        parts = []
        for (op, opset, reason), names in self._groups.items():
            shown = names if count <= _LIST_ALL else names[:_NAMED]
            text = ", ".join(repr(n) for n in shown)
            text += f" and {len(names) - len(shown)} more" if len(shown) < len(names) else ""
            parts.append(f"{op} (opset {opset}) {text}" + (f": {reason}" if reason else ""))
        return "; ".join(parts)
