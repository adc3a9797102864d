"""What a loop kernel works on: its program, its results, and the space it walks.

A body with row ops walks rows. A purely elementwise body walks all axes that its operands let it merge, in chunks of
columns.
"""
from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from q8c.codegen.loop_body import build_program
from q8c.codegen.loop_program import BLOCK_RESULTS, Program
from q8c.codegen.loop_reads import Read, is_read, reads_of
from q8c.codegen.loop_space import Rows, Sizes, Space, broadcast_shape, broadcast_strides, rows_of
from q8c.ir.dims import Dim
from q8c.ir.graph import Graph, Node, Value
from q8c.ir.memory import r8_pitch
from q8c.ir.ops import definition_of
from q8c.ir.types import DType

CHUNK = 4096
"""Columns of an elementwise loop that one thread takes at a time."""
COSTS = {"exp": 12, "exp_nonpositive": 10, "log": 20, "erf": 20, "tanh": 20, "sigmoid": 16, "silu": 16, "softplus": 30,
         "gelu": 24, "sin": 30, "cos": 30, "tan": 50, "sinh": 50, "cosh": 50, "asinh": 50, "acosh": 50,
         "atanh": 50, "asin": 24, "acos": 24, "atan": 24, "pow": 60, "mod": 60, "div": 6, "sqrt": 6, "rsqrt": 10,
         "reciprocal": 6}
"""About how many operations a lane operation is; 1 for those that are not here."""


@dataclass(frozen=True)
class Result:
    """One output: its instruction, and whether its rows are R8 (padded to 4 bytes with zeros)."""

    instr: int
    dtype: DType
    kind: str
    r8: bool = False

    @property
    def vector(self) -> bool:
        """Whether it is stored with the columns."""
        return self.kind == "columns"


@dataclass(frozen=True)
class Kept:
    """Where a vector is kept from pass to pass: in the row of result `result`, else `offset` bytes into scratch."""

    result: int | None
    offset: Dim = 0


@dataclass(frozen=True)
class Blocks:
    """A vector quantized by blocks of columns, and the results that takes: (op of BLOCK_RESULTS, result) pairs. `wide`
    rows are bfloat16 instead on tiers that multiply so, of sequences with more than few tokens if `counts` says how
    many each has."""

    x: int
    counts: int | None
    block: int
    zero_point: bool
    wide: bool
    results: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class RowPass:
    """One pass over the columns: reductions to finish, vectors to keep, results to store, blocks to quantize."""

    reductions: tuple[int, ...]
    kept: tuple[int, ...]
    results: tuple[int, ...]
    blocks: tuple[Blocks, ...] = ()


@dataclass
class Plan:
    """Everything the emitter needs. The operands of `rows` are what is read of the kernel's operands, then its results;
    `together` rows go through each pass before the next; each has `row_scratch` bytes of scratch.
    """

    ops: tuple[str, ...]
    program: Program
    reads: list[Read]
    results: list[Result]
    rows: Rows
    passes: list[RowPass] = field(default_factory=list)
    avail: list[int] = field(default_factory=list)
    kept: dict[int, Kept] = field(default_factory=dict)
    row_scratch: Dim = 0
    together: int = 1
    sizes: Sizes = field(default_factory=Sizes)

    @property
    def operands(self) -> list[DType]:
        """Element types of what is read."""
        return [r.value.dtype for r in self.reads]

    @property
    def places(self) -> list[tuple[int, int]]:
        """Of what is read, which of the kernel's operands it belongs to and its first column there."""
        return [(r.operand, r.column) for r in self.reads]

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
        return sum(COSTS.get(self.program.instrs[n].op, 1) for n in self.live() if self.program.instrs[n].vector)

    def key(self) -> str:
        """Text that is equal exactly for kernels with the same code."""
        size = self.sizes.name
        parts = [str(self.program.instrs), str(self.operands), str(self.places), str(self.results),
                 self.sizes.rows_name(self.rows), str(self.passes), str(self.together), size(self.row_scratch),
                 *(f"{n} {k.result} {size(k.offset)}" for n, k in self.kept.items())]
        return "\n".join(parts)

    def symbol(self) -> str:
        """The kernel's name without the tier: the body's ops, the columns, a hash of all the rest."""
        shown = "_".join(dict.fromkeys(self.ops))[:60].strip("_") or "copy"
        cols = self.rows.cols if isinstance(self.rows.cols, int) else "n"
        return f"q8c_loop_{shown}_{cols}_{hashlib.sha256(self.key().encode()).hexdigest()[:10]}"


def outline(body: Graph, pitches: Sequence[int] = ()) -> Plan:
    """The plan of a body, whose operands have a `row_pitch` if any are given, as far as its space and its program;
    `loop_schedule` completes it."""
    reads = reads_of(body, pitches)
    computed = [n for n in body.nodes if not is_read(body, n)]
    values = [*(r.value for r in reads), *(v for n in computed for v in n.outputs if not _per_block(n, v))]
    shape = broadcast_shape([v.shape for v in values])
    cols: Dim = shape[-1] if shape else 1
    r8 = {n.output for n in body.nodes if n.op == "dynamic_quantize"}
    by_rows = any(not definition_of(n).elementwise for n in computed) and (cols != 1 or bool(r8))
    plan = _by_rows(body, reads, shape, r8) if by_rows else _elementwise(body, reads, shape)
    return plan


def _per_block(node: Node, value: Value) -> bool:
    return node.op == "dynamic_quantize" and value is not node.output and node.attrs.get("block", 0) != 0


def _by_rows(body: Graph, reads: list[Read], shape: tuple[Dim, ...], r8: set[Value]) -> Plan:
    cols = shape[-1]
    program = build_program(body, reads, [_spans(r.value, cols) for r in reads], one_column=False)
    results = [_result(program, n, v, v in r8) for v, n in zip(body.outputs, program.outputs, strict=True)]
    rank = len(shape)
    strides = [r.strides(rank)[:-1] for r in reads]
    for value, result in zip(body.outputs, results, strict=True):
        stored = (*value.shape[:-1], r8_pitch(value)) if result.r8 else value.shape
        strides.append(broadcast_strides(stored, rank)[:-1])
    along = [1] * len(strides)
    rows = Rows(Space(shape[:-1], tuple(strides)).merged(), cols, tuple(along))
    return Plan(_ops(body), program, reads, results, rows)


def _result(program: Program, n: int, value: Value, r8: bool = False) -> Result:
    instr = program.instrs[n]
    kind = "blocks" if instr.op in BLOCK_RESULTS else "columns" if instr.vector else "row"
    return Result(n, value.dtype, kind, r8)


def _ops(body: Graph) -> tuple[str, ...]:
    return tuple(n.op.removeprefix("dynamic_") for n in body.nodes)


def _spans(value: Value, cols: Dim) -> bool:
    return value.type.rank > 0 and (value.shape[-1] != 1 or cols == 1)


def _elementwise(body: Graph, reads: list[Read], shape: tuple[Dim, ...]) -> Plan:
    rank = len(shape)
    strides = (*(r.strides(rank) for r in reads), *(broadcast_strides(v.shape, rank) for v in body.outputs))
    rows = rows_of(Space(shape, strides), CHUNK)
    program = build_program(body, reads, [a != 0 for a in rows.along[:len(reads)]], one_column=True)
    results = [_result(program, n, v) for v, n in zip(body.outputs, program.outputs, strict=True)]
    return Plan(_ops(body), program, reads, results, rows)
