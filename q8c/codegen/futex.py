"""Waiting for a word of memory to change: spinning for a while, then asleep in the kernel."""
from __future__ import annotations

from dataclasses import dataclass

from llvmlite import ir

SPIN_CYCLES = 60_000
"""Time-stamp cycles of spinning before a sleep, some 20 us: several times what a sleep and wake-up cost, while a
machine with more threads than cores loses no more than that at each wait."""
IDLE_CYCLES = 150_000
"""The same between runs, some 50 us: in a loop of runs a worker is still there for the next one."""
ANY = 2**32 - 1
"""A sleeper has some of 32 bits, and a wake-up says which it is for."""

_I32, _I64, _POINTER = ir.IntType(32), ir.IntType(64), ir.PointerType()
_FUTEX, _WAIT_BITS_PRIVATE, _WAKE_BITS_PRIVATE = 202, 9 | 128, 10 | 128
_EVERYONE = 2**31 - 1


@dataclass(frozen=True)
class Waits:
    """The two helpers, as functions of a module.

    `wait(word, old, sleepers, bits, cycles)` returns once the i32 at `word` is no longer `old`, which it sleeps for
    after so many cycles (i64); `wake(word, sleepers, bits)` wakes those who sleep on it with one of the bits, if
    `sleepers` says there are any.
    """

    wait: ir.Function
    wake: ir.Function


def waits_of(module: ir.Module) -> Waits:
    """The helpers of a module, defined where they are not yet."""
    names = ("q8c.wait", "q8c.wake")
    if names[0] not in module.globals:
        _emit_wait(module, names[0])
        _emit_wake(module, names[1])
    return Waits(*(module.globals[name] for name in names))


def _emit_wait(module: ir.Module, name: str) -> None:
    """The count of sleepers goes up before the kernel compares the word, and whoever changes the word reads the count
    after; both are full barriers, so either the change or the sleeper is seen."""
    function, b = define(module, name, ir.VoidType(), _POINTER, _I32, _POINTER, _I32, _I64)
    word, old, sleepers, bits, cycles = function.args
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
    b.cbranch(b.icmp_unsigned("<", b.sub(b.call(clock, []), begin), cycles), spin, sleep)

    b.position_at_end(sleep)
    b.atomic_rmw("add", sleepers, _I32(1), "seq_cst")
    b.branch(nap)
    b.position_at_end(nap)
    _futex(b, word, _WAIT_BITS_PRIVATE, old, bits)
    b.cbranch(changed(), woken, nap)
    b.position_at_end(woken)
    b.atomic_rmw("sub", sleepers, _I32(1), "seq_cst")
    b.branch(done)
    b.position_at_end(done)
    b.ret_void()


def _emit_wake(module: ir.Module, name: str) -> None:
    """The word was changed before with a sequentially consistent instruction."""
    function, b = define(module, name, ir.VoidType(), _POINTER, _POINTER, _I32)
    word, sleepers, bits = function.args
    asleep = b.load_atomic(sleepers, "seq_cst", 4, typ=_I32)
    wanted = b.and_(b.icmp_signed("!=", asleep, _I32(0)), b.icmp_signed("!=", bits, _I32(0)))
    with b.if_then(wanted, likely=False):
        _futex(b, word, _WAKE_BITS_PRIVATE, _I32(_EVERYONE), bits)
    b.ret_void()


def _futex(b: ir.IRBuilder, word: ir.Value, operation: int, value: ir.Value, bits: ir.Value) -> None:
    """The system call, without a time limit."""
    kind = ir.FunctionType(_I64, (_I64, _POINTER, _I64, _I64, _I64, _I64, _I64))
    registers = ",".join(f"{{{r}}}" for r in ("rax", "rdi", "rsi", "rdx", "r10", "r8", "r9"))
    call = ir.InlineAsm(kind, "syscall", f"={{rax}},{registers},~{{rcx}},~{{r11}},~{{memory}}", side_effect=True)
    b.call(call, [_I64(_FUTEX), word, _I64(operation), b.zext(value, _I64), _I64(0), _I64(0), b.zext(bits, _I64)])


def define(module: ir.Module, name: str, result: ir.Type, *arguments: ir.Type,
           internal: bool = True) -> tuple[ir.Function, ir.IRBuilder]:
    """A new function that is never inlined, and a builder at its start."""
    function = ir.Function(module, ir.FunctionType(result, arguments), name)
    function.attributes.add("nounwind")
    function.attributes.add("noinline")
    if internal:
        function.linkage = "internal"
    return function, ir.IRBuilder(function.append_basic_block("entry"))


def word_at(b: ir.IRBuilder, base: ir.Value, index: int) -> ir.Value:
    """The address of an i64 of an array."""
    return b.gep(base, [_I64(index)], source_etype=_I64)
