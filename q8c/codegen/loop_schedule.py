"""In which passes a loop goes over a row, and what it keeps from one to the next.

A reduction ends a pass, what depends on it comes in the next. A vector that a later pass needs again is read back where
it was stored as a result, computed again if that is cheap (its operands are in L1), or kept in a row buffer: in the row
of a result of a later pass, or in scratch.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from q8c.codegen.loop_plan import COSTS, Blocks, Kept, Plan, RowPass, outline
from q8c.codegen.loop_program import BLOCK_RESULTS, REDUCTIONS
from q8c.ir.dims import floordiv
from q8c.ir.graph import Graph

L1_BYTES = 20480
"""What the rows of a block may take of the first cache (32 or 48 KB)."""
MOST_ROWS = 4
RECOMPUTE_COST = 4
"""A vector whose operations and loads are no more than this is computed again rather than kept."""


def make_plan(body: Graph, pitches: Sequence[int] = ()) -> Plan:
    """The plan of a body, whose operands have a `row_pitch` if any are given."""
    plan = outline(body, pitches)
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
    return max(1, min(MOST_ROWS, L1_BYTES // max(row, 1)))  # a row may have no columns


def _schedule(plan: Plan) -> None:
    """In which pass each instruction is available, and the passes' roots."""
    instrs = plan.program.instrs
    for instr in instrs:
        ready = max((plan.avail[a] for a in instr.args), default=0)
        later = instr.op in REDUCTIONS or (instr.op in BLOCK_RESULTS and instrs[instr.args[0]].op != "input")
        plan.avail.append(ready + later)
    live = plan.live()
    reductions = [n for n in live if instrs[n].op in REDUCTIONS]
    stored = [k for k, r in enumerate(plan.results) if r.vector]
    blocks = _blocks(plan)
    ends = [plan.avail[n] for n in reductions] + [plan.avail[plan.results[k].instr] + 1 for k in stored]
    ends += [number + 1 for number, _ in blocks]
    plan.passes = [RowPass(tuple(n for n in reductions if plan.avail[n] == p + 1), (),
                           tuple(k for k in stored if plan.avail[plan.results[k].instr] == p),
                           tuple(blocks_ for number, blocks_ in blocks if number == p))
                   for p in range(max(ends, default=0))]


def _blocks(plan: Plan) -> list[tuple[int, Blocks]]:
    """The vectors to quantize by blocks, each with the pass that does it."""
    found: dict[tuple[int, int | None, int, bool, bool], list[tuple[str, int]]] = {}
    for k, result in enumerate(plan.results):
        instr = plan.program.instrs[result.instr]
        if result.kind == "blocks":
            x, counts = (*instr.args, None)[:2]
            assert x is not None
            key = (x, counts, *(instr.attr(name) for name in ("block", "zero_point", "wide")))
            found.setdefault(key, []).append((instr.op, k))
    return [(plan.avail[plan.results[pairs[0][1]].instr], Blocks(*key, tuple(pairs))) for key, pairs in found.items()]


def _keep(plan: Plan) -> None:
    """Choose the vectors that are kept, from the last pass to the first, then where."""
    chooser = _Chooser(plan)
    for number in range(len(plan.passes) - 1, -1, -1):
        roots = [a for n in plan.passes[number].reductions for a in plan.program.instrs[n].args]
        roots += [plan.results[k].instr for k in plan.passes[number].results]
        roots += [blocks.x for blocks in plan.passes[number].blocks]
        roots += [n for n in chooser.last_use if plan.avail[n] == number]
        chooser.visit_all(roots, number)
    own = {n: k for n, k in chooser.at_result.items() if n in chooser.last_use}
    plan.kept.update(own)
    for n in sorted(set(chooser.last_use) - set(own)):
        _place(plan, n, chooser.last_use[n])
    plan.passes = [replace(p, kept=tuple(n for n in plan.kept if plan.avail[n] == number and n not in own))
                   for number, p in enumerate(plan.passes)]


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
            if instr.op in COSTS or len(vectors) != 1:
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
                total += COSTS.get(instr.op, 1)
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

