"""What a loop kernel does, decided before any code: the space it walks, its passes over a row, and what it keeps.

A body with row ops walks rows and makes several passes over each: a reduction ends a pass, what depends on it comes in
the next. A vector that a later pass needs again is read back where it was stored as a result, computed again if that
is cheap (its operands are in L1), or kept in a row buffer: in the row of a result of a later pass, or in scratch.
A purely elementwise body walks all axes that its operands let it merge, in chunks of columns.
"""
from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from q8c.codegen.loop_program import REDUCTIONS, Program, build_program
from q8c.codegen.loop_space import Rows, Sizes, Space, broadcast_shape, broadcast_strides, rows_of
from q8c.ir.dims import Dim, floordiv
from q8c.ir.graph import Graph, Value
from q8c.ir.ops import definition_of
from q8c.ir.types import DType

CHUNK = 4096
"""Columns of an elementwise loop that one thread takes at a time."""
L1_BYTES = 20480
"""What the rows of a block may take of the first cache (32 or 48 KB)."""
MOST_ROWS = 4
RECOMPUTE_COST = 4
"""A vector whose operations and loads are no more than this is computed again rather than kept."""

_COSTS = {"exp": 12, "log": 20, "erf": 20, "tanh": 20, "sigmoid": 16, "silu": 16, "softplus": 30, "gelu": 24, "sin": 30,
          "cos": 30, "pow": 60, "mod": 60, "div": 6, "sqrt": 6, "rsqrt": 10, "reciprocal": 6}


@dataclass(frozen=True)
class Result:
    """One output: its instruction, and whether its rows are R8 (padded to 4 bytes with zeros)."""

    instr: int
    dtype: DType
    vector: bool
    r8: bool = False


@dataclass(frozen=True)
class Kept:
    """Where a vector is kept from pass to pass: in the row of result `result`, else `offset` bytes into scratch."""

    result: int | None
    offset: Dim = 0


@dataclass(frozen=True)
class RowPass:
    """One pass over the columns: reductions to finish, vectors to keep, and results to store."""

    reductions: tuple[int, ...]
    kept: tuple[int, ...]
    results: tuple[int, ...]


@dataclass
class Plan:
    """Everything the emitter needs. The operands of `rows` are the kernel's operands, then its results; `together`
    rows go through each pass before the next; each has `row_scratch` bytes of scratch.
    """

    ops: tuple[str, ...]
    program: Program
    operands: list[DType]
    results: list[Result]
    rows: Rows
    passes: list[RowPass] = field(default_factory=list)
    avail: list[int] = field(default_factory=list)
    kept: dict[int, Kept] = field(default_factory=dict)
    row_scratch: Dim = 0
    together: int = 1
    sizes: Sizes = field(default_factory=Sizes)

    @property
    def scratch(self) -> Dim:
        """Bytes of scratch a thread needs."""
        return self.row_scratch * self.together

    def live(self) -> list[int]:
        """Instructions some result needs, in order."""
        needed = set(self.program.outputs)
        for number in range(len(self.program.instrs) - 1, -1, -1):
            if number in needed:
                needed |= set(self.program.instrs[number].args)
        return sorted(needed)

    def weight(self) -> int:
        """About how many operations one column costs."""
        return sum(_COSTS.get(self.program.instrs[n].op, 1) for n in self.live() if self.program.instrs[n].vector)

    def key(self) -> str:
        """Text that is equal exactly for kernels with the same code."""
        size = self.sizes.name
        parts = [str(self.program.instrs), str(self.operands), str(self.results), self.sizes.rows_name(self.rows),
                 str(self.passes), str(self.together), size(self.row_scratch),
                 *(f"{n} {k.result} {size(k.offset)}" for n, k in self.kept.items())]
        return "\n".join(parts)

    def symbol(self) -> str:
        """The kernel's name without the tier: the body's ops, the columns, a hash of all the rest."""
        shown = "_".join(dict.fromkeys(self.ops))[:60].strip("_") or "copy"
        cols = self.rows.cols if isinstance(self.rows.cols, int) else "n"
        return f"q8c_loop_{shown}_{cols}_{hashlib.sha256(self.key().encode()).hexdigest()[:10]}"


def make_plan(body: Graph) -> Plan:
    """The plan of a body."""
    values = [*body.inputs, *(v for node in body.nodes for v in node.outputs)]
    shape = broadcast_shape([v.shape for v in values])
    cols: Dim = shape[-1] if shape else 1
    r8 = {n.output for n in body.nodes if n.op == "dynamic_quantize"}
    by_rows = any(not definition_of(n).elementwise for n in body.nodes) and (cols != 1 or bool(r8))
    plan = _by_rows(body, shape, r8) if by_rows else _elementwise(body, shape)
    _schedule(plan)
    _keep(plan)
    plan.together = _rows_together(plan)
    plan.sizes.need_rows(plan.rows)
    plan.sizes.need(plan.row_scratch, *(k.offset for k in plan.kept.values()))
    return plan


def _rows_together(plan: Plan) -> int:
    """How many rows go through a pass together: as many as stay in L1, where there are several passes."""
    if len(plan.passes) < 2:
        return 1
    if not isinstance(plan.rows.cols, int) or not isinstance(plan.row_scratch, int):
        return 2
    vectors = [d for d, own in zip(plan.operands, plan.rows.outer.strides, strict=False) if any(own)]
    widths = [d.itemsize for d in vectors] + [r.dtype.itemsize for r in plan.results if r.vector]
    row = sum(widths) * plan.rows.cols + plan.row_scratch
    return max(1, min(MOST_ROWS, L1_BYTES // row))


def _by_rows(body: Graph, shape: tuple[Dim, ...], r8: set[Value]) -> Plan:
    cols = shape[-1]
    program = build_program(body, [_spans(v, cols) for v in body.inputs], one_column=False)
    results = [Result(n, v.dtype, program.instrs[n].vector, v in r8)
               for v, n in zip(body.outputs, program.outputs, strict=True)]
    rank = len(shape)
    strides = [broadcast_strides(v.shape, rank)[:-1] for v in body.inputs]
    for value, result in zip(body.outputs, results, strict=True):
        stored = (*value.shape[:-1], floordiv(value.shape[-1] + 3, 4) * 4) if result.r8 else value.shape
        strides.append(broadcast_strides(stored, rank)[:-1])
    along = [1] * len(strides)
    rows = Rows(Space(shape[:-1], tuple(strides)).merged(), cols, tuple(along))
    return Plan(_ops(body), program, [v.dtype for v in body.inputs], results, rows)


def _ops(body: Graph) -> tuple[str, ...]:
    return tuple(n.op.removeprefix("dynamic_") for n in body.nodes)


def _spans(value: Value, cols: Dim) -> bool:
    return value.type.rank > 0 and (value.shape[-1] != 1 or cols == 1)


def _elementwise(body: Graph, shape: tuple[Dim, ...]) -> Plan:
    rank = len(shape)
    strides = tuple(broadcast_strides(v.shape, rank) for v in (*body.inputs, *body.outputs))
    rows = rows_of(Space(shape, strides), CHUNK)
    program = build_program(body, [a != 0 for a in rows.along[:len(body.inputs)]], one_column=True)
    results = [Result(n, v.dtype, program.instrs[n].vector)
               for v, n in zip(body.outputs, program.outputs, strict=True)]
    return Plan(_ops(body), program, [v.dtype for v in body.inputs], results, rows)


def _schedule(plan: Plan) -> None:
    """In which pass each instruction is available, and the passes' roots."""
    instrs = plan.program.instrs
    for instr in instrs:
        ready = max((plan.avail[a] for a in instr.args), default=0)
        plan.avail.append(ready + 1 if instr.op in REDUCTIONS else ready)
    live = plan.live()
    reductions = [n for n in live if instrs[n].op in REDUCTIONS]
    stored = [k for k, r in enumerate(plan.results) if r.vector]
    last = max([plan.avail[n] for n in reductions] + [plan.avail[plan.results[k].instr] + 1 for k in stored], default=0)
    plan.passes = [RowPass(tuple(n for n in reductions if plan.avail[n] == p + 1), (),
                           tuple(k for k in stored if plan.avail[plan.results[k].instr] == p)) for p in range(last)]


def _keep(plan: Plan) -> None:
    """Choose the vectors that are kept, from the last pass to the first, then where."""
    chooser = _Chooser(plan)
    for number in range(len(plan.passes) - 1, -1, -1):
        roots = [a for n in plan.passes[number].reductions for a in plan.program.instrs[n].args]
        roots += [plan.results[k].instr for k in plan.passes[number].results]
        roots += [n for n in chooser.last_use if plan.avail[n] == number]
        chooser.visit_all(roots, number)
    own = {n: k for n, k in chooser.at_result.items() if n in chooser.last_use}
    plan.kept.update(own)
    for n in sorted(set(chooser.last_use) - set(own)):
        _place(plan, n, chooser.last_use[n])
    plan.passes = [RowPass(p.reductions, tuple(n for n in plan.kept if plan.avail[n] == number and n not in own),
                           p.results) for number, p in enumerate(plan.passes)]


class _Chooser:
    """Finds the vectors worth keeping. `last_use` has them, with the last pass that reads each."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.instrs = plan.program.instrs
        self.at_result = {r.instr: Kept(k) for k, r in reversed(list(enumerate(plan.results))) if r.vector}
        self.last_use: dict[int, int] = {}

    def visit_all(self, roots: list[int], number: int) -> None:
        """Walk what a pass computes, up to operands and kept vectors."""
        seen: set[int] = set()
        while roots:
            n = roots.pop()
            instr = self.instrs[n]
            if n in seen or not instr.vector or instr.op == "input":
                continue
            seen.add(n)
            kept = self._origin(n) if self.plan.avail[n] < number and self._worth_keeping(n) else None
            if kept is not None:
                self.last_use[kept] = max(number, self.last_use.get(kept, 0))
            if kept != n:
                roots.extend(instr.args)

    def _origin(self, n: int) -> int:
        """n, or the vector that n is made of by a few operations on numbers of the row: keeping that serves more."""
        start = n
        for _ in range(RECOMPUTE_COST - 1):
            instr = self.instrs[n]
            vectors = {a for a in instr.args if self.instrs[a].vector}
            if n in self.at_result or n in self.last_use:
                return n
            if instr.op in _COSTS or len(vectors) != 1:
                break
            n, = vectors
        return start if self.instrs[n].op == "input" else n

    def _worth_keeping(self, n: int) -> bool:
        return n in self.at_result or n in self.last_use or self._cost(n) > RECOMPUTE_COST

    def _cost(self, n: int) -> int:
        """Operations and loads to compute n, no more than one above the limit."""
        total, open_ = 0, [n]
        seen: set[int] = set()
        while open_ and total <= RECOMPUTE_COST:
            n = open_.pop()
            instr = self.instrs[n]
            if n in seen or not instr.vector:
                continue
            seen.add(n)
            if instr.op == "input" or n in self.last_use or n in self.at_result:
                total += 1
            else:
                total += _COSTS.get(instr.op, 1)
                open_.extend(instr.args)
        return total


def _place(plan: Plan, n: int, last_use: int) -> None:
    """In the row of a result of the same width that is written no earlier than the last use, else in scratch."""
    size = plan.program.instrs[n].dtype.itemsize
    taken = {k.result for k in plan.kept.values()}
    for k, result in enumerate(plan.results):
        own_rows = all(s != 0 for s in plan.rows.outer.strides[len(plan.operands) + k])
        if (result.vector and not result.r8 and own_rows and result.dtype.itemsize == size and k not in taken
                and plan.avail[result.instr] >= last_use):
            plan.kept[n] = Kept(k)
            return
    plan.kept[n] = Kept(None, plan.row_scratch)
    plan.row_scratch = plan.row_scratch + floordiv(plan.rows.cols + 63, 64) * (64 * size)

