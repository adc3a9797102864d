"""How threads share the pieces of a kernel's work: each draws those of its own part, then those others have left.

A thread's part is the same stretch of every kernel's pieces, so that it mostly finds what it wrote itself: reading what
another core wrote was measured at 6 ns a cache line on a server, half again the time of row kernels.

Every thread has a queue of its own to draw with, 4 int64 words: the address of the run's slots, the number of the
kernel in the run (ascending from 1), the thread's number, the number of threads. A slot is a cache line per thread,
zero when the run begins: in the high half the number of the last kernel drawn from it, in the low half how many pieces
of the thread's part are gone.
"""
from __future__ import annotations

import llvmlite.ir as ir

from q8c.codegen.builder import I64, PTR, Builder, Value
from q8c.codegen.targets import Tier
from q8c.codegen.units import shared

SLOTS, KERNEL, THREAD, THREADS = range(4)
QUEUE_WORDS = 4
SLOT_BYTES = 64
_DRAW = "q8c.draw"


def draw(b: Builder, queue: Value, count: Value) -> Value:
    """The next of `count` pieces, -1 if there are no more."""
    function, = shared(b.module, [_DRAW], lambda unit: _emit_draw(unit, b.tier))
    return b.ir.call(function, [queue, count])


def _emit_draw(module: ir.Module, tier: Tier) -> None:
    b = Builder(module, tier, _DRAW, [("queue", PTR), ("count", I64)], I64, internal=True)
    kernel, thread, threads = (b.load(I64, b.at(b.arg("queue"), n, I64)) for n in (KERNEL, THREAD, THREADS))
    slots = b.load(PTR, b.at(b.arg("queue"), SLOTS, I64))
    count = b.arg("count")

    def more(state: list[Value]) -> Value:
        return b.and_(b.icmp("<", state[0], threads), b.icmp("<", state[1], 0))

    def look(state: list[Value]) -> list[Value]:
        owner = b.add(thread, state[0])
        owner = b.select(b.icmp("<", owner, threads), owner, b.sub(owner, threads))
        first, last = (b.ir.udiv(b.mul(count, n), threads) for n in (owner, b.add(owner, 1)))
        slot = b.at(slots, b.mul(owner, SLOT_BYTES))
        taken = _take(b, slot, kernel, b.sub(last, first))
        return [b.add(state[0], 1), b.select(b.icmp("<", taken, 0), taken, b.add(first, taken))]

    _, found = b.while_([ir.Constant(I64, 0), ir.Constant(I64, -1)], more, look)
    b.ret(found)


def _take(b: Builder, slot: Value, kernel: Value, size: Value) -> Value:
    """The next of a part's `size` pieces, -1 if there are no more; a slot that is at a later kernel has none."""
    none, retry = ir.Constant(I64, -1), ir.Constant(I64, -2)

    def some() -> list[Value]:
        def step(state: list[Value]) -> list[Value]:
            now = b.ir.load_atomic(slot, "acquire", 8, typ=I64)
            at = b.lshr(now, 32)
            gone = b.select(b.icmp("==", at, kernel), b.and_(now, 2**32 - 1), 0)
            left = b.and_(b.icmp("<=", at, kernel), b.icmp("<", gone, size))

            def swap() -> list[Value]:
                after = b.or_(b.shl(kernel, 32), b.add(gone, 1))
                done = b.ir.extract_value(b.ir.cmpxchg(slot, now, after, "acq_rel", "monotonic"), 1)
                return [b.select(done, gone, retry)]
            return b.if_else(left, swap, lambda: [none])

        return b.while_([retry], lambda state: b.icmp("==", state[0], retry), step)

    taken, = b.if_else(b.icmp(">", size, 0), some, lambda: [none])
    return taken
