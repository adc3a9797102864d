"""What masks of attention mean: which keys a query sees, proved from how the masks are computed."""
from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from q8c.ir.dims import Dim, Expr, sym
from q8c.ir.graph import Graph, Value
from q8c.passes.attention_scores import Added, Raised, Step
from q8c.passes.element import Elements, Fact, Facts, NotZero, Opaque, Order, cases, consistent
from q8c.passes.padding_mask import PADDED

# A score below 32 added to this or less vanishes in rounding, so that all keys of a query that sees none weigh alike.
SWALLOWS = -2.0**29
BATCH, HEAD, QUERY, KEY = (f"{name}_position" for name in ("batch", "head", "query", "key"))


@dataclass(frozen=True)
class Seen:
    """Masks that let a query see the keys that come no later, if `causal`, and less than `window` keys away, if that is
    not 0; of these where `key_mask` is not 0 (all, if there is none).

    `spread`: a query that sees no key weighs all alike.
    """

    causal: bool
    window: int
    key_mask: NotZero | None
    spread: bool


def causal_mask(graph: Graph, steps: Sequence[Step], sizes: tuple[Dim, Dim, Dim, Dim]) -> Seen | str | None:
    """What the masks applied to scores of these sizes (batch, heads, queries, keys) say.

    None if they have nothing to do with the order of positions, else why they are not understood.
    """
    batch, heads, queries, keys = sizes
    positions = [sym(name) for name in (BATCH, HEAD, QUERY, KEY)]
    highest = {name: size - 1 for name, size in zip((BATCH, HEAD, QUERY, KEY), sizes, strict=True)}
    try:
        found = list(cases(highest, lambda e: _added(e, steps, positions)))
    except Opaque as opaque:
        return str(opaque)
    facts = {fact for case, _ in found for fact in case}
    order = sorted((f for f in facts if isinstance(f, Order)), key=lambda f: str(f.difference))
    elements = [f for f in facts if isinstance(f, NotZero)]
    if not order:
        return None
    if any(_differ_by(f.difference, KEY) == 0 for f in order):
        return "its mask compares positions of queries with numbers"
    before = sym(QUERY) - sym(KEY) + (keys - queries)
    bounds = sorted({bound for f in order if (bound := _bound(f.difference, before)) is not None})
    if not bounds:
        return f"its mask compares {order[0].difference}, which is not how far before a query a key comes"
    if len(elements) > 1:
        return "its mask depends on more than one input"
    problem = _check_element(graph, elements[0], batch, keys) if elements else ""
    return problem or _judge(found, before, bounds, elements[0] if elements else None)


def _bound(difference: Dim, before: Dim) -> int | None:
    """The least distance `before` for which a difference is >= 0, or no more is; None if it is not about that."""
    away, towards = difference - before, difference + before
    return -away if isinstance(away, int) else towards + 1 if isinstance(towards, int) else None


def _added(e: Elements, steps: Sequence[Step], positions: Sequence[Dim]) -> float:
    """What becomes of a score 0."""
    total = np.float32(0)
    for step in steps:
        if isinstance(step, Added):
            number = step.factor * _number(e, step.mask, positions, step.scores)
            with np.errstate(over="ignore"):  # two of the lowest numbers are minus infinity
                total = np.float32(total + number)
        elif isinstance(step, Raised):
            total = max(total, np.float32(step.least))
        elif bool(_number(e, step.condition, positions, step.scores)) is step.where:
            total = np.float32(step.number)
    return float(total)


def _number(e: Elements, value: Value, positions: Sequence[Dim], scores: Sequence[Dim]) -> float:
    if len(scores) == 3 and value.type.rank == 3 and value.shape[0] != 1:
        raise Opaque("its mask has batch and heads in one axis")
    if len(scores) > 4:
        raise Opaque("its mask has a batch of several axes")
    x = e.at(value, tuple(positions[4 - value.type.rank:]))
    if isinstance(x, Expr):
        raise Opaque("its mask is a number of positions")
    return float(x)


def _differ_by(d: Expr, name: str) -> int:
    return next((c for m, c in d.terms if m == (name,)), 0)


def _check_element(graph: Graph, fact: NotZero, batch: Dim, keys: Dim) -> str:
    """Why an element is not one per sequence and key, empty if it is."""
    value = fact.value
    axes = [(i, d) for i, d in zip(fact.index, value.shape, strict=True) if d != 1]
    expected = [(sym(BATCH), batch), (sym(KEY), keys)]
    if axes[:1] and axes[0][0] != sym(BATCH):
        expected = expected[1:]
    if len(axes) != len(expected) or any(i != j or not graph.known_equal(d, n)
                                         for (i, d), (j, n) in zip(axes, expected, strict=True)):
        return f"its mask reads %{value.name} [{', '.join(map(str, fact.index))}], which is not one per key"
    return ""


def _judge(found: Sequence[tuple[Facts, float]], before: Dim, bounds: Sequence[int],
           element: NotZero | None) -> Seen | str:
    """Which keys are seen: those some way before the query, between two of the bounds, whose element is not 0."""
    ends = [-math.inf, *bounds, math.inf]
    seen: list[tuple[float, float]] = []
    unseen: set[float] = set()
    for first, end in itertools.pairwise(ends):
        for there in (True, False) if element is not None else (True,):
            totals = {total for case, total in found if _may_be(case, before, first, end, element, there)}
            if not totals:  # no key can come from there
                continue
            if there and totals == {0}:
                seen.append((first, end - 1))
            elif max(totals) > PADDED:
                where = "is masked" if not there else "comes later" if end <= 0 else f"comes {first:g} before"
                return f"its mask adds {max(totals):g} to a key that {where}"
            else:
                unseen |= totals
    first, last = (seen[0][0], seen[-1][1]) if seen else (0, -1)
    causal, window = first == 0, 0 if last == math.inf else int(last) + 1
    if not seen or any(a[1] + 1 != b[0] for a, b in itertools.pairwise(seen)) or not causal and first != -last:
        shown = " and ".join(f"{a:g} to {b:g}" for a, b in seen) or "none"
        return f"its mask shows keys that come {shown} before the query, which is neither causal nor a window"
    if element is None or unseen == {-np.inf}:
        return Seen(causal, window, element, False)
    if len(unseen) > 1 or next(iter(unseen)) > SWALLOWS:
        numbers = ", ".join(f"{total:g}" for total in sorted(unseen))
        return f"a query that sees no key would get weights that depend on what its mask adds ({numbers})"
    return Seen(causal, window, element, True)


def _may_be(case: Facts, before: Dim, first: float, end: float, element: NotZero | None, there: bool) -> bool:
    """Whether a case may be that of a key which comes from `first` to less than `end` before the query, and whose
    element is not 0 if it is `there`."""
    place: dict[Fact, bool] = {}
    for bound, held in ((first, True), (end, False)):
        if math.isfinite(bound):
            difference = before - int(bound)
            assert isinstance(difference, Expr)
            place[Order(difference)] = held
    return (element is None or case.get(element, there) == there) and consistent({**case, **place}) and all(
        case.get(fact, held) == held for fact, held in place.items())
