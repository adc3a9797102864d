"""What masks of attention mean: which keys a query sees, proved from how the masks are computed."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from q8c.ir.dims import Dim, Expr, sym
from q8c.ir.graph import Graph, Value
from q8c.passes.attention_scores import Added, Step
from q8c.passes.element import Elements, Facts, NotZero, Opaque, Order, cases, consistent
from q8c.passes.padding_mask import PADDED
from q8c.passes.rules import uniform

# A score below 32 added to this or less vanishes in rounding, so that all keys of a query that sees none weigh alike.
SWALLOWS = -2.0**29
BATCH, HEAD, QUERY, KEY = (f"{name}_position" for name in ("batch", "head", "query", "key"))


@dataclass(frozen=True)
class Causal:
    """Masks that let a query see no later keys, and of these where `key_mask` is not 0 (all, if there is none).

    `spread`: a query that sees no key weighs all alike.
    """

    key_mask: NotZero | None
    spread: bool


def causal_mask(graph: Graph, steps: Sequence[Step], sizes: tuple[Dim, Dim, Dim, Dim]) -> Causal | str | None:
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
    earlier = sym(QUERY) - sym(KEY) + (keys - queries)
    order = {f for f in facts if isinstance(f, Order)}
    elements = [f for f in facts if isinstance(f, NotZero)]
    if not order:
        return None
    if any(_differ_by(f.difference, KEY) == 0 for f in order):
        return "its mask compares positions of queries with numbers"
    own = {f for f in order if f.difference in (earlier, earlier * -1 - 1)}
    if not own:
        return f"its mask compares {next(iter(order)).difference}, which is not whether a key comes later"
    if len(elements) > 1:
        return "its mask depends on more than one input"
    problem = _check_element(graph, elements[0], batch, keys) if elements else ""
    return problem or _judge(found, next(iter(own)), earlier, elements[0] if elements else None)


def _added(e: Elements, steps: Sequence[Step], positions: Sequence[Dim]) -> float:
    """What becomes of a score 0."""
    total = np.float32(0)
    for step in steps:
        if isinstance(step, Added):
            total = np.float32(total + _number(e, step.mask, positions, step.joined))
        elif bool(_number(e, step.condition, positions, step.joined)) is step.where:
            total = np.float32(uniform(step.fill))
    return float(total)


def _number(e: Elements, value: Value, positions: Sequence[Dim], joined: bool) -> float:
    if joined and value.type.rank == 3 and value.shape[0] != 1:
        raise Opaque("its mask has batch and heads in one axis")
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


def _judge(found: Sequence[tuple[Facts, float]], own: Order, earlier: Dim, element: NotZero | None) -> Causal | str:
    """Whether a key is seen exactly where it comes no later and its element is not 0."""
    unseen: set[float] = set()
    for case, total in found:
        for near, there in _seen(case, own, earlier, element):
            if near and there:
                if total != 0:
                    farther = any(isinstance(f, Order) and f != own for f in case)
                    return f"its mask adds {total:g} to a key that comes no later" + " (in a window?)" * farther
            elif total > PADDED:
                return f"its mask adds {total:g} to a key that {'is masked' if near else 'comes later'}"
            else:
                unseen.add(total)
    if element is None or unseen == {-np.inf}:
        return Causal(element, False)
    if len(unseen) > 1 or next(iter(unseen)) > SWALLOWS:
        numbers = ", ".join(f"{total:g}" for total in sorted(unseen))
        return f"a query that sees no key would get weights that depend on what its mask adds ({numbers})"
    return Causal(element, True)


def _seen(case: Facts, own: Order, earlier: Dim, element: NotZero | None) -> Iterator[tuple[bool, bool]]:
    """In which ways a key can come no later, and be there by its element, in a case of the facts."""
    for near in (True, False):
        held = near == (own.difference == earlier)
        if case.get(own, held) == held and consistent({**case, own: held}):
            for there in (True, False) if element is not None else (True,):
                if element is None or case.get(element, there) == there:
                    yield near, there
