"""Worker threads and the barrier, emitted into a model's own image.

A model runs as one function on several threads (`q8c_run(frame, tid)`); `barrier` separates dependent kernels, workers
stay inside `q8c_worker` between runs, and `q8c_launch` sets them off. Every wait spins for `SPIN_CYCLES` with `pause`
and then sleeps in a futex, so that a thread whose peer lost its core gives up its own; whoever ends a wait makes a
system call only if somebody sleeps. Words are 32-bit futexes in int64 slots, on cache lines of their own.

The pool is 32 zeroed int64 words, 64-byte aligned:
    0   generation: one more with each launch    16  workers still at the current run
    8   the frame to run; null ends the workers  24  whether the launcher sleeps
    1   workers asleep
In a frame the barrier has [8] threads that arrived, [16] its generation and [17] threads asleep.
"""
from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

SPIN_CYCLES = 60_000
"""Time-stamp cycles of spinning before a sleep, some 20 us: several times what a sleep and wake-up cost, while a
machine with more threads than cores loses no more than that at each wait."""

_I32, _I64, _POINTER = ir.IntType(32), ir.IntType(64), ir.PointerType()
_FUTEX, _WAIT_PRIVATE, _WAKE_PRIVATE = 202, 128, 129
_EVERYONE = 2**31 - 1
_GENERATION, _SLEEPERS, _FRAME, _REMAINING, _LAUNCHER_ASLEEP = 0, 1, 8, 16, 24
_ARRIVED, _BARRIER_GENERATION, _BARRIER_SLEEPERS = 8, 16, 17


@dataclass(frozen=True)
class _Waits:
    """The two helpers everything else is made of.

    `wait(word, old, sleepers)` returns once the i32 at `word` is no longer `old`; `wake(word, sleepers)` wakes those
    who sleep on it, if `sleepers` says there are any.
    """

    wait: ir.Function
    wake: ir.Function


def emit_barrier(module: ir.Module) -> ir.Function:
    """Define the internal function `barrier(frame, tid)`: returns when all `frame[0]` threads have called it.

    What a thread wrote before is visible to all after. Costs one load and a branch where there is one thread.
    """
    function, b = _define(module, "q8c.barrier", ir.VoidType(), _POINTER, _I64)
    frame = function.args[0]
    waits = _waits(module)
    threads = b.load(frame, typ=_I64)
    alone, together, last, wait = map(b.append_basic_block, ("alone", "together", "last", "wait"))
    b.cbranch(b.icmp_signed("<=", threads, _I64(1)), alone, together)
    b.position_at_end(alone)
    b.ret_void()

    b.position_at_end(together)
    arrived, generation, sleepers = (_word(b, frame, i) for i in (_ARRIVED, _BARRIER_GENERATION, _BARRIER_SLEEPERS))
    now = b.load_atomic(generation, "acquire", 4, typ=_I32)
    before = b.atomic_rmw("add", arrived, _I32(1), "acq_rel")
    b.cbranch(b.icmp_signed("==", b.add(before, _I32(1)), b.trunc(threads, _I32)), last, wait)

    b.position_at_end(last)
    b.store(_I32(0), arrived)  # nobody touches it before the new generation is out
    b.atomic_rmw("add", generation, _I32(1), "seq_cst")
    b.call(waits.wake, [generation, sleepers])
    b.ret_void()

    b.position_at_end(wait)
    b.call(waits.wait, [generation, now, sleepers])
    b.ret_void()
    return function


def emit_pool(module: ir.Module, run: ir.Function) -> None:
    """Define `void q8c_worker(pool, tid)` and `i64 q8c_launch(pool, frame)` around `run(frame, tid)`.

    A launch runs `run` on the calling thread as 0 and on `frame[0] - 1` workers, which must be as many as there are,
    and returns `frame[1]`. With a null frame it tells the workers to return and does not wait. Workers may enter
    before or after the first launch; one launch at a time.
    """
    _emit_worker(module, run)
    _emit_launch(module, run)


def _emit_worker(module: ir.Module, run: ir.Function) -> None:
    function, b = _define(module, "q8c_worker", ir.VoidType(), _POINTER, _I64, internal=False)
    pool, tid = function.args
    waits = _waits(module)
    entry = b.block
    idle, work, last, leave = map(b.append_basic_block, ("idle", "work", "last", "leave"))
    generation, remaining = _word(b, pool, _GENERATION), _word(b, pool, _REMAINING)
    b.branch(idle)

    b.position_at_end(idle)
    seen = b.phi(_I32, "seen")
    b.call(waits.wait, [generation, seen, _word(b, pool, _SLEEPERS)])
    current = b.load_atomic(generation, "acquire", 4, typ=_I32)
    frame = b.load(_word(b, pool, _FRAME), typ=_POINTER)
    b.cbranch(b.icmp_unsigned("==", frame, ir.Constant(_POINTER, None)), leave, work)

    b.position_at_end(work)
    b.call(run, [frame, tid])
    before = b.atomic_rmw("sub", remaining, _I32(1), "seq_cst")
    b.cbranch(b.icmp_signed("==", before, _I32(1)), last, idle)
    b.position_at_end(last)
    b.call(waits.wake, [remaining, _word(b, pool, _LAUNCHER_ASLEEP)])
    b.branch(idle)

    seen.add_incoming(_I32(0), entry)
    seen.add_incoming(current, work)
    seen.add_incoming(current, last)
    b.position_at_end(leave)
    b.ret_void()


def _emit_launch(module: ir.Module, run: ir.Function) -> None:
    function, b = _define(module, "q8c_launch", _I64, _POINTER, _POINTER, internal=False)
    pool, frame = function.args
    waits = _waits(module)
    start, stop, check, wait, done = map(b.append_basic_block, ("start", "stop", "check", "wait", "done"))
    generation, remaining = _word(b, pool, _GENERATION), _word(b, pool, _REMAINING)
    b.store(frame, _word(b, pool, _FRAME))
    b.cbranch(b.icmp_unsigned("==", frame, ir.Constant(_POINTER, None)), stop, start)

    b.position_at_end(stop)
    _set_off(b, waits, pool, generation)
    b.ret(_I64(0))

    b.position_at_end(start)
    workers = b.sub(b.trunc(b.load(frame, typ=_I64), _I32), _I32(1))
    b.store(workers, remaining)
    _set_off(b, waits, pool, generation)
    b.call(run, [frame, _I64(0)])
    b.branch(check)

    b.position_at_end(check)
    left = b.load_atomic(remaining, "acquire", 4, typ=_I32)
    b.cbranch(b.icmp_signed("==", left, _I32(0)), done, wait)
    b.position_at_end(wait)
    b.call(waits.wait, [remaining, left, _word(b, pool, _LAUNCHER_ASLEEP)])
    b.branch(check)
    b.position_at_end(done)
    b.ret(b.load(_word(b, frame, 1), typ=_I64))


def _set_off(b: ir.IRBuilder, waits: _Waits, pool: ir.Value, generation: ir.Value) -> None:
    b.atomic_rmw("add", generation, _I32(1), "seq_cst")
    b.call(waits.wake, [generation, _word(b, pool, _SLEEPERS)])


def _waits(module: ir.Module) -> _Waits:
    names = ("q8c.wait", "q8c.wake")
    if names[0] not in module.globals:
        _emit_wait(module, names[0])
        _emit_wake(module, names[1])
    return _Waits(*(module.globals[name] for name in names))


def _emit_wait(module: ir.Module, name: str) -> None:
    """wait(word, old, sleepers). The count of sleepers goes up before the kernel compares the word, and whoever
    changes the word reads the count after; both are full barriers, so either the change or the sleeper is seen."""
    function, b = _define(module, name, ir.VoidType(), _POINTER, _I32, _POINTER)
    word, old, sleepers = function.args
    clock = module.declare_intrinsic("llvm.readcyclecounter", (), ir.FunctionType(_I64, ()))
    pause = ir.InlineAsm(ir.FunctionType(ir.VoidType(), ()), "pause", "~{memory}", side_effect=True)
    spin, again, sleep, nap, woken, done = map(
        b.append_basic_block, ("spin", "again", "sleep", "nap", "woken", "done"))
    begin = b.call(clock, [])
    b.branch(spin)

    def changed() -> ir.Value:
        return b.icmp_signed("!=", b.load_atomic(word, "acquire", 4, typ=_I32), old)

    b.position_at_end(spin)
    b.cbranch(changed(), done, again)
    b.position_at_end(again)
    b.call(pause, [])
    b.cbranch(b.icmp_unsigned("<", b.sub(b.call(clock, []), begin), _I64(SPIN_CYCLES)), spin, sleep)

    b.position_at_end(sleep)
    b.atomic_rmw("add", sleepers, _I32(1), "seq_cst")
    b.branch(nap)
    b.position_at_end(nap)
    _futex(b, word, _WAIT_PRIVATE, b.zext(old, _I64))
    b.cbranch(changed(), woken, nap)
    b.position_at_end(woken)
    b.atomic_rmw("sub", sleepers, _I32(1), "seq_cst")
    b.branch(done)
    b.position_at_end(done)
    b.ret_void()


def _emit_wake(module: ir.Module, name: str) -> None:
    """wake(word, sleepers); the word was changed before with a sequentially consistent instruction."""
    function, b = _define(module, name, ir.VoidType(), _POINTER, _POINTER)
    word, sleepers = function.args
    asleep = b.load_atomic(sleepers, "seq_cst", 4, typ=_I32)
    with b.if_then(b.icmp_signed("!=", asleep, _I32(0)), likely=False):
        _futex(b, word, _WAKE_PRIVATE, _I64(_EVERYONE))
    b.ret_void()


def _futex(b: ir.IRBuilder, word: ir.Value, operation: int, value: ir.Value) -> None:
    kind = ir.FunctionType(_I64, (_I64, _POINTER, _I64, _I64, _I64))
    call = ir.InlineAsm(kind, "syscall", "={rax},{rax},{rdi},{rsi},{rdx},{r10},~{rcx},~{r11},~{memory}",
                        side_effect=True)
    b.call(call, [_I64(_FUTEX), word, _I64(operation), value, _I64(0)])


def _define(module: ir.Module, name: str, result: ir.Type, *arguments: ir.Type,
            internal: bool = True) -> tuple[ir.Function, ir.IRBuilder]:
    function = ir.Function(module, ir.FunctionType(result, arguments), name)
    function.attributes.add("nounwind")
    function.attributes.add("noinline")
    if internal:
        function.linkage = "internal"
    return function, ir.IRBuilder(function.append_basic_block("entry"))


def _word(b: ir.IRBuilder, base: ir.Value, index: int) -> ir.Value:
    return b.gep(base, [_I64(index)], source_etype=_I64)
