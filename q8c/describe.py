"""What the manifest of a compiled file says of a graph and how its code is called."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from q8c.codegen.cost import total_cost
from q8c.codegen.frame import Frame
from q8c.codegen.generate import Generated
from q8c.errors import CompileError
from q8c.ir import Graph
from q8c.ir.cache import find_cache
from q8c.ir.dim_program import to_program
from q8c.ir.dims import Dim, Expr, dim_max
from q8c.ir.graph import Node as IrNode
from q8c.ir.graph import Value
from q8c.ir.relation import relation
from q8c.measure import Measured
from q8c.passes.manager import Report
from q8c.passes.pipeline import Options
from q8c.products import Product
from q8c.runtime import dims
from q8c.runtime.cache import NONE, Cache
from q8c.runtime.model import Constraint, Count, Model, Node, Tensor
from q8c.runtime.strict_json import escaped


def describe(graph: Graph, generated: Sequence[Generated], options: Options, report: Report,
             measured: Measured | None = None, products: Sequence[Product] = ()) -> Model:
    """What the artifact's manifest says about the model and how its code is called."""
    frame = _common_frame(generated)
    symbols = [*graph.symbols(), *graph.counts]
    index = {name: i for i, name in enumerate(symbols)}

    def program(d: Dim) -> dims.Program:
        try:
            return dims.freeze(to_program(d, index), len(symbols))
        except ValueError as error:
            raise CompileError(f"the model's sizes cannot be kept in a file: {error}, {d!s:.100}") from error

    def tensor(value: Value, name: str) -> Tensor:
        return Tensor(name, value.dtype.value, tuple(map(program, value.shape)), tuple(map(str, value.shape)),
                      graph.stretches.get(value, ()))

    return Model(
        escaped(graph.name),
        tuple(tensor(v, v.name) for v in graph.inputs),
        tuple(tensor(v, name) for v, name in zip(graph.outputs, graph.output_names, strict=True)),
        tuple(symbols),
        tuple(Count(index[name], graph.inputs.index(value)) for name, value in graph.counts.items()),
        dims=tuple(map(program, frame.sizes)),
        slots=tuple(map(program, frame.slots)),
        scratch=program(frame.scratch),
        cost=program(total_cost(graph)),
        constraints=tuple(Constraint(program(a), program(b), relation(a, b)) for a, b in graph.assumptions),
        cache=_cache(graph),
        nodes=tuple(Node(escaped(n.source[0] if n.source else f"%{n.output.name}"), n.op, _failure(n))
                    for n in graph.nodes),
        options=described(options), tools=_tools(),
        notes={"rewrites": list(map(str, report.rewrites)), "declines": list(map(str, report.declines)),
               "error": None if measured is None else asdict(measured), "products": [asdict(p) for p in products]})


def _cache(graph: Graph) -> Cache | None:
    """What the manifest says of the cache that grows in place."""
    found = find_cache(graph)
    if found is None:
        return None
    mask, positions = (NONE if index is None else index for index in (found.mask, found.positions))
    return Cache(found.pairs, found.formats, found.tokens, mask, positions, found.uniform, found.given,
                 found.window)


def _common_frame(generated: Sequence[Generated]) -> Frame:
    """The frame of a file with these tiers, which may want more or less scratch: each is given the most.

    The scratch size stands last among the sizes, where a tier's code reads how far one thread's lies from the next's.
    Raises CompileError if the tiers differ in more.
    """
    frames = [one.frame for one in generated]
    if all(frame == frames[0] for frame in frames):
        return frames[0]
    scratch = dim_max(*(frame.scratch for frame in frames))
    common = [replace(frame, sizes=_with_last(frame.sizes, frame.scratch, scratch), scratch=scratch)
              for frame in frames]
    if any(frame != common[0] for frame in common):
        raise CompileError(f"{' and '.join(g.tier.name for g in generated)} want different frames")
    return common[0]


def _with_last(sizes: tuple[Expr, ...], last: Dim, other: Dim) -> tuple[Expr, ...]:
    return (*sizes[:-1], other) if sizes[-1:] == (last,) and isinstance(other, Expr) else sizes


def described(options: Options) -> dict[str, Any]:
    """The options as JSON values; of the feeds, how many there were."""
    values = {f.name: getattr(options, f.name) for f in fields(options)}
    values = {name: str(value) if value == math.inf else value for name, value in values.items()}  # JSON has none
    return values | {"feeds": len(options.feeds), "keep": list(options.keep), "set_inputs": dict(options.set_inputs),
                     "shapes": {name: list(sizes) for name, sizes in options.shapes}}


def _failure(node: IrNode) -> str:
    op = node.op
    if op == "packing":
        return "the padding mask changed while the model ran: {detail} of its elements are not 0"
    if op == "last_token":
        return "there are no tokens, of which the last was to be taken"
    if op == "append":
        return "a sequence's length leaves no room for its new tokens, or is less than 0"
    if not op.startswith(("gather", "scatter", "lookup")):
        return "failed on {detail}"
    axis = {"gather": node.attrs.get("axis", 0), "lookup": 1}.get(op)
    rows = node.input(0).shape[axis] if isinstance(axis, int) else None
    return "index {detail} is out of range" + (f" [{-rows}, {rows})" if isinstance(rows, int) else "")


def _tools() -> dict[str, str]:
    import llvmlite
    import llvmlite.binding as llvm

    from q8c import __version__
    return {"q8c": __version__, "llvmlite": llvmlite.__version__, "llvm": ".".join(map(str, llvm.llvm_version_info))}
