"""Symbolic sizes against plain integers: whatever is simplified or proved must hold for every value of the symbols."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from q8c.ir.dim_program import to_program
from q8c.ir.dim_text import parse_dim
from q8c.ir.dims import (
    SIZE_LIMIT,
    Dim,
    Expr,
    as_symbol,
    compare,
    dim_max,
    dim_min,
    evaluate,
    floordiv,
    mod,
    nonnegative,
    product,
    substitute,
    sym,
    symbols,
)

A, B, C = sym("a"), sym("b"), sym("c")
NAMES = ("a", "b", "c")
Reference = Callable[[dict[str, int]], int]
Pair = tuple[Dim, Reference]  # an expression, and how its integer value is computed without this module
envs = st.fixed_dictionaries({n: st.integers(0, 40) for n in NAMES})


def leaf(choice: int) -> Pair:
    if choice < 3:
        name = NAMES[choice]
        return sym(name), lambda env: env[name]
    return choice - 8, lambda env: choice - 8


def combine(op: str, x: Pair, y: Pair) -> Pair:
    (d, f), (e, g) = x, y
    table: dict[str, tuple[Callable[[Dim, Dim], Dim], Callable[[int, int], int]]] = {
        "+": (lambda p, q: p + q, lambda p, q: p + q), "-": (lambda p, q: p - q, lambda p, q: p - q),
        "*": (lambda p, q: p * q, lambda p, q: p * q), "//": (floordiv, lambda p, q: p // q),
        "%": (mod, lambda p, q: p % q), "max": (dim_max, max), "min": (dim_min, min)}
    symbolic, plain = table[op]
    if op in ("//", "%") and e == 0:
        return x
    return symbolic(d, e), lambda env: plain(f(env), g(env))


pairs: st.SearchStrategy[Pair] = st.recursive(
    st.integers(0, 16).map(leaf),
    lambda inner: st.builds(combine, st.sampled_from(["+", "-", "*", "//", "%", "max", "min"]), inner, inner),
    max_leaves=6)


def value(pair: Pair, env: dict[str, int]) -> int:
    """The pair's integer; examples that divide by 0 are thrown away."""
    try:
        return pair[1](env)
    except ZeroDivisionError:
        assume(False)
        raise


@given(pairs, envs)
@settings(max_examples=200, deadline=None)
def test_expressions_are_their_integers(pair: Pair, env: dict[str, int]) -> None:
    expected = value(pair, env)
    assert evaluate(pair[0], env) == expected


@given(pairs)
@settings(max_examples=100, deadline=None)
def test_text_comes_back_the_same(pair: Pair) -> None:
    assert parse_dim(str(pair[0])) == pair[0]


@given(pairs, envs)
@settings(max_examples=100, deadline=None)
def test_programs_compute_the_same(pair: Pair, env: dict[str, int]) -> None:
    expected = value(pair, env)
    assert run(to_program(pair[0], {n: i for i, n in enumerate(NAMES)}), [env[n] for n in NAMES]) == expected


def run(program: Any, sizes: list[int]) -> int:
    """What the run time makes of a program."""
    if isinstance(program, int):
        return program
    op, *args = program
    if op == "$":
        return sizes[int(args[0])]
    values = [run(a, sizes) for a in args]
    if op in ("max", "min"):
        return (max if op == "max" else min)(values)
    if op in ("//", "%"):
        return values[0] // values[1] if op == "//" else values[0] % values[1]
    total = values[0]
    for v in values[1:]:
        total = total + v if op == "+" else total * v
    return total


@given(pairs, pairs, st.lists(envs, min_size=1, max_size=5))
@settings(max_examples=200, deadline=None)
@example(((A - 5) // 2, lambda env: (env["a"] - 5) // 2), (0, lambda env: 0), [{"a": 0, "b": 0, "c": 0}])
def test_what_is_proved_holds(x: Pair, y: Pair, samples: list[dict[str, int]]) -> None:
    sign, positive = compare(x[0], y[0]), nonnegative(x[0])
    for env in samples:
        a, b = value(x, env), value(y, env)
        assert sign is None or sign == (a > b) - (a < b)
        assert not positive or a >= 0


@given(pairs, pairs, pairs)
@settings(max_examples=100, deadline=None)
def test_one_form_for_one_polynomial(x: Pair, y: Pair, z: Pair) -> None:
    a, b, c = x[0], y[0], z[0]
    assert a + b == b + a and a * b == b * a
    assert (a + b) + c == a + (b + c) and (a * b) * c == a * (b * c)
    assert a * (b + c) == a * b + a * c
    assert hash(a + b) == hash(b + a) and a - a == 0 and a + b - b == a


@given(pairs, envs)
@settings(max_examples=100, deadline=None)
def test_substitution_is_evaluation_in_two_steps(pair: Pair, env: dict[str, int]) -> None:
    expected = value(pair, env)
    half = substitute(pair[0], {"a": env["a"], "b": sym("c")})
    assert "a" not in symbols(half) and "b" not in symbols(half)
    if env["b"] == env["c"]:
        assert evaluate(half, env) == expected


def test_divisions_by_numbers_have_one_form() -> None:
    """Sizes behind convolutions, as exporters and q8c work them out differently."""
    assert (A - 10) // 5 == A // 5 - 2 and (A * 5 + B - 1) // 5 == A + (B + 4) // 5 - 1
    assert (A // 5 - 4) // 2 + 1 == A // 10 - 1 and ((A + 1) // 2 + 1) // 3 == (A + 3) // 6
    assert str(A * 3 // 2) == "(3*a // 2)" and str((A // B + 1) // 2) == "(((a // b) + 1) // 2)"


def test_simplification() -> None:
    assert floordiv(A * B * 12, B * 4) == A * 3 and floordiv(A * A - B * B, A + B) == A - B
    assert mod(A * 8, 4) == 0 and mod(A * 8 + 1, 8) != 1 and floordiv(A, A) == 1 and floordiv(A, 1) == A
    assert dim_max(A, A + 1) == A + 1 and dim_min(A, A + 1, 512) == dim_min(512, A)
    assert dim_min(A, SIZE_LIMIT) == A and dim_max(dim_max(A, B), B, 3) == dim_max(3, B, A)
    assert dim_max(A, 0) == A and dim_min(A, A) == A and dim_max(A, B) == dim_max(B, A)
    assert product([A, 2, B]) == A * B * 2 and product([]) == 1 and (A - A) == 0 and isinstance(A - A, int)
    assert 7 // (A + 0) != 7 and 12 % sym("a") != 0 and 5 - A == -(A - 5)


def test_bounds_of_max_and_min_are_used() -> None:
    assert compare(dim_min(512, A), 513) == -1 and compare(dim_max(A, 3), 2) == 1
    assert compare(dim_min(512, A) - 1, 512) == -1 and compare(A, dim_min(A, 7) - 1) == 1
    assert compare(A, B) is None and compare(A + 1, 0) == 1 and compare(A, 0) is None and compare(A, A) == 0


def test_what_both_have_goes_from_a_division() -> None:
    assert A * B // (A * 2) == B // 2 and A * 6 // (A * B * 4) == 3 // (B * 2) and (A * 4 + 2) // 6 == (A * 2 + 1) // 3
    half = A * B // (B * 2)
    assert half * B * 64 // (half * B * 32) == 2 and (A * B + A) // (A * C) == (B + 1) // C


def test_text_of_expressions() -> None:
    assert str(A * B * 2 + A - 3) == "2*a*b + a - 3" and str(A * -1) == "-a" and str((A + B) // 2) == "((a + b) // 2)"
    assert str(dim_max(A, B + 1)) == "max(a, b + 1)" and str(mod(A * 2, 3)) == "(2*a % 3)"
    assert str(A // (B * 2)) == "(a // (2*b))" and str(A // (B * C)) == "(a // (b*c))" and str(A // -2) == "(a // -2)"
    assert repr(A) == "Expr(a)"


@pytest.mark.parametrize("text", [
    "", "a +", "a / b", "a ** 2", "f(a)", "max()", "max(a, key=b)", "a.b", "1.5", "True", "'a'", "a if b else c", "[a]",
    "a // 0", "(" * 900 + "a" + ")" * 900, "+a", "~a", "a\nb", "a" * 20_001, "lambda: a", "max(*a)", "min", "a b"])
def test_other_text_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):
        parse_dim(text)


def test_symbols_and_names() -> None:
    assert symbols(dim_max(A, B // C)) == {"a", "b", "c"} and symbols(3) == set()
    assert as_symbol(A) == "a" and as_symbol(A + 1) is None and as_symbol(A * 2) is None and as_symbol(3) is None
    with pytest.raises(ValueError, match="symbol name 'a b' is not an identifier"):
        sym("a b")
    with pytest.raises(KeyError, match="no value for b in a \\+ b"):
        evaluate(A + B, {"a": 1})
    assert A != 3 and isinstance(A + 0, Expr)
