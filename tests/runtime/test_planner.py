"""Solving input shapes for symbolic sizes, and laying out frames and arenas."""
from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from q8c.errors import ArtifactError, InputError
from q8c.runtime import dims
from q8c.runtime.model import Constraint, Count, Model, Tensor
from q8c.runtime.planner import Planner

NAMES = ("batch", "past", "seq")
BATCH, PAST, SEQ = (("$", i) for i in range(3))


def decoder(*shapes: tuple[Any, ...], **more: Any) -> Planner:
    """A planner for inputs a, b, ... of these shapes."""
    inputs = []
    for letter, shape in zip("abcdef", shapes, strict=False):
        frozen = tuple(dims.freeze(p, 3) for p in shape)
        inputs.append(Tensor(letter, "float32", frozen, tuple(dims.text(p, NAMES) for p in frozen)))
    return Planner(Model("m", tuple(inputs), (), NAMES, **more))


TOTAL = ["+", PAST, SEQ]


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))
def test_sums_and_multiples_are_solved(batch: int, past: int, seq: int) -> None:
    planner = decoder((TOTAL, BATCH), (["+", ["*", 2, SEQ], 1],), (64, BATCH))
    plan = planner(((past + seq, batch), (2 * seq + 1,), (64, batch)))
    assert plan.symbols == (batch, past, seq)


def test_a_chain_of_unknowns() -> None:
    planner = decoder((["+", PAST, SEQ, BATCH],), (["+", SEQ, ["*", 3, BATCH]],), (["*", BATCH, 8],))
    assert planner(((60,), (16,), (40,))).symbols == (5, 54, 1)


@pytest.mark.parametrize(("shapes", "message"), [
    (((7, 2), (4,)), r"'b': dimension 0 must be 2\*seq \+ 1, which no seq >= 0 gives, got 4"),
    (((7, 2), (0,)), "which no seq >= 0 gives, got 0"),
    (((2, 2), (7,)), r"'a': dimension 0 must be past \+ seq, which no past >= 0 gives, got 2 "
                     r"\(shape \(2, 2\), expected float32\[past \+ seq, batch\]\)"),
])
def test_shapes_no_sizes_give(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        decoder((TOTAL, BATCH), (["+", ["*", 2, SEQ], 1],))(shapes)


def test_static_and_derived_dimensions_are_checked() -> None:
    planner = decoder((BATCH, SEQ, 384), (BATCH, PAST), (BATCH, ["//", ["+", PAST, SEQ], 2], ["max", SEQ, 3]))
    planner(((2, 4, 384), (2, 6), (2, 5, 4)))
    for shapes, message in (
            (((2, 4, 385), (2, 6), (2, 5, 4)), r"'a': dimension 2 must be 384, got 385 \(shape \(2, 4, 385\)"),
            (((2, 4, 384), (2, 6), (2, 6, 4)), r"'c': dimension 1 must be \(past \+ seq\) // 2, which is 5 as seq = 4 "
                                               "in dimension 1 of 'a', past = 6 in dimension 1 of 'b', got 6"),
            (((2, 1, 384), (2, 6), (2, 3, 2)), r"must be max\(seq, 3\), which is 3")):
        with pytest.raises(InputError, match=message):
            planner(shapes)


@pytest.mark.parametrize("shapes", [
    [(TOTAL, BATCH)], [(BATCH, ["*", PAST, SEQ])], [(BATCH, PAST, ["*", SEQ, SEQ])], [(BATCH, PAST, ["//", SEQ, 2])],
    [(BATCH, PAST, ["max", SEQ, 1])], [(BATCH, PAST)]])
def test_symbols_that_cannot_be_solved_are_found_at_load(shapes: list[tuple[Any, ...]]) -> None:
    with pytest.raises(ArtifactError, match="do not determine"):
        decoder(*shapes)


def test_a_product_is_solved_where_the_other_factor_is_known() -> None:
    planner = decoder((BATCH, PAST, ["*", BATCH, SEQ]))
    assert planner(((3, 1, 12),)).symbols == (3, 1, 4)
    assert planner(((0, 1, 0),)).symbols == (0, 1, 0)
    with pytest.raises(InputError, match="no seq >= 0 gives, got 13"):
        planner(((3, 1, 13),))


def test_constraints() -> None:
    planner = decoder((BATCH, SEQ, PAST), constraints=(Constraint(("%", SEQ, 8), 0, "seq % 8 == 0"),))
    planner(((1, 16, 2),))
    with pytest.raises(InputError, match="the input shapes break seq % 8 == 0: 1 is not 0, as batch = 1"):
        planner(((1, 17, 2),))


def test_axes_of_one_are_stretched_to_what_others_tell() -> None:
    inputs = [Tensor(name, "float32", shape, tuple(dims.text(p, NAMES) for p in shape), stretch)
              for name, shape, stretch in (("a", (BATCH, ("+", PAST, SEQ)), (0, 1)), ("b", (BATCH, SEQ, 1), ()),
                                           ("c", (PAST, 4), (1,)), ("d", (PAST, BATCH), (0,)))]
    planner = Planner(Model("m", tuple(inputs), (), NAMES))
    whole = ((2, 8), (2, 5, 1), (3, 4), (3, 2))
    assert planner.stretched(((1, 1), (2, 5, 1), (3, 1), (1, 2))) == whole
    assert planner.stretched(whole) == whole
    assert planner.stretched(((1, 9), (2, 5, 1), (3, 4), (3, 2))) == ((2, 9), *whole[1:])  # 9 stays to be refused
    none = ((1, 5), (0, 5, 1), (0, 4), (1, 0))
    assert planner.stretched(none) == none  # where two axes of 1 and 0 meet, 0 is no longer
    with pytest.raises(InputError, match="'c' must have 2 dimensions"):
        planner.stretched(((1, 1), (2, 5, 1), (1,), (1, 2)))


def test_the_end_of_a_frame() -> None:
    planner = decoder((BATCH, SEQ, PAST), dims=(SEQ, ("*", SEQ, 2)), slots=(("*", SEQ, 4), 65, 0, 1), scratch=SEQ)
    plan = planner(((1, 17, 2),))
    assert struct.unpack("=7q", plan.tail) == (17, 34, 0, 128, 256, 256, 320)
    assert (plan.arena, plan.scratch) == (320, 17)
    without = decoder((BATCH, SEQ, PAST), slots=(64,))(((1, 1, 1),))
    assert (struct.unpack("=1q", without.tail), without.arena, without.scratch) == ((0,), 64, 0)


def test_a_symbol_is_counted() -> None:
    planner = decoder((BATCH, SEQ), counts=(Count(1, 0),), slots=(PAST,), scratch=1)
    plan = planner(((3, 7),), (5,))
    assert plan.symbols == (3, 5, 7) and struct.unpack("=2q", plan.tail) == (0, 64) and plan.arena == 64
    assert planner(((3, 7),), (0,)).symbols == (3, 0, 7)
    with pytest.raises(InputError, match="2: 5 is not 0, as batch = 3 in .*, past = 5 counted in 'a'"):
        decoder((BATCH, SEQ), counts=(Count(1, 0),),
                constraints=(Constraint(PAST, 0, "past == 2"),))(((3, 7),), (5,))


def test_a_run_gets_threads_for_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("q8c.runtime.planner.THREAD_COST", 20_000)
    planner = decoder((BATCH, SEQ, PAST), cost=("*", SEQ, 1000))
    assert [planner(((1, seq, 2),)).threads for seq in (0, 1, 20, 39, 40, 100)] == [1, 1, 1, 1, 2, 5]
    assert decoder((BATCH, SEQ, PAST), cost=("*", SEQ, 2**50))(((1, 7, 2),)).threads > 1000


@pytest.mark.parametrize(("more", "message"), [
    ({"dims": (("+", SEQ, -8),)}, r"a size of -1, which must be in \[0, 2\*\*47\), as batch"),
    ({"slots": (("*", SEQ, 2**45),)}, "a size of 246290604621824"),
    ({"slots": (("*", SEQ, 2**44),) * 2}, "ask for 246290604621824 bytes"),
    ({"dims": (("*", SEQ, 2**61),)}, "too large; use other input shapes"),
    ({"dims": (("//", 8, ("+", SEQ, -7)),)}, "divides by zero"),
    ({"scratch": ("*", SEQ, -1)}, "a size of -7")])
def test_impossible_sizes(more: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decoder((BATCH, SEQ, PAST), **more)(((1, 7, 2),))
