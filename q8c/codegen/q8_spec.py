"""What an int8 linear kernel computes: the static half of its contract, its name and its parameters."""
from __future__ import annotations

from dataclasses import dataclass

import llvmlite.ir as ir

from q8c.codegen.builder import I64, PTR
from q8c.codegen.layout import GROUP, PANEL, groups, panels
from q8c.errors import CompileError
from q8c.ir.q8 import MAX_DEPTH

ACTIVATIONS = ("none", "relu")


@dataclass(frozen=True)
class Q8LinearSpec:
    """y = act(scale_a * scale_w * sum_k a * (w - 127) + bias) + residual for R8 rows a and a Q8 weight w.

    Attributes:
        depth, cols: the weight's shape; rows are known at run time.
        bias, residual: whether these operands exist. The residual is added last.
        activation: one of ACTIVATIONS.
    """

    depth: int
    cols: int
    bias: bool = False
    activation: str = "none"
    residual: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.depth <= MAX_DEPTH or self.cols < 1:
            raise CompileError(f"int8 linear of {self.depth} x {self.cols}: expected depth 1 to {MAX_DEPTH}, cols >= 1")
        if self.activation not in ACTIVATIONS:
            raise CompileError(f"int8 linear: activation {self.activation!r}, expected one of {', '.join(ACTIVATIONS)}")

    @property
    def steps(self) -> int:
        """4-byte steps along depth."""
        return groups(self.depth)

    @property
    def lda(self) -> int:
        """Bytes from one R8 row to the next."""
        return GROUP * self.steps

    @property
    def panel_bytes(self) -> int:
        """Bytes of one packed panel of 16 columns."""
        return PANEL * GROUP * self.steps

    @property
    def panels(self) -> int:
        """Panels of the packed weight."""
        return panels(self.cols)

    @property
    def name(self) -> str:
        """The kernel's symbol, without the tile and tier: operation, formats, fused steps, shape."""
        fused = [part for part, used in (("bias", self.bias), (self.activation, self.activation != "none"),
                                         ("add", self.residual)) if used]
        return "_".join(["q8c_linear_r8_q8c_f32", *fused, f"k{self.depth}", f"n{self.cols}"])

    @property
    def operands(self) -> list[tuple[str, ir.Type]]:
        """What a strip of rows needs: pointers and strides, in order."""
        names = ["a", "row_scale", "row_sum", "w", "w_scale"]
        names += ["bias"] if self.bias else []
        operands = [(name, PTR) for name in names]
        if self.residual:
            operands += [("residual", PTR), ("ldr", I64)]
        return [*operands, ("y", PTR), ("ldy", I64)]

    @property
    def params(self) -> list[tuple[str, ir.Type]]:
        """The kernel's parameters, in order. Strides `ldy`, `ldr` are in elements."""
        return [*self.operands, ("rows", I64), ("threads", I64), ("counter", PTR)]
