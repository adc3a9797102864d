"""The int8 linear layer's contract."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from q8c.codegen.layout import groups
from q8c.codegen.linear_spec import LinearSpec
from q8c.errors import CompileError
from q8c.ir.q8 import MAX_DEPTH


@dataclass(frozen=True)
class Q8LinearSpec(LinearSpec):
    """y = act(row_scale * w_scale * sum_k a * (w - 127) + bias) + residual for R8 rows a and a Q8 weight w."""

    FORMATS: ClassVar[str] = "r8_q8c_f32"
    ROW_VALUES: ClassVar[tuple[str, ...]] = ("row_scale", "row_sum")
    COL_VALUES: ClassVar[tuple[str, ...]] = ("w_scale",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth > MAX_DEPTH:
            raise CompileError(f"int8 linear of depth {self.depth}: expected at most {MAX_DEPTH}")

    @property
    def steps(self) -> int:
        """4-byte groups along depth."""
        return groups(self.depth)
