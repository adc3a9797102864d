"""How an int8 product is cut into AMX tiles: results in tile registers, depth in steps."""
from __future__ import annotations

from dataclasses import dataclass

from q8c.codegen import amx
from q8c.codegen.builder import Builder, Operand, Value
from q8c.codegen.layout import GROUP, PANEL
from q8c.codegen.linear_spec import STEP_BYTES


@dataclass(frozen=True)
class Shape:
    """How the sums of a group lie in tile registers: tiles of 16 rows below each other, panels of 16 columns beside.

    Four tiles of sums, so that a product need not wait for the one before it.
    """

    row_tiles: int
    panels: int

    @property
    def rows(self) -> int:
        """Rows of a group, at most."""
        return amx.TILE_ROWS * self.row_tiles

    @property
    def sums(self) -> range:
        """The registers of the sums, row by row of tiles."""
        return range(self.row_tiles * self.panels)

    @property
    def left(self) -> range:
        """The registers of activations."""
        return range(self.sums.stop, self.sums.stop + self.row_tiles)

    @property
    def right(self) -> range:
        """The registers of weights, used in turn."""
        return range(self.left.stop, amx.REGISTERS)

    @property
    def stride(self) -> int:
        """Bytes from one row of a group's sums in memory to the next."""
        return 4 * PANEL * self.panels

    @property
    def bytes(self) -> int:
        """Bytes of a group's sums."""
        return self.rows * self.stride

    def place(self, tile: int) -> int:
        """Where a register's sums lie among a group's, in bytes."""
        i, j = divmod(tile, self.panels)
        return amx.TILE_ROWS * i * self.stride + STEP_BYTES * j


WIDE = Shape(2, 2)
FLAT = Shape(1, 4)
SINGLE = Shape(1, 1)


@dataclass(frozen=True)
class Depth:
    """How rows of `steps` 4-byte groups are cut into tiles.

    A step is `groups` of them, at most a tile's 16. What is left is a step too: the last `groups` groups of the row, of
    which those that were counted already are cleared in a copy of the rows. Rows lie `pitch` bytes apart.
    """

    steps: int
    pitch: int

    @property
    def groups(self) -> int:
        """4-byte groups of a step."""
        return min(self.steps, amx.TILE_BYTES // GROUP)

    @property
    def whole(self) -> int:
        """Steps that are whole."""
        return self.steps // self.groups

    @property
    def rest(self) -> int:
        """Groups in the last step if they are fewer than the others have."""
        return self.steps % self.groups

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return GROUP * self.steps

    @property
    def panel_bytes(self) -> int:
        """Bytes of a panel."""
        return STEP_BYTES * self.steps

    @property
    def left_bytes(self) -> int:
        """Bytes of a row in a step."""
        return GROUP * self.groups

    @property
    def right_bytes(self) -> int:
        """Bytes of a panel in a step."""
        return STEP_BYTES * self.groups


def register_bytes(depth: Depth, shape: Shape) -> list[int]:
    """Bytes in a row of each tile register."""
    return [depth.left_bytes if n in shape.left else STEP_BYTES for n in range(amx.REGISTERS)]


def register_rows(b: Builder, depth: Depth, shape: Shape, rows: Value) -> list[Operand]:
    """Rows of each tile register when a group has `rows` rows, more than fit in all tiles but the last."""
    last = b.sub(rows, amx.TILE_ROWS * (shape.row_tiles - 1))
    parts: list[Operand] = [*[amx.TILE_ROWS] * (shape.row_tiles - 1), last]
    of_sums = [parts[n // shape.panels] for n in shape.sums]
    return [*of_sums, *parts, *[depth.groups for _ in shape.right]]
