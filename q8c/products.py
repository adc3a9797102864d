"""What became of a model's matrix products: which are int8, which stayed float and why."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from q8c.ir import Graph
from q8c.passes.manager import Report

_FORMS = {"q8_linear": "int8", "linear": "float", "expert_matmul": "float", "matmul": "float", "attention": "attention",
          "packed_attention": "attention"}
_DECIDE = ("fold-weights", "choose-formats")  # the passes that say which products become int8
_RANK = tuple(_FORMS)  # a node of the model may have left its name on several kernels; the first of these computes it


@dataclass(frozen=True)
class Product:
    """A matrix product of the model: the name of its node, its `form` (int8, float, or attention: float, fused) and,
    unless that is int8, the reason."""

    name: str
    form: str
    reason: str = ""


def product_names(graph: Graph) -> list[str]:
    """The nodes of the model behind the matrix products of a graph as imported, each once."""
    products = (n for n in graph.nodes if n.op in ("matmul", "matmul_integer"))
    return list(dict.fromkeys(n.source[0] if n.source else f"%{n.output.name}" for n in products))


def products_of(graph: Graph, names: list[str], report: Report, quantize: bool) -> tuple[Product, ...]:
    """What the final graph and the report say of those nodes. Products that were folded away are left out."""
    ops: dict[str, str] = {}
    for node in graph.nodes:
        for name in node.source if node.op in _FORMS else ():
            ops[name] = min(ops.get(name, node.op), node.op, key=_RANK.index)
    reasons = {name: note.text for note in report.declines if note.pass_name in _DECIDE
               for name in note.source}
    found = []
    for name in names:
        if name not in ops:
            continue
        form = _FORMS[ops[name]]
        if form == "int8":
            found.append(Product(name, form))
        elif form == "attention":
            found.append(Product(name, form, "attention is computed in float"))
        else:
            found.append(Product(name, form, reasons.get(name, "not known") if quantize else "nothing was to be int8"))
    return tuple(found)


def read_products(notes: Iterable[object]) -> tuple[Product, ...]:
    """Products as an artifact keeps them; what is not of that form is left out."""
    names = {f.name for f in fields(Product)}
    return tuple(Product(**note) for note in notes if isinstance(note, dict) and note.keys() == names
                 and all(isinstance(text, str) for text in note.values()))
