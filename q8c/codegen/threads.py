"""Worker threads and the phases of a run they share, emitted into a model's own image.

A run is a list of phases, each a few kernels that do not depend on each other. Threads draw the pieces of a kernel
(`draw`), so a phase is over as soon as all pieces are drawn and nobody is still at one: no phase waits for a thread
that has not come, because it still sleeps or another program has its core, and one that comes late skips what is over.
Whoever ends a phase is in the next one at once.
Phases are numbered on and on from run to run, so that a thread late by whole runs enters none that is not its own, and
nothing of a frame is read outside of a phase: a run that is over waits for nobody.

Every wait spins for a while with `pause` and then sleeps in a futex, so that a thread whose peer lost its core gives up
its own; whoever ends a wait makes a system call only if somebody sleeps.

The pool is 32 int64 words and a slot of `draw` for each thread, 64-byte aligned and zero but for [2] and [3]; words
waited on are 32-bit futexes:
    0   launches so far                          16  the phase that is open, and in the high half threads in it
    1   workers asleep between runs              17  threads asleep in a run
    2   address of a count of the threads that   24  1 while a run, or the end, has the workers
        are in runs of the process               25  threads asleep until it is over
    3   how many there should be at most
    8   the frame to run; null ends the workers
    9   the first phase of the run
    10  the threads of the run                   32  slots
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from llvmlite import ir

from q8c.codegen.builder import I32, I64, PTR, Builder
from q8c.codegen.draw import KERNEL, QUEUE_WORDS, SLOT_BYTES, SLOTS, THREAD, THREADS
from q8c.codegen.futex import ANY, IDLE_CYCLES, SPIN_CYCLES, Waits, define, waits_of, word_at
from q8c.codegen.targets import Tier
from q8c.codegen.units import shared, unit_of

RUN, WORKER, LAUNCH = "q8c_run", "q8c_worker", "q8c_launch"
_ENTER, _LEAVE, _RUN_ALL = "q8c.enter", "q8c.leave", "q8c.body"

_I1, _I32, _I64, _POINTER = ir.IntType(1), ir.IntType(32), ir.IntType(64), ir.PointerType()
_NULL = ir.Constant(_POINTER, None)
_LAUNCHES, _IDLE, _TAKEN, _CORES, _FRAME, _FIRST, _THREADS = 0, 1, 2, 3, 8, 9, 10
_STATE, _WAITING, _BUSY, _QUEUED, _SLOTS = 16, 17, 24, 25, 32
_ONE_THREAD = 1 << 32
_BODY = [("place", PTR), ("slots", PTR), ("pool", PTR), ("first", I32), ("tid", I64)]
PART = 32
"""Phases in one function: LLVM's time for a function grows faster than the function."""


class Body(Builder):
    """The function `i32 q8c.body(place, slots, pool, first, tid)` that runs all phases of a frame and returns how many
    there are, under construction.

    `place` points to the frame's address, `slots` to those of `draw`, `first` is the number of the first phase, `tid`
    the thread's; where there are no other threads `pool` is null. After `PART` phases it goes on in another function,
    which it calls last.

    With it come the image's entries, which return frame[1] where they return anything:

    `i64 q8c_run(frame, tid)` runs a frame, whose frame[0] must be 1, on the calling thread. `void q8c_worker(pool,
    tid)` is a worker's life, with tid from 1 on; it may begin before or after the first launch. `i64 q8c_launch(pool,
    frame)` runs a frame on the calling thread and up to frame[0] - 1 workers, fewer where other runs of the process
    have the cores, none where one has the workers; frame[0] becomes how many threads it was given. With a null frame it
    tells the workers to return, after the run that has them.
    """

    def __init__(self, module: ir.Module, tier: Tier, phases: int) -> None:
        """The run has so many phases."""
        super().__init__(module, tier, _RUN_ALL, _BODY, I32, internal=True)
        if unit_of(module) is not None:
            self.function.linkage = "hidden"
        self.phases = phases
        self._begun = self._kernels = 0
        self._enter, self._leave = shared(module, (_ENTER, _LEAVE), _emit_threads)
        self._begin(_I32(0))

    def _begin(self, inside: ir.Value) -> None:
        """Begin a function of phases; the thread is inside of the first of them (1) or not (0)."""
        self._inside = self.scratch(4)
        self.store(inside, self._inside)
        self._queue = self.scratch(8 * QUEUE_WORDS)
        for word, value in ((SLOTS, self.arg("slots")), (THREAD, self.arg("tid"))):
            self.store(value, self.at(self._queue, word, I64))

    @contextmanager
    def phase(self) -> Iterator[ir.Value]:
        """Code for the threads that come while the next phase is open; gives the frame. What was written in phases
        before is visible."""
        if self._begun and self._begun % PART == 0:
            self._go_on()
        number = self.add(self.arg("first"), self._begun)
        self._begun += 1
        inside = self.load(I32, self._inside)
        with self.if_(self.ir.call(self._enter, [self.arg("pool"), number, inside])):
            frame = self.load(PTR, self.arg("place"))
            self.store(self.load(I64, frame), self.at(self._queue, THREADS, I64))
            yield frame
            stay = _I32(int(self._begun < self.phases))
            self.store(self.ir.call(self._leave, [self.arg("pool"), stay]), self._inside)

    def _go_on(self) -> None:
        """What follows is in another function."""
        caller, args = self.ir, [*(self.arg(name) for name, _ in _BODY), self.load(I32, self._inside)]
        super().__init__(self.module, self.tier, f"{_RUN_ALL}.{self._begun // PART}", [*_BODY, ("inside", I32)], I32,
                         internal=True)
        caller.ret(caller.call(self.function, args))
        self._begin(self.arg("inside"))

    def queue(self, turns: int = 1) -> ir.Value:
        """What the kernel called next draws its pieces with, which may count up its number `turns` - 1 times."""
        self.store(ir.Constant(I64, self._kernels + 1), self.at(self._queue, KERNEL, I64))
        self._kernels += turns
        return self._queue

    def finish(self) -> None:
        """Close the body."""
        self.ret(self.phases)


def _emit_threads(module: ir.Module) -> None:
    """What all images have, whatever their body does."""
    _emit_enter(module)
    _emit_leave(module)
    unit = unit_of(module)
    if unit is not None:
        unit.declare_outside(_RUN_ALL, ir.FunctionType(_I32, [kind for _, kind in _BODY]))
    body = module.globals[_RUN_ALL]
    _emit_run(module, body)
    _emit_worker(module, body)
    _emit_launch(module, body)


def _emit_enter(module: ir.Module) -> None:
    """enter(pool, phase, inside): waits until the phase is open and is in it, or tells that it is over. A thread that
    opened the phase is inside (1, not 0)."""
    function, b = define(module, _ENTER, _I1, _POINTER, _I32, _I32)
    pool, phase, inside = function.args
    waits = waits_of(module)
    again, open_, join, early, entered, over = map(
        b.append_basic_block, ("again", "open", "join", "early", "entered", "over"))
    b.cbranch(b.or_(b.icmp_unsigned("!=", inside, _I32(0)), b.icmp_unsigned("==", pool, _NULL)), entered, again)

    b.position_at_end(again)
    state = word_at(b, pool, _STATE)
    now = b.load_atomic(state, "acquire", 8, typ=_I64)
    at = b.trunc(now, _I32)
    ahead = b.sub(at, phase)
    b.cbranch(b.icmp_signed(">", ahead, _I32(0)), over, open_)
    b.position_at_end(open_)
    b.cbranch(b.icmp_signed("<", ahead, _I32(0)), early, join)

    b.position_at_end(early)
    b.call(waits.wait, [state, at, word_at(b, pool, _WAITING), _I32(ANY), _I64(SPIN_CYCLES)])
    b.branch(again)
    b.position_at_end(join)
    swap = b.cmpxchg(state, now, b.add(now, _I64(_ONE_THREAD)), "acq_rel", "monotonic")
    b.cbranch(b.extract_value(swap, 1), entered, again)
    b.position_at_end(entered)
    b.ret(_I1(1))
    b.position_at_end(over)
    b.ret(_I1(0))


def _emit_leave(module: ir.Module) -> None:
    """leave(pool, stay): the thread has drawn no more piece; the last one to leave opens the next phase, and if it is
    to stay is in it at once. Tells whether the thread is.

    Every access to a line that other cores write costs some 100 ns: so the count goes down without a look at it."""
    function, b = define(module, _LEAVE, _I32, _POINTER, _I32)
    pool, stay = function.args
    waits = waits_of(module)
    count, last, opened, done, gone = map(b.append_basic_block, ("count", "last", "opened", "done", "gone"))
    b.cbranch(b.icmp_unsigned("==", pool, _NULL), gone, count)

    b.position_at_end(count)
    state = word_at(b, pool, _STATE)
    left = b.sub(b.atomic_rmw("sub", state, _I64(_ONE_THREAD), "seq_cst"), _I64(_ONE_THREAD))
    b.cbranch(b.icmp_unsigned("<", left, _I64(_ONE_THREAD)), last, gone)
    b.position_at_end(last)
    following = b.add(b.zext(b.add(b.trunc(left, _I32), _I32(1)), _I64), b.shl(b.zext(stay, _I64), _I64(32)))
    swap = b.cmpxchg(state, left, following, "seq_cst", "monotonic")  # fails if a late thread has come meanwhile
    b.cbranch(b.extract_value(swap, 1), opened, gone)
    b.position_at_end(opened)
    b.call(waits.wake, [state, word_at(b, pool, _WAITING), _I32(ANY)])
    b.branch(done)
    b.position_at_end(done)
    b.ret(stay)
    b.position_at_end(gone)
    b.ret(_I32(0))


def _emit_run(module: ir.Module, body: ir.Function) -> None:
    function, b = define(module, RUN, _I64, _POINTER, _I64, internal=False)
    frame, tid = function.args
    _run_alone(b, body, frame, tid)
    b.ret(b.load(word_at(b, frame, 1), typ=_I64))


def _run_alone(b: ir.IRBuilder, body: ir.Function, frame: ir.Value, tid: ir.Value) -> None:
    with b.goto_entry_block():
        place, slot = b.alloca(_POINTER), b.alloca(_I64)
    b.store(frame, place)
    b.store(_I64(0), slot)
    b.call(body, [place, slot, _NULL, _I32(0), tid])


def _emit_worker(module: ir.Module, body: ir.Function) -> None:
    function, b = define(module, WORKER, ir.VoidType(), _POINTER, _I64, internal=False)
    pool, tid = function.args
    waits = waits_of(module)
    entry = b.block
    idle, look, work, leave = map(b.append_basic_block, ("idle", "look", "work", "leave"))
    launches, bit = word_at(b, pool, _LAUNCHES), _worker_bit(b, tid)
    b.branch(idle)

    b.position_at_end(idle)
    seen = b.phi(_I32, "seen")
    b.call(waits.wait, [launches, seen, word_at(b, pool, _IDLE), bit, _I64(IDLE_CYCLES)])
    current = b.load_atomic(launches, "acquire", 4, typ=_I32)
    frame = b.load_atomic(word_at(b, pool, _FRAME), "acquire", 8, typ=_I64)
    b.cbranch(b.icmp_unsigned("==", frame, _I64(0)), leave, look)
    b.position_at_end(look)
    threads = b.load_atomic(word_at(b, pool, _THREADS), "acquire", 8, typ=_I64)
    first = b.load_atomic(word_at(b, pool, _FIRST), "acquire", 4, typ=_I32)
    b.cbranch(b.icmp_signed("<", tid, threads), work, idle)
    b.position_at_end(work)
    b.call(body, [word_at(b, pool, _FRAME), word_at(b, pool, _SLOTS), pool, first, tid])
    b.branch(idle)

    seen.add_incoming(_I32(0), entry)
    seen.add_incoming(current, look)
    seen.add_incoming(current, work)
    b.position_at_end(leave)
    b.ret_void()


def _emit_launch(module: ir.Module, body: ir.Function) -> None:
    function, b = define(module, LAUNCH, _I64, _POINTER, _POINTER, internal=False)
    pool, frame = function.args
    waits = waits_of(module)
    start, stop, alone, together, check, wait, done = map(
        b.append_basic_block, ("start", "stop", "alone", "together", "check", "wait", "done"))
    busy, queued, state = (word_at(b, pool, n) for n in (_BUSY, _QUEUED, _STATE))
    taken = b.load(word_at(b, pool, _TAKEN), typ=_POINTER)
    b.cbranch(b.icmp_unsigned("==", frame, _NULL), stop, start)
    _emit_stop(b, waits, pool, stop)

    b.position_at_end(start)
    swap = b.cmpxchg(busy, _I32(0), _I32(1), "acquire", "monotonic")
    b.cbranch(b.extract_value(swap, 1), together, alone)
    b.position_at_end(alone)
    b.atomic_rmw("add", taken, _I64(1), "seq_cst")
    b.store(_I64(1), frame)
    _run_alone(b, body, frame, _I64(0))
    b.atomic_rmw("sub", taken, _I64(1), "seq_cst")
    b.ret(b.load(word_at(b, frame, 1), typ=_I64))

    b.position_at_end(together)
    threads = _take_cores(b, taken, b.load(word_at(b, pool, _CORES), typ=_I64), b.load(frame, typ=_I64))
    b.store(threads, frame)
    first = b.load_atomic(state, "acquire", 4, typ=_I32)
    _clear_slots(b, pool, threads)
    for value, word in ((b.ptrtoint(frame, _I64), _FRAME), (threads, _THREADS), (first, _FIRST)):
        b.atomic_rmw("xchg", word_at(b, pool, word), value, "seq_cst")
    _set_off(b, waits, pool, _bits_below(b, b.sub(threads, _I64(1))))
    phases = b.call(body, [word_at(b, pool, _FRAME), word_at(b, pool, _SLOTS), pool, first, _I64(0)])
    last = b.add(first, phases)
    b.branch(check)
    b.position_at_end(check)
    now = b.load_atomic(state, "acquire", 4, typ=_I32)
    b.cbranch(b.icmp_signed("==", now, last), done, wait)
    b.position_at_end(wait)
    b.call(waits.wait, [state, now, word_at(b, pool, _WAITING), _I32(ANY), _I64(SPIN_CYCLES)])
    b.branch(check)
    b.position_at_end(done)
    b.atomic_rmw("sub", taken, threads, "seq_cst")
    b.atomic_rmw("xchg", busy, _I32(0), "seq_cst")
    b.call(waits.wake, [busy, queued, _I32(ANY)])
    b.ret(b.load(word_at(b, frame, 1), typ=_I64))


def _clear_slots(b: ir.IRBuilder, pool: ir.Value, threads: ir.Value) -> None:
    """Nobody is in a phase, and nobody can be before the launch states the first one of the run."""
    before, clear, after = b.block, b.append_basic_block("clear"), b.append_basic_block("cleared")
    b.branch(clear)
    b.position_at_end(clear)
    index = b.phi(_I64)
    b.store(_I64(0), b.gep(word_at(b, pool, _SLOTS), [b.mul(index, _I64(SLOT_BYTES // 8))], source_etype=_I64))
    following = b.add(index, _I64(1))
    index.add_incoming(_I64(0), before)
    index.add_incoming(following, clear)
    b.cbranch(b.icmp_signed("<", following, threads), clear, after)
    b.position_at_end(after)


def _emit_stop(b: ir.IRBuilder, waits: Waits, pool: ir.Value, block: ir.Block) -> None:
    """Take the workers for good, after any run that has them, and tell them to return."""
    wait, end = b.append_basic_block("queue"), b.append_basic_block("end")
    b.position_at_end(block)
    busy = word_at(b, pool, _BUSY)
    swap = b.cmpxchg(busy, _I32(0), _I32(1), "acquire", "monotonic")
    b.cbranch(b.extract_value(swap, 1), end, wait)
    b.position_at_end(wait)
    b.call(waits.wait, [busy, _I32(1), word_at(b, pool, _QUEUED), _I32(ANY), _I64(SPIN_CYCLES)])
    b.branch(block)
    b.position_at_end(end)
    b.atomic_rmw("xchg", word_at(b, pool, _FRAME), _I64(0), "seq_cst")
    _set_off(b, waits, pool, _I32(ANY))
    b.ret(_I64(0))


def _take_cores(b: ir.IRBuilder, taken: ir.Value, cores: ir.Value, wanted: ir.Value) -> ir.Value:
    """Add the threads of a run to those of all runs: as many as wanted where there are no others, else as many as
    there are cores left for, but one at least."""
    again, done = b.append_basic_block("take"), b.append_basic_block("taken")
    b.branch(again)
    b.position_at_end(again)
    before = b.load_atomic(taken, "acquire", 8, typ=_I64)
    left = b.sub(cores, before)
    left = b.select(b.icmp_signed("<", left, _I64(1)), _I64(1), left)
    fewer = b.select(b.icmp_signed("<", left, wanted), left, wanted)
    threads = b.select(b.icmp_signed("==", before, _I64(0)), wanted, fewer)
    swap = b.cmpxchg(taken, before, b.add(before, threads), "acq_rel", "monotonic")
    b.cbranch(b.extract_value(swap, 1), done, again)
    b.position_at_end(done)
    return threads


def _set_off(b: ir.IRBuilder, waits: Waits, pool: ir.Value, bits: ir.Value) -> None:
    launches = word_at(b, pool, _LAUNCHES)
    b.atomic_rmw("add", launches, _I32(1), "seq_cst")
    b.call(waits.wake, [launches, word_at(b, pool, _IDLE), bits])


def _worker_bit(b: ir.IRBuilder, tid: ir.Value) -> ir.Value:
    """The bit a worker sleeps with between runs: its own for the first 31, the last one for all others."""
    index = b.select(b.icmp_signed("<", tid, _I64(32)), b.sub(tid, _I64(1)), _I64(31))
    return b.shl(_I32(1), b.trunc(index, _I32))


def _bits_below(b: ir.IRBuilder, workers: ir.Value) -> ir.Value:
    """The bits of workers 1 to `workers`."""
    some = b.sub(b.shl(_I64(1), b.select(b.icmp_signed("<", workers, _I64(32)), workers, _I64(32))), _I64(1))
    return b.trunc(some, _I32)
