"""What a linear kernel computes: the static half of its contract, its name and its parameters."""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import llvmlite.ir as ir

from q8c.codegen.builder import I64, PTR
from q8c.codegen.layout import PANEL, panels
from q8c.errors import CompileError

ACTIVATIONS = ("none", "relu")
STEP_BYTES = 64
"""Bytes of one panel of packed weights for one step of depth; a row has 4 bytes for it."""


@dataclass(frozen=True)
class LinearSpec:
    """y = act(rows times weight + bias) + residual, rows known at run time.

    Attributes:
        depth, cols: the weight's shape.
        bias, residual: whether these operands exist. The residual is added last.
        activation: one of ACTIVATIONS.
    """

    depth: int
    cols: int
    bias: bool = False
    activation: str = "none"
    residual: bool = False

    FORMATS: ClassVar[str]
    ROW_VALUES: ClassVar[tuple[str, ...]] = ()
    """Names of operands with one 4-byte value per row."""
    COL_VALUES: ClassVar[tuple[str, ...]] = ()
    """Names of operands with one float per column, padded to panels."""

    def __post_init__(self) -> None:
        if self.depth < 1 or self.cols < 1:
            raise CompileError(f"linear of {self.depth} x {self.cols}: expected depth >= 1, cols >= 1")
        if self.activation not in ACTIVATIONS:
            raise CompileError(f"linear: activation {self.activation!r}, expected one of {', '.join(ACTIVATIONS)}")

    @property
    def steps(self) -> int:
        """Steps along depth, 4 bytes of a row each."""
        raise NotImplementedError

    @property
    def lda(self) -> int:
        """Bytes from one row of `a` to the next."""
        return 4 * self.steps

    @property
    def panel_bytes(self) -> int:
        """Bytes of one packed panel of 16 columns."""
        return STEP_BYTES * self.steps

    @property
    def panels(self) -> int:
        """Panels of the packed weight."""
        return panels(self.cols)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the whole packed weight."""
        return self.panels * self.panel_bytes

    @property
    def name(self) -> str:
        """The kernel's symbol without tile and tier: operation, formats, fused steps, shape."""
        fused = [part for part, used in (("bias", self.bias), (self.activation, self.activation != "none"),
                                         ("add", self.residual)) if used]
        return "_".join([f"q8c_linear_{self.FORMATS}", *fused, f"k{self.depth}", f"n{self.cols}"])

    @property
    def col_values(self) -> list[str]:
        """Operands with one float per column."""
        return [*self.COL_VALUES, *(["bias"] if self.bias else [])]

    @property
    def operands(self) -> list[tuple[str, ir.Type]]:
        """What a strip of tiles needs, in order: pointers, each output-shaped one followed by its row stride."""
        operands = [(name, PTR) for name in ("a", *self.ROW_VALUES, "w", *self.col_values)]
        if self.residual:
            operands += [("residual", PTR), ("ldr", I64)]
        return [*operands, ("y", PTR), ("ldy", I64)]

    @property
    def params(self) -> list[tuple[str, ir.Type]]:
        """The kernel's parameters, in order. Strides `ldy`, `ldr` are in elements."""
        return [*self.operands, ("rows", I64), ("threads", I64), ("counter", PTR)]


def tile_name(rows: int, panels: int) -> str:
    """A tile in a symbol: rows x columns."""
    return f"{rows}x{PANEL * panels}"
