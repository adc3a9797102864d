"""The innermost code of linear kernels: a tile of rows x panels of columns whose sums stay in registers."""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from q8c.codegen import vmath
from q8c.codegen.builder import F32, I64, V16F, Builder, Value
from q8c.codegen.layout import PANEL
from q8c.codegen.linear_spec import STEP_BYTES, LinearSpec
from q8c.ir.ops.fused import GATE_COLS

_ACTIVATIONS: dict[str, Callable[[Builder, Value], Value]] = {
    "none": lambda b, x: x, "relu": lambda b, x: b.fmax(0.0, x), "silu": vmath.silu, "sigmoid": vmath.sigmoid,
    "tanh": vmath.tanh, "gelu": vmath.gelu, "gelu_tanh": vmath.gelu_tanh}
Step: TypeAlias = Callable[[list[Value], list[Value], int], list[Value]]


@dataclass(frozen=True)
class Tile:
    """The static shape of a tile: rows x panels of 16 columns, of which the last panel has `tail`.

    With `ahead`, every step of depth also asks for weights at the operand `ahead`, moving by `ahead_step` bytes.
    """

    rows: int
    panels: int
    tail: int = PANEL
    ahead: bool = False

    @property
    def unroll(self) -> int:
        """Steps of depth in the loop body: enough work to drown the loop's own."""
        return 2 if self.rows * self.panels >= 4 else 4

    @property
    def cols(self) -> int:
        """Columns that exist."""
        return PANEL * (self.panels - 1) + self.tail


def begins_lines(b: Builder, y: Value, ldy: Value) -> Value:
    """Whether every row of a result at `y`, `ldy` floats apart, begins a cache line."""
    either = b.or_(b.ir.ptrtoint(y, I64), b.mul(ldy, 4))
    return b.icmp("==", b.and_(either, STEP_BYTES - 1), 0)


def activated(b: Builder, spec: LinearSpec, panels: list[Value]) -> list[Value]:
    """The activation of 16 columns of each panel, or, gated, its product with the others: 16 results of two panels, the
    first 8 of one if that is left."""
    if not spec.gated:
        return [_ACTIVATIONS[spec.activation](b, x) for x in panels]
    found = []
    for one, other in zip(panels[::2], [*panels[1::2], panels[-1]], strict=False):
        firsts, seconds = (b.shuffle(one, other, [lane + first for first in (0, PANEL) for lane in half])
                           for half in (range(GATE_COLS), range(GATE_COLS, PANEL)))
        found.append(b.mul(_ACTIVATIONS[spec.activation](b, firsts), seconds))
    return found


class TileEmitter(ABC):
    """Emits one tile into an open function; `values` are the spec's operands by name."""

    def __init__(self, b: Builder, spec: LinearSpec, tile: Tile, values: dict[str, Value]) -> None:
        self.b = b
        self.spec = spec
        self.tile = tile
        self.values = values

    @staticmethod
    def prepare(b: Builder, spec: LinearSpec, rows: int, values: dict[str, Value]) -> dict[str, Value]:
        """More values, made once for all tiles of a strip from the operands of its `rows` rows."""
        return {}

    @abstractmethod
    def sums(self) -> list[list[Value]]:
        """The 16-lane sum of every row and panel."""

    @abstractmethod
    def scaled(self, total: Value, row: int, panel: int) -> Value:
        """A sum as a float, with the bias."""

    def emit(self) -> None:
        """The whole tile: sums, then scale, bias, activation and residual in registers."""
        sums = self.sums()
        if self.spec.streamed and self.tile.ahead:
            whole_lines = begins_lines(self.b, self.values["y"], self.values["ldy"])
            with self.b.ir.if_else(whole_lines) as (aligned, otherwise):
                with aligned:
                    self._results(sums, self.b.stream)
                with otherwise:
                    self._results(sums, self.b.store)
        else:
            self._results(sums, self.b.store)

    def _results(self, sums: list[list[Value]], store: Callable[[Value, Value], None]) -> None:
        """What becomes of the sums: whole panels through `store`."""
        b, values = self.b, self.values
        row_y, row_r = values["y"], values.get("residual")
        for r in range(self.tile.rows):
            ys = activated(b, self.spec, [self.scaled(sums[r][p], r, p) for p in range(self.tile.panels)])
            for p, y in enumerate(ys):
                if row_r is not None:
                    y = b.add(y, self._load(b.at(row_r, p * PANEL, F32), p))
                if self.spec.gated and 2 * p + 1 == self.tile.panels:
                    b.store_tail(y, b.at(row_y, p * PANEL, F32), GATE_COLS)
                elif self._is_tail(p):
                    b.store_tail(y, b.at(row_y, p * PANEL, F32), self.tile.tail)
                else:
                    store(y, b.at(row_y, p * PANEL, F32))
            row_y = b.at(row_y, values["ldy"], F32)
            row_r = b.at(row_r, values["ldr"], F32) if row_r is not None else None

    def column_values(self, name: str, panel: int) -> Value:
        """16 per-column floats of a panel."""
        return self.b.load(V16F, self.b.at(self.values[name], panel * PANEL, F32), align=STEP_BYTES)

    def _is_tail(self, panel: int) -> bool:
        return panel == self.tile.panels - 1 and self.tile.tail < PANEL

    def _load(self, address: Value, panel: int) -> Value:
        if self._is_tail(panel):
            return self.b.load_tail(V16F, address, self.tile.tail)
        return self.b.load(V16F, address)

    def start(self, pointers: Sequence[Value]) -> list[Value]:
        """The pointers `along_depth` moves: those given, to rows (4 bytes a step) and a panel, and the one ahead."""
        return [*pointers, self.values["ahead"]] if self.tile.ahead else list(pointers)

    def along_depth(self, accs: Sequence[Value], pointers: Sequence[Value], steps: int,
                    step: Step) -> tuple[list[Value], list[Value]]:
        """Run `step` for `steps` steps of depth, `tile.unroll` in a loop body.

        step(accs, pointers, number) gives the next accs; whether its number is odd is whether that of the step is.
        Returns accs and pointers after the last step.
        """
        b, unroll, count = self.b, self.tile.unroll, len(accs)
        ahead = [self.values["ahead_step"]] if self.tile.ahead else []
        strides: list[Value | int] = [4, self.spec.step_bytes, *ahead]

        def run(carried: Sequence[Value], number: int) -> list[Value]:
            accs, pointers = list(carried[:count]), list(carried[count:])
            for n in range(number):
                accs = step(accs, pointers[:2], n)
                if self.tile.ahead:
                    b.prefetch(pointers[2], 2)
                pointers = [b.at(p, s) for p, s in zip(pointers, strides, strict=True)]
            return [*accs, *pointers]

        carried = [*accs, *pointers]
        if steps >= unroll:
            carried = b.loop(0, steps // unroll, 1, carried, lambda _, carried: run(carried, unroll))
        carried = run(carried, steps % unroll)
        return carried[:count], carried[count:]
