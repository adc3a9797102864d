"""The builder's control flow, vectors, tails and dot products, run on every tier."""
from __future__ import annotations

from typing import Any

import llvmlite.ir as ir
import numpy as np
import pytest
from numpy.typing import NDArray

from q8c.codegen.builder import F32, I8, I32, I64, LANES, PTR, V16B, V16F, V16I, VOID, Builder, constant
from q8c.codegen.module import compile_module, new_module, undefined_symbols
from q8c.codegen.targets import TIERS, Tier, require, tier
from q8c.errors import CompileError
from tests.codegen.jit import all_tiers, build, guarded


@all_tiers
def test_loop_carries_values(tier: Tier) -> None:
    def emit(module: ir.Module, tier: Tier) -> None:
        b = Builder(module, tier, "triangle", [("n", I64)], I64)
        total, product = b.loop(1, b.arg("n"), 1, [ir.Constant(I64, 0), ir.Constant(I64, 1)],
                                lambda i, v: [b.add(v[0], i), b.mul(v[1], 3)])
        b.ret(b.add(total, product))
    run = build(tier, emit)
    for n in (-5, 0, 1, 2, 7):
        assert run("triangle", n) == sum(range(1, n)) + 3 ** max(n - 1, 0)


@all_tiers
def test_branches_and_while(tier: Tier) -> None:
    def emit(module: ir.Module, tier: Tier) -> None:
        b = Builder(module, tier, "collatz", [("n", I64)], I64)

        def step(v: list[ir.Value]) -> list[ir.Value]:
            odd = b.icmp("!=", b.and_(v[0], 1), 0)
            n, = b.if_else(odd, lambda: [b.add(b.mul(v[0], 3), 1)], lambda: [b.div(v[0], 2)])
            return [n, b.add(v[1], 1)]
        _, count = b.while_([b.arg("n"), ir.Constant(I64, 0)], lambda v: b.icmp("!=", v[0], 1), step)
        b.ret(count)

        b = Builder(module, tier, "pick", [("n", I64), ("out", PTR)])
        b.switch(b.arg("n"), {1: lambda: b.store(ir.Constant(I64, 10), b.arg("out")),
                              4: lambda: b.store(ir.Constant(I64, 40), b.arg("out"))})
        b.ret()
    run = build(tier, emit)
    assert run("collatz", 27) == 111
    out = np.zeros(1, np.int64)
    for n, expected in ((4, 40), (2, 40), (1, 10)):
        run("pick", n, out)
        assert out[0] == expected


@all_tiers
@pytest.mark.parametrize("dtype", ["float32", "int32", "int8"])
def test_tails_touch_nothing_else(tier: Tier, dtype: str) -> None:
    vector, scalar = {"float32": (V16F, F32), "int32": (V16I, I32), "int8": (V16B, I8)}[dtype]

    def emit(module: ir.Module, tier: Tier) -> None:
        b = Builder(module, tier, "copy", [("x", PTR), ("y", PTR), ("all", PTR), ("count", I64)])
        v = b.load_tail(vector, b.arg("x"), b.arg("count"), fill=7)
        b.store(v, b.arg("all"))
        b.store_tail(v, b.at(b.arg("y"), 1, scalar), b.arg("count"))
        b.ret()
    run = build(tier, emit)
    for count in range(LANES + 1):
        x = guarded(np.arange(1, count + 1).astype(dtype))
        y = guarded(np.full(count + 1, -1, dtype))
        seen: NDArray[Any] = np.zeros(LANES, dtype)
        run("copy", x, y, seen, count)
        assert (y == np.concatenate([[-1], x])).all()
        assert (seen == np.concatenate([x, np.full(LANES - count, 7)])).all()


@all_tiers
def test_constant_tail(tier: Tier) -> None:
    def emit(module: ir.Module, tier: Tier) -> None:
        b = Builder(module, tier, "copy", [("x", PTR), ("y", PTR)])
        b.store_tail(b.load_tail(V16F, b.arg("x"), 5), b.arg("y"), 5)
        b.store_tail(b.load_tail(V16B, b.arg("x"), 5), b.at(b.arg("y"), 20), 5)
        b.ret()
    run = build(tier, emit)
    x = guarded(np.arange(5, dtype=np.float32))
    y = guarded(np.zeros(25, np.uint8))
    run("copy", x, y)
    assert (y[:20].view(np.float32) == x).all() and (y[20:] == x.view(np.uint8)[:5]).all()


@all_tiers
def test_min_max_and_nan(tier: Tier) -> None:
    def emit(module: ir.Module, tier: Tier) -> None:
        b = Builder(module, tier, "minmax", [("x", PTR), ("y", PTR), ("out", PTR)])
        x, y = b.load(V16F, b.arg("x")), b.load(V16F, b.arg("y"))
        for n, v in enumerate((b.fmin(x, y), b.fmax(x, y))):
            b.store(v, b.at(b.arg("out"), 16 * n, F32))
        b.ret()
    run = build(tier, emit)
    nan = float("nan")
    x = np.array([1, 2, nan, 3, -1, float("inf")] + [0] * 10, np.float32)
    y = np.array([2, 1, 3, nan, -2, nan] + [0] * 10, np.float32)
    out = np.zeros((2, 16), np.float32)
    run("minmax", x, y, out)
    np.testing.assert_array_equal(out[0, :6], [1, 1, 3, nan, -2, nan])
    np.testing.assert_array_equal(out[1, :6], [2, 2, 3, nan, -1, nan])


@all_tiers
def test_conversions_and_reductions(tier: Tier) -> None:
    def emit(module: ir.Module, tier: Tier) -> None:
        b = Builder(module, tier, "convert", [("x", PTR), ("i", PTR), ("f", PTR)])
        x = b.load(V16F, b.arg("x"))
        b.store(b.to_i32(x), b.arg("i"))
        for n, v in enumerate((b.reduce(x, b.add), b.reduce(x, b.fmax), b.reduce(b.abs(x), b.fmin))):
            b.store(v, b.at(b.arg("f"), n, F32))
        b.ret()
    run = build(tier, emit)
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, -127, 3e9, *range(8)], np.float32)
    i, f = np.zeros(16, np.int32), np.zeros(3, np.float32)
    run("convert", x, i, f)
    assert i[:8].tolist() == [0, 2, 2, 0, -2, 126, -127, -2**31]
    tree = x.copy()
    while len(tree) > 1:
        tree = tree[:len(tree) // 2] + tree[len(tree) // 2:]
    assert f.tolist() == [tree[0], x.max(), np.abs(x).min()]
    x[3] = np.nan
    run("convert", x, i, f)
    assert i[3] == -2**31


@all_tiers
@pytest.mark.parametrize("lanes", [8, 16])
def test_dot_is_exact_at_the_extremes(tier: Tier, lanes: int) -> None:
    def emit(module: ir.Module, tier: Tier) -> None:
        typ = ir.VectorType(I32, lanes)
        b = Builder(module, tier, "dot", [("acc", PTR), ("u", PTR), ("s", PTR)])
        acc = b.load(typ, b.arg("acc"))
        b.store(b.dot_u8s8(acc, b.load(typ, b.arg("u")), b.load(typ, b.arg("s"))), b.arg("acc"))
        b.ret()
    run = build(tier, emit)
    rng = np.random.default_rng(0)
    for u_choice, s_choice in (([255], [127]), ([255], [-128]), (range(256), range(-128, 128))):
        u = rng.choice(list(u_choice), (lanes, 4)).astype(np.uint8)
        s = rng.choice(list(s_choice), (lanes, 4)).astype(np.int8)
        acc = rng.integers(-10**6, 10**6, lanes).astype(np.int32)
        expected = acc + (u.astype(np.int32) * s).sum(1)
        run("dot", acc, u, s)
        assert (acc == expected).all()


def test_missing_instructions_raise_before_llvm_sees_them() -> None:
    b = Builder(new_module("m"), tier("avx2"), "f", [("x", PTR)])
    v = b.load(V16I, b.arg("x"))
    with pytest.raises(CompileError, match="avx512vnni.*avx2 lacks"):
        b.intrinsic("llvm.x86.avx512.vpdpbusd.512", [v, v, v], V16I)
    with pytest.raises(CompileError, match="amx-tile, which tier avx2 lacks"):
        b.intrinsic("llvm.x86.tilezero", [constant(I8, 0)], VOID)
    with pytest.raises(CompileError, match="amx-bf16, which tier amx-int8 lacks"):
        require(tier("amx-int8"), "llvm.x86.tdpbf16ps")
    with pytest.raises(CompileError, match="not in the table"):
        b.intrinsic("llvm.x86.rdpmc", [v], V16I)


def test_extras_need_what_they_extend() -> None:
    assert tier("avx512-vnni").with_extras("avx512bf16").has("avx512bf16")
    assert tier("amx-int8").with_extras("amx-bf16", "avx512bf16").has("amx-bf16")
    with pytest.raises(CompileError, match="avx512-vnni cannot have.*amx-bf16 on amx-tile"):
        tier("avx512-vnni").with_extras("amx-bf16")
    with pytest.raises(CompileError, match="avx2 cannot have"):
        tier("avx2").with_extras("avx512bf16")
    with pytest.raises(CompileError, match="unknown target 'sse2'; targets are avx2, avx-vnni, avx512-vnni"):
        tier("sse2")


def _calls(name: str) -> ir.Module:
    module = new_module("caller")
    outside = ir.Function(module, ir.FunctionType(F32, [F32]), name)
    b = Builder(module, tier("avx2"), "f", [("x", F32)], F32)
    b.ret(b.ir.call(outside, [b.arg("x")]))
    return module


def test_symbols_from_outside_are_refused() -> None:
    with pytest.raises(CompileError, match="'caller' needs symbols from outside: expf"):
        compile_module(_calls("expf"), tier("avx2"))
    with pytest.raises(CompileError, match="ELF"):
        undefined_symbols(b"not an object")


def test_broken_modules_are_refused_in_one_line() -> None:
    module = new_module("broken")
    b = Builder(module, tier("avx2"), "f", [("x", I64)], I64)
    b.ir.ret(ir.Constant(I32, 1))
    with pytest.raises(CompileError, match="LLVM refuses module 'broken'") as caught:
        compile_module(module, tier("avx2"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", list(TIERS))
def test_same_module_same_bytes(name: str) -> None:
    def emit() -> ir.Module:
        module = new_module("copy")
        b = Builder(module, tier(name), "copy", [("x", PTR), ("y", PTR), ("n", I64)])
        with b.range(0, b.arg("n"), 16) as i:
            b.store(b.load(V16F, b.at(b.arg("x"), i, F32)), b.at(b.arg("y"), i, F32))
        b.ret()
        return module
    first, second = (compile_module(emit(), tier(name)) for _ in range(2))
    assert first.object == second.object
    assert "ret" in first.assembly() and not undefined_symbols(first.object)
