"""Expression programs: what they evaluate to, against Python, and what is refused."""
from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from q8c.runtime import dims
from q8c.runtime.dims import Program, Tape

SYMBOLS = 3


def programs() -> st.SearchStrategy[Any]:
    leaves = st.integers(-100, 100) | st.integers(0, SYMBOLS - 1).map(lambda i: ["$", i])
    return st.recursive(leaves, lambda inner: st.one_of(
        st.tuples(st.sampled_from(["+", "*", "max", "min"]), st.lists(inner, min_size=2, max_size=4)).map(
            lambda t: [t[0], *t[1]]),
        st.tuples(st.sampled_from(["//", "%"]), inner, inner).map(list)), max_leaves=12)


def python(program: Any, values: list[int]) -> int:
    """The value by plain recursion."""
    if isinstance(program, int):
        return program
    op, *operands = program
    if op == "$":
        return values[int(operands[0])]
    numbers = [python(p, values) for p in operands]
    if op in ("max", "min"):
        return max(numbers) if op == "max" else min(numbers)
    result = numbers[0]
    for n in numbers[1:]:
        result = result + n if op == "+" else result * n if op == "*" else result // n if op == "//" else result % n
    return result


@given(st.lists(programs(), max_size=5), st.lists(st.integers(0, 1000), min_size=SYMBOLS, max_size=SYMBOLS))
def test_a_tape_gives_what_python_gives(listed: list[Any], values: list[int]) -> None:
    frozen = [dims.freeze(p, SYMBOLS) for p in listed]
    assert [dims.thaw(p) for p in frozen] == listed
    try:
        expected = [python(p, values) for p in listed]
    except ZeroDivisionError:
        with pytest.raises(ValueError, match="zero|large"):
            Tape(frozen, SYMBOLS).evaluate(values)
        return
    try:
        assert Tape(frozen, SYMBOLS).evaluate(values) == expected
    except ValueError as error:
        assert "too large" in str(error)


@given(programs(), st.integers(0, SYMBOLS - 1), st.lists(st.integers(0, 50), min_size=SYMBOLS, max_size=SYMBOLS))
def test_affine_programs_are_straight_lines(program: Any, symbol: int, values: list[int]) -> None:
    frozen = dims.freeze(program, SYMBOLS)
    if not dims.is_affine(frozen, symbol):
        return

    def at(x: int) -> int:
        return python(program, [x if i == symbol else v for i, v in enumerate(values)])
    try:
        assert at(2) - at(1) == at(1) - at(0) == at(12) - at(11)
    except ZeroDivisionError:
        pass


def test_a_shared_part_is_computed_once() -> None:
    part: Program = ("*", ("$", 0), ("$", 1))
    tape = Tape([part, ("+", part, 1), ("+", part, 1), ("//", part, 2)], 2)
    assert len(tape._code) == 3
    assert tape.evaluate([3, 5]) == [15, 16, 16, 7]


@pytest.mark.parametrize("value", [
    None, True, 1.5, "x", [], ["$"], ["$", 3], ["$", -1], ["$", True], ["$", [0]], ["+"], ["+", 1], ["//", 1, 2, 3],
    ["-", 1, 2], [1, 2], ["+", 1, "x"], ["+", 1, None], 2**62, ["+", 1, -(2**70)], {"+": [1, 2]}])
def test_anything_else_is_no_program(value: object) -> None:
    with pytest.raises(ValueError):
        dims.freeze(value, SYMBOLS)


def test_deep_and_wide_programs_are_refused() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = ["+", deep, 1]
    with pytest.raises(ValueError, match="levels"):
        dims.freeze(deep, 0)
    with pytest.raises(ValueError, match="parts"):
        dims.freeze(["+", *[1] * 100_000], 0)


def test_a_value_cannot_grow_without_bound() -> None:
    program: Program = ("$", 0)
    for _ in range(20):
        program = ("*", program, program)
    with pytest.raises(ValueError, match="too large"):
        Tape([program], 1).evaluate([1000])


@pytest.mark.parametrize(("program", "text"), [
    (("+", ("$", 0), ("*", 2, ("$", 1))), "past + 2*seq"),
    (("*", ("+", ("$", 0), 1), ("$", 1)), "(past + 1)*seq"),
    (("//", ("+", ("$", 1), 63), 64), "(seq + 63) // 64"),
    (("max", ("$", 0), 1), "max(past, 1)"),
    (7, "7")])
def test_text(program: Program, text: str) -> None:
    assert dims.text(program, ["past", "seq"]) == text
