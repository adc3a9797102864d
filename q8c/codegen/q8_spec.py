"""The int8 linear layer's contract."""
from __future__ import annotations

from dataclasses import dataclass

import llvmlite.ir as ir

from q8c.codegen.builder import I64, PTR
from q8c.codegen.layout import GROUP, groups
from q8c.codegen.linear_spec import STEP_BYTES, LinearSpec
from q8c.errors import CompileError
from q8c.ir import q4, q8
from q8c.ir.memory import wide_pitch


@dataclass(frozen=True)
class Q8LinearSpec(LinearSpec):
    """y = act(sum over blocks of row_scale * w_scale * sum_k (a - row_zero) * (w - 127) + bias) + residual.

    For R8 rows a and a Q8 weight w. Attributes beyond those of LinearSpec:
        block: steps of depth that share scales, one of `q8.FORMATS`; 0 for all of them. Rows then have a scale, a sum
            and a zero point per block, one row after the other.
        zero_point: whether rows have zero points.
        half: whether the weight's scales, which are per block then, are half floats.
        bits: of a weight in memory, 8 or 4 (`layout.pack_q4`); in registers it has 8.
        counted: whether it is told how many new tokens each sequence has that are no padding.
        wide: whether rows lie `wide_pitch` apart; where products are in bfloat16 so are they then, but for those of
            sequences with few tokens, if that is told.
        offsets: whether those of 4 bits become Q8 by numbers for each column and block (`layout.pack_offsets`), and are
            not simply 8 more than what they stand for.
    """

    block: int = 0
    zero_point: bool = False
    half: bool = False
    bits: int = 8
    offsets: bool = False
    counted: bool = False
    wide: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth > q8.MAX_DEPTH:
            raise CompileError(f"int8 linear of depth {self.depth}: expected at most {q8.MAX_DEPTH}")
        if self.block not in q8.FORMATS.values():
            raise CompileError(f"int8 linear: block {self.block}, expected one of {sorted(q8.FORMATS.values())}")
        if self.half and not self.block:
            raise CompileError("int8 linear: scales per column are float32, not half floats")
        if self.bits != 8 and (self.bits != 4 or self.depth % q4.DEPTH_STEP):
            raise CompileError(f"int8 linear of depth {self.depth}: weights of {self.bits} bits, expected 8, or 4 and "
                               f"a depth in steps of {q4.DEPTH_STEP}")

    @property
    def formats(self) -> str:
        """R8 rows (z: with zero points, n: counted, w: wide), a Q8 weight with a scale per channel or block, a float
        result."""
        scales = f"b{self.block}{'' if self.half else 'f'}" if self.block else "c"
        weight = f"q{self.bits}{'z' if self.offsets else ''}"
        rows = f"r8{'z' if self.zero_point else ''}{'n' if self.counted else ''}{'w' if self.wide else ''}"
        return f"{rows}_{weight}{scales}_f32"

    @property
    def lda(self) -> int:
        """Bytes from one row of `a` to the next."""
        return wide_pitch(self.depth) if self.wide else super().lda

    @property
    def steps(self) -> int:
        """4-byte groups along depth."""
        return groups(self.depth)

    @property
    def step_bytes(self) -> int:
        """Bytes of one packed panel for one step of depth."""
        return STEP_BYTES * self.bits // 8

    @property
    def weight_zero(self) -> int:
        """What stands for the weight 0 in registers."""
        return q8.ZERO_POINT if self.bits == 8 or self.offsets else q4.NIBBLE_ZERO

    @property
    def blocks(self) -> int:
        """Scales along depth."""
        return q8.block_count(self.depth, self.block)

    @property
    def block_steps(self) -> list[int]:
        """4-byte groups of each block: all alike but perhaps the last."""
        size = self.block // GROUP if self.block else self.steps
        return [min(size, self.steps - first) for first in range(0, self.steps, size)]

    @property
    def row_values(self) -> dict[str, int]:
        """Scale (f32), sum of the row's int8 values (i32) and zero point (i32) of each block."""
        names = ["row_scale", "row_sum", *(["row_zero"] if self.zero_point else [])]
        return dict.fromkeys(names, self.blocks)

    @property
    def col_values(self) -> dict[str, int]:
        """Scale (`layout.pack_scales`), column sums (`layout.pack_sums`) and offset (u8) of each block, bias."""
        sums = {"w_sum": (2 if self.block else 4) * self.blocks} if self.zero_point else {}
        offsets = {"w_offset": self.blocks} if self.offsets else {}
        return {"w_scale": (2 if self.half else 4) * self.blocks, **sums, **offsets, **super().col_values}

    @property
    def memory(self) -> list[tuple[str, ir.Type]]:
        """The parameter that points to memory of the thread's own, where AMX may need some: it widens weights of 4 bits
        to 8, and those of wide rows to bfloat16."""
        return [("scratch", PTR)] if self.wide or (self.bits == 4 and not self.block) else []

    @property
    def params(self) -> list[tuple[str, ir.Type]]:
        """The kernel's parameters."""
        return [*super().params, *self.counts, *self.memory]

    @property
    def counts(self) -> list[tuple[str, ir.Type]]:
        """What is told of sequences."""
        return [("counts", PTR), ("tokens", I64)] if self.counted else []

    @property
    def pointers(self) -> list[str]:
        """Operands in the order of the node's, then the result."""
        a, w, *rest, y = super().pointers
        return [a, "row_scale", "row_sum", w, "w_scale", *rest, *(["row_zero", "w_sum"] if self.zero_point else []),
                *(["w_offset"] if self.offsets else []), y]
