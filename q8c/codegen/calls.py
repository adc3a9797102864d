"""What goes with every kernel call of a run, as functions: the calls themselves are most of the code of a long model,
and LLVM takes a millisecond for some twenty instructions of them."""
from __future__ import annotations

from dataclasses import dataclass

import llvmlite.ir as ir

from q8c.codegen import frame as frames
from q8c.codegen.builder import I64, PTR, Builder, Value
from q8c.codegen.targets import Tier
from q8c.codegen.units import shared

PIECES_PER_THREAD = 8
"""So that a thread slowed by others leaves little for the rest to wait for."""
_BEGUN, _ENDED, _PIECES = "q8c.begun", "q8c.ended", "q8c.pieces"


@dataclass(frozen=True)
class Helpers:
    """The functions, for calls from a module.

    `begun(frame, place)` and `ended(frame, place)` note the time in the stamp that lies `place` bytes behind the first,
    if anybody wants it. Where `begun` finds a time, it is the first step's of the same node and stays.
    `pieces(threads, worth)` is into how many pieces to cut a kernel's work that is worth so many.
    """

    begun: ir.Function
    ended: ir.Function
    pieces: ir.Function


def helpers(module: ir.Module, tier: Tier) -> Helpers:
    """The functions, generated if they are not known."""
    def emit(unit: ir.Module) -> None:
        _emit_note(unit, tier, _BEGUN)
        _emit_note(unit, tier, _ENDED)
        _emit_pieces(unit, tier)

    return Helpers(*shared(module, (_BEGUN, _ENDED, _PIECES), emit))


def _emit_note(module: ir.Module, tier: Tier, name: str) -> None:
    b = Builder(module, tier, name, [("frame", PTR), ("place", I64)], internal=True)
    stamps = b.load(PTR, b.at(b.arg("frame"), frames.STAMPS, I64))
    with b.if_(b.icmp("!=", b.ir.ptrtoint(stamps, I64), 0), likely=False):
        stamp = b.at(stamps, b.arg("place"))
        now = b.clock()
        if name == _BEGUN:
            noted = b.load(I64, stamp)
            now = b.select(b.icmp("==", noted, 0), now, noted)
        b.store(now, stamp)
    b.ret()


def _emit_pieces(module: ir.Module, tier: Tier) -> None:
    """A thread alone takes all as one; parts are the same rows in all kernels."""
    params: list[tuple[str, Value]] = [("threads", I64), ("worth", I64)]
    b = Builder(module, tier, _PIECES, params, I64, internal=True)
    threads = b.arg("threads")
    count = b.imin(b.mul(threads, PIECES_PER_THREAD), b.arg("worth"))
    whole = b.mul(b.ir.udiv(count, threads), threads)
    b.ret(b.select(b.icmp("==", threads, 1), 1, b.select(b.icmp(">", whole, 0), whole, count)))
