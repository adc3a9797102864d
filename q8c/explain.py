"""Which nodes of a model became which kernels, and what was left alone and why."""
from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from q8c.ir import Graph
from q8c.ir.graph import Node
from q8c.passes.manager import Note
from q8c.products import Product

_NOTE = re.compile(r"(?P<pass>[\w-]+): (?P<node>\w+ %.*?)(?: \(from (?P<source>.*?)\))?: (?P<text>.*)", re.DOTALL)
_SILENT = ("reshape",)  # moves nothing: the same memory by another shape


@dataclass(frozen=True)
class Kernel:
    """One kernel: its op (of a loop: the ops it does in one pass over rows), the type of its result, and the nodes of
    the model it computes."""

    op: str
    result: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Left:
    """What a pass looked at and left alone: the reason, and the nodes of the model it concerns."""

    pass_name: str
    reason: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Explanation:
    """What became of a model's matrix products, its kernels in order, and what was left alone."""

    products: tuple[Product, ...]
    kernels: tuple[Kernel, ...]
    left: tuple[Left, ...]

    def about(self, name: str) -> Explanation:
        """Only what concerns nodes of the model with that text in their names."""
        kernels = tuple(k for k in self.kernels if any(name in n for n in k.nodes))
        computed = {n for k in kernels for n in k.nodes}
        return Explanation(tuple(p for p in self.products if name in p.name or p.name in computed), kernels,
                           tuple(e for e in self.left if any(name in n for n in e.nodes)))


def explain(graph: Graph, declines: Iterable[Note], products: Sequence[Product]) -> Explanation:
    """The explanation of a final graph, of what the passes declined on the way and of the model's products."""
    kernels = tuple(Kernel(_work(n), str(n.output.type), n.source) for n in graph.nodes if n.op not in _SILENT)
    reasons: dict[tuple[str, str], dict[str, None]] = {}
    for note in declines:
        reasons.setdefault((note.pass_name, note.text), {})[note.source[0] if note.source else note.node] = None
    return Explanation(tuple(products), kernels, tuple(Left(*key, tuple(nodes)) for key, nodes in reasons.items()))


def read_notes(texts: Sequence[str]) -> list[Note]:
    """Notes as an artifact keeps them; those not of that form are left out."""
    found = (_NOTE.fullmatch(text) for text in texts)
    return [Note(m["pass"], m["node"], (m["source"],) if m["source"] else (), m["text"]) for m in found if m]


def _work(node: Node) -> str:
    if node.body is None:
        return node.op
    return "loop: " + ", ".join(n.op for n in node.body.nodes)
