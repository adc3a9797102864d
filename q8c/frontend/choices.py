"""Which branch an If takes whose condition only a run knows: a model is imported once for each way it can go."""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

from q8c.errors import InputError, UnsupportedError
from q8c.frontend.settings import drop_unread, is_read
from q8c.ir import Graph, interpret
from q8c.ir.graph import Value, ancestors

MOST_CONDITIONS = 4
"""Conditions one after the other that a run decides; n of them are up to 2^n parts."""
Choice: TypeAlias = "int | str | tuple[int, Choice, Choice]"
"""The number of a part to run; or why there is none for this way; or the number of a condition's, and the choices where
it is true and where it is not."""
Decided: TypeAlias = "Mapping[int, bool]"
"""What was decided of Ifs, by their numbers in the order of import."""


@dataclass(frozen=True)
class Part:
    """One way of a model: its graph where the conditions `when` hold (`use_cache and not first`; empty where a model
    has one way only). Of a condition, the graph that computes it, and its name."""

    graph: Graph
    when: str = ""


@dataclass(frozen=True)
class Parts:
    """All ways of a model, the conditions that choose among them behind them, and how they do."""

    parts: tuple[Part, ...]
    choice: Choice = 0

    @property
    def ways(self) -> tuple[Part, ...]:
        """The parts that are no conditions."""
        return self.parts[:len(self.parts) - sum(isinstance(c, tuple) for c in _within(self.choice))]

    @property
    def conditions(self) -> tuple[Part, ...]:
        """The parts that are conditions."""
        return self.parts[len(self.ways):]

    @property
    def refused(self) -> tuple[str, ...]:
        """Of each way that there is no part for, when it is taken and why."""
        return tuple(c for c in _within(self.choice) if isinstance(c, str))

    def chosen(self, feed: Mapping[str, Any]) -> int:
        """The number of the part for a feed. Raises InputError for one that a condition cannot be computed from, or
        that chooses a way without a part."""
        choice = self.choice
        while isinstance(choice, tuple):
            number, yes, no = choice
            holds, = interpret(self.parts[number].graph, self.feed(number, feed))
            choice = yes if holds.any() else no
        if isinstance(choice, str):
            raise InputError(f"the feed chooses a branch that is not compiled, {choice}")
        return choice

    def feed(self, number: int, feed: Mapping[str, Any]) -> dict[str, Any]:
        """What a part takes of a feed; all of it where there is one part."""
        if not self.conditions:
            return dict(feed)
        return {v.name: feed[v.name] for v in self.parts[number].graph.inputs if v.name in feed}


def _within(choice: Choice) -> Iterator[Choice]:
    """A choice and all choices in it."""
    yield choice
    for inner in choice[1:] if isinstance(choice, tuple) else ():
        yield from _within(inner)


class Undecided(Exception):
    """An If whose condition only a run knows: its number, and the condition's name and graph."""

    def __init__(self, number: int, name: str, graph: Graph) -> None:
        super().__init__(f"{name} is not decided")
        self.number, self.name, self.graph = number, name, graph


class Choices:
    """Decides the Ifs of one import, those with the same condition alike."""

    def __init__(self, graph: Graph, decided: Decided | None) -> None:
        """With None, all conditions must be known when a model is compiled."""
        self._graph, self._decided = graph, decided
        self._met = 0
        self._taken: dict[str, bool] = {}

    def meet(self) -> None:
        """Count an If, whether or not its condition is known."""
        self._met += 1

    def take(self, condition: Value, name: str, problem: UnsupportedError) -> bool:
        """Whether the condition of the If met last holds. Raises Undecided if nothing was decided of it yet, and
        UnsupportedError where nothing may be or too much was."""
        if self._decided is None:
            _advise(problem)
        formula = formula_of(self._graph, condition)
        if formula not in self._taken:
            if self._met not in self._decided:
                if len(self._decided) == MOST_CONDITIONS:
                    raise UnsupportedError(f"{problem}, after {MOST_CONDITIONS} other such conditions", problem.inputs)
                raise Undecided(self._met, name, _alone(self._graph, condition))
            self._taken[formula] = self._decided[self._met]
        return self._taken[formula]


def _advise(problem: UnsupportedError) -> NoReturn:
    if len(problem.inputs) != 1:
        raise problem
    raise UnsupportedError(f"{problem}, or `--set {min(problem.inputs)}=...` chooses a branch", problem.inputs)


def _alone(graph: Graph, condition: Value) -> Graph:
    """What is left of a graph that need only compute the condition."""
    graph.name = "condition"
    graph.add_output(condition, "condition")
    graph.prune()
    drop_unread(graph)
    return graph


def formula_of(graph: Graph, value: Value) -> str:
    """A digest of how a value follows from inputs and constants, the same for the same formula written twice."""
    found: dict[Value, str] = {v: f"input {v.name}" for v in graph.inputs}
    needed = ancestors(value)
    for constant in needed:
        if constant.is_constant:
            found[constant] = _digest(constant.type, constant.array().tobytes())
    for node in graph.nodes:
        if not needed.isdisjoint(node.outputs):
            operands = [v and found[v] for v in node.inputs]
            for i, output in enumerate(node.outputs):
                found[output] = _digest(node.op, sorted((k, str(a)) for k, a in node.attrs.items()), operands, i)
    return found[value]


def _digest(*parts: object) -> str:
    return hashlib.sha256("; ".join(map(repr, parts)).encode()).hexdigest()


def explore(imported: Callable[[Decided], Graph]) -> Parts:
    """All ways of a model, where `imported` gives its graph for what was decided, or raises Undecided.

    A way for which it raises UnsupportedError is left out; the first such error is raised where no way is left.
    """
    ways: list[Part] = []
    conditions: list[Part] = []
    problems: list[UnsupportedError] = []

    def follow(decided: Decided, when: Sequence[str]) -> Choice:
        try:
            ways.append(Part(imported(decided), " and ".join(when)))
            return len(ways) - 1
        except Undecided as found:
            conditions.append(Part(found.graph, found.name))
            number = -len(conditions)
            yes = follow({**decided, found.number: True}, (*when, found.name))
            return number, yes, follow({**decided, found.number: False}, (*when, f"not {found.name}"))
        except UnsupportedError as problem:
            problems.append(problem)
            return f"where {' and '.join(when)}: {problem}"

    def numbered(choice: Choice) -> Choice:
        if not isinstance(choice, tuple):
            return choice
        number, yes, no = choice
        return len(ways) - 1 - number, numbered(yes), numbered(no)

    choice = numbered(follow({}, ()))
    if not ways:
        raise problems[0]
    parts = Parts((*ways, *conditions), choice)
    if conditions:
        read = {v.name for part in parts.parts for v in part.graph.inputs if is_read(part.graph, v)}
        for way in ways:
            drop_unread(way.graph, {v.name for v in way.graph.inputs} - read)
    return parts
