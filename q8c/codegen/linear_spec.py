"""What a linear kernel computes: the static half of its contract, its name and its parameters."""
from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import llvmlite.ir as ir

from q8c.codegen.builder import I64, PTR
from q8c.codegen.layout import PANEL, panels
from q8c.errors import CompileError
from q8c.ir.ops.fused import ACTIVATIONS

STEP_BYTES = 64
"""Bytes of 16 columns for one step of depth, in a register and mostly in memory too; a row has 4 bytes for it."""


@dataclass(frozen=True)
class LinearSpec(ABC):
    """y = act(rows times weight + bias) + residual, rows known at run time.

    Attributes:
        depth, cols: the weight's shape.
        bias, residual: whether these operands exist. The residual is added last.
        activation: one of ACTIVATIONS.
        gated: whether the result is act(columns) * columns, of 8 and 8 in turn: one for two of the weight.
        streamed: whether results of many rows go to memory past the caches, where they are aligned to cache lines.
    """

    depth: int
    cols: int
    bias: bool = False
    activation: str = "none"
    residual: bool = False
    streamed: bool = False
    gated: bool = False

    def __post_init__(self) -> None:
        if self.depth < 1 or self.cols < 1:
            raise CompileError(f"linear of {self.depth} x {self.cols}: expected depth >= 1, cols >= 1")
        if self.activation not in ACTIVATIONS:
            raise CompileError(f"linear: activation {self.activation!r}, expected one of {', '.join(ACTIVATIONS)}")
        if self.gated and (self.cols % PANEL or self.residual):
            raise CompileError(f"gated linear of {self.cols} columns: expected whole panels and no residual")

    @property
    @abstractmethod
    def formats(self) -> str:
        """Element formats of rows, weight and result, as part of the name."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Steps along depth, 4 bytes of a row each."""

    @property
    def row_values(self) -> dict[str, int]:
        """Operands that belong to rows beside `a`: how many 4-byte values each row has, without gaps."""
        return {}

    @property
    def col_values(self) -> dict[str, int]:
        """Operands that belong to columns, in panels: how many bytes each column has."""
        return {"bias": 4} if self.bias else {}

    @property
    def result_cols(self) -> int:
        """Columns of the result."""
        return self.cols // 2 if self.gated else self.cols

    @property
    def result_bytes(self) -> int:
        """Bytes of a result's row for each column of the weight."""
        return 2 if self.gated else 4

    @property
    def lda(self) -> int:
        """Bytes from one row of `a` to the next."""
        return 4 * self.steps

    @property
    def step_bytes(self) -> int:
        """Bytes of one packed panel of 16 columns for one step of depth."""
        return STEP_BYTES

    @property
    def panel_bytes(self) -> int:
        """Bytes of one packed panel of 16 columns."""
        return self.step_bytes * self.steps

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
                                         ("gate", self.gated), ("add", self.residual), ("streamed", self.streamed))
                 if used]
        return "_".join([f"q8c_linear_{self.formats}", *fused, f"k{self.depth}", f"n{self.cols}"])

    @property
    def pointers(self) -> list[str]:
        """Operands in the order of the node's, then the result."""
        present = {"bias": self.bias, "residual": self.residual}
        return [name for name in ("a", "w", "bias", "residual", "y") if present.get(name, True)]

    @property
    def counts(self) -> list[tuple[str, ir.Type]]:
        """Parameters `counts`, how many new tokens of each sequence are no padding (i64), and `tokens`, how many rows
        each has here; if that is told."""
        return []

    @property
    def operands(self) -> list[tuple[str, ir.Type]]:
        """What a strip of tiles needs, in order: pointers, residual and result followed by their row strides."""
        strides = {"residual": [("ldr", I64)], "y": [("ldy", I64)]}
        return [operand for name in self.pointers for operand in [(name, PTR), *strides.get(name, [])]]

    @property
    def params(self) -> list[tuple[str, ir.Type]]:
        """The kernel's parameters, in order. Strides `ldy`, `ldr` are in elements."""
        return [*self.operands, ("rows", I64), ("threads", I64), ("queue", PTR)]


def tile_name(rows: int, panels: int) -> str:
    """A tile in a symbol: rows x columns."""
    return f"{rows}x{PANEL * panels}"
