"""The int8 linear layer's contract."""
from __future__ import annotations

from dataclasses import dataclass

from q8c.codegen.layout import GROUP, groups
from q8c.codegen.linear_spec import LinearSpec
from q8c.errors import CompileError
from q8c.ir import q8


@dataclass(frozen=True)
class Q8LinearSpec(LinearSpec):
    """y = act(sum over blocks of row_scale * w_scale * sum_k (a - row_zero) * (w - 127) + bias) + residual.

    For R8 rows a and a Q8 weight w. Attributes beyond those of LinearSpec:
        block: steps of depth that share scales, one of `q8.FORMATS`; 0 for all of them. Rows then have a scale, a sum
            and a zero point per block, one row after the other.
        zero_point: whether rows have zero points.
        half: whether the weight's scales, which are per block then, are half floats.
    """

    block: int = 0
    zero_point: bool = False
    half: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth > q8.MAX_DEPTH:
            raise CompileError(f"int8 linear of depth {self.depth}: expected at most {q8.MAX_DEPTH}")
        if self.block not in q8.FORMATS.values():
            raise CompileError(f"int8 linear: block {self.block}, expected one of {sorted(q8.FORMATS.values())}")
        if self.half and not self.block:
            raise CompileError("int8 linear: scales per column are float32, not half floats")

    @property
    def formats(self) -> str:
        """R8 rows (z: with zero points), a Q8 weight with a scale per channel or block, a float result."""
        scales = f"b{self.block}{'' if self.half else 'f'}" if self.block else "c"
        return f"r8{'z' if self.zero_point else ''}_q8{scales}_f32"

    @property
    def steps(self) -> int:
        """4-byte groups along depth."""
        return groups(self.depth)

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
        """Scale (`layout.pack_scales`) and column sums (`layout.pack_sums`) of each block, bias."""
        sums = {"w_sum": 4 * self.blocks} if self.zero_point else {}
        return {"w_scale": (2 if self.half else 4) * self.blocks, **sums, **super().col_values}

    @property
    def pointers(self) -> list[str]:
        """Operands in the order of the node's, then the result."""
        a, w, *rest, y = super().pointers
        return [a, "row_scale", "row_sum", w, "w_scale", *rest, *(["row_zero", "w_sum"] if self.zero_point else []), y]
