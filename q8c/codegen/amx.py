"""AMX: eight tile registers of up to 16 rows x 64 bytes, and products of whole tiles.

A thread says what shape each register has (`configure`), loads, multiplies and stores tiles, and gives the unit back
(`release`), after which its state costs nothing in a context switch. Registers are named by number in the code.
"""
from __future__ import annotations

from collections.abc import Sequence

from q8c.codegen.builder import I8, I16, I64, VOID, Builder, Operand, Value, constant
from q8c.ir.memory import CACHE_LINE

TILE_ROWS = 16
TILE_BYTES = 64
"""Bytes of a tile's row, at most."""
REGISTERS = 8
_PALETTE, _ROW_BYTES, _ROWS = 0, 16, 48  # offsets in the 64 bytes of a configuration


class TileShapes:
    """The configuration of the tile registers, in memory of the function that makes it."""

    def __init__(self, b: Builder, row_bytes: Sequence[int]) -> None:
        """Registers 0, 1, ... have rows of so many bytes; how many rows is said in `configure`."""
        self.b = b
        self.address = b.scratch(CACHE_LINE)
        for at in range(0, CACHE_LINE, 8):
            b.store(constant(I64, 0), b.at(self.address, at))
        b.store(constant(I8, 1), b.at(self.address, _PALETTE))
        for tile, size in enumerate(row_bytes):
            b.store(constant(I16, size), b.at(self.address, _ROW_BYTES + 2 * tile))

    def configure(self, rows: Sequence[Operand]) -> None:
        """Give each register its rows (1 to 16) and zero them all; some 150 cycles."""
        b = self.b
        for tile, count in enumerate(rows):
            byte = constant(I8, count) if isinstance(count, (int, float)) else b.trunc(count, I8)
            b.store(byte, b.at(self.address, _ROWS + tile))
        b.intrinsic("llvm.x86.ldtilecfg", [self.address], VOID)


def release(b: Builder) -> None:
    """Give the tile registers back."""
    b.intrinsic("llvm.x86.tilerelease", [], VOID)


def zero(b: Builder, tile: int) -> None:
    """Clear a tile."""
    b.intrinsic("llvm.x86.tilezero", [constant(I8, tile)], VOID)


def load(b: Builder, tile: int, address: Value, stride: Operand) -> None:
    """Load a tile whose rows are `stride` bytes apart."""
    b.intrinsic("llvm.x86.tileloadd64", [constant(I8, tile), address, _i64(stride)], VOID)


def load_once(b: Builder, tile: int, address: Value, stride: Operand) -> None:
    """Load a tile of what the first-level cache need not keep: what is there already stays."""
    b.intrinsic("llvm.x86.tileloaddt164", [constant(I8, tile), address, _i64(stride)], VOID)


def store(b: Builder, tile: int, address: Value, stride: Operand) -> None:
    """Store a tile to rows `stride` bytes apart."""
    b.intrinsic("llvm.x86.tilestored64", [constant(I8, tile), address, _i64(stride)], VOID)


def dot_s8u8(b: Builder, total: int, left: int, right: int) -> None:
    """Tile of int32 += tile of s8 rows times a tile of u8, 4 steps of depth by 16 columns in each row of it."""
    _product(b, "tdpbsud", total, left, right)


def dot_bf16(b: Builder, total: int, left: int, right: int) -> None:
    """Tile of float32 += tile of bf16 rows times a tile of bf16, 2 steps of depth by 16 columns in each row of it."""
    _product(b, "tdpbf16ps", total, left, right)


def _product(b: Builder, name: str, *tiles: int) -> None:
    b.intrinsic(f"llvm.x86.{name}", [constant(I8, t) for t in tiles], VOID)


def _i64(value: Operand) -> Value:
    return constant(I64, value) if isinstance(value, (int, float)) else value
