"""Passes, the text that names them, and the manager that runs them one after the other.

A pass is a frozen dataclass: its fields are its arguments, so `fold-weights{format=q8-channel}` is
`FoldWeights(format="q8-channel")`. The manager verifies the graph after every pass that changed it and keeps in a
`Report` what was rewritten, what was declined and why, and how long it took. Printing, dumping and comparing results
between passes are observers (`observers.py`).
"""
from __future__ import annotations

import dataclasses
import logging
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias, get_type_hints

from q8c.errors import CompileError, OptionError
from q8c.ir import Graph, Node, verify

_LOG = logging.getLogger("q8c.passes")
_SPEC = re.compile(r"\s*([\w-]+)\s*(?:\{([^{}]*)\})?\s*(,|$)")
_BOOLS = {"true": True, "false": False}


@dataclass(frozen=True)
class Pass(ABC):
    """A rewrite of the whole graph; subclasses are frozen dataclasses whose fields have defaults.

    A field with `repr=False` cannot be written in a pass list.
    """

    name: ClassVar[str]
    lossy: ClassVar[bool] = False  # True where results may change by more than rounding (quantization)

    @abstractmethod
    def run(self, graph: Graph, report: Report) -> bool:
        """Rewrite the graph in place and return whether anything changed.

        The graph that is left verifies. What was rewritten, and what was looked at and left alone and why, goes to
        the report.
        """

    def __str__(self) -> str:
        args = [f"{f.name.replace('_', '-')}={_text(getattr(self, f.name))}" for f in dataclasses.fields(self)
                if f.repr and getattr(self, f.name) != f.default]
        return self.name + (f"{{{','.join(args)}}}" if args else "")


@dataclass(frozen=True, slots=True)
class Note:
    """What a pass did with one node, or the reason it left it alone."""

    pass_name: str
    node: str
    source: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        where = f" (from {self.source[0]})" if self.source else ""
        return f"{self.pass_name}: {self.node}{where}: {self.text}"


@dataclass(frozen=True, slots=True)
class Step:
    """One pass that has run. Step 0, called `input`, stands for the graph before the first."""

    index: int
    name: str
    changed: bool
    seconds: float
    nodes: int
    lossy: bool = False


@dataclass
class Report:
    """What a run of passes did: its steps in order, the rewrites, and the declines with their reasons."""

    steps: list[Step] = field(default_factory=list)
    rewrites: list[Note] = field(default_factory=list)
    _declines: dict[Note, None] = field(default_factory=dict)  # a dict, so that a reason given twice is kept once
    _current: str = "pass"

    @property
    def declines(self) -> list[Note]:
        """What was looked at and left alone, in order, each reason once."""
        return list(self._declines)

    def rewrote(self, node: Node, text: str) -> None:
        """Note that `node` was rewritten, or stands for what was; `text` says into or from what."""
        self.rewrites.append(self._note(node, text))

    def decline(self, node: Node, reason: str) -> None:
        """Note that the current pass looked at `node`, left it alone, and why."""
        self._declines[self._note(node, reason)] = None

    def _note(self, node: Node, text: str) -> Note:
        return Note(self._current, f"{node.op} %{node.output.name}", node.source, text)


Observer: TypeAlias = "Callable[[Graph, Step], None]"


def run_passes(graph: Graph, passes: Iterable[Pass], *, observers: Sequence[Observer] = (),
               report: Report | None = None) -> Report:
    """Run passes in order on the graph, verifying it after each that changed it, and return the report.

    Every observer is called with the graph before the first pass (step 0) and after each pass. Raises CompileError
    that names the passes already run if a pass fails or leaves a graph that does not verify.
    """
    report = Report() if report is None else report
    done: list[str] = []
    first = Step(0, "input", True, 0.0, len(graph.nodes))
    for observer in observers:
        observer(graph, first)
    for index, item in enumerate(passes, 1):
        step = _run_one(graph, item, index, report, done)
        report.steps.append(step)
        _LOG.debug("%s: %s, %d nodes, %.1f ms", step.name, "changed" if step.changed else "nothing to do", step.nodes,
                   step.seconds * 1e3)
        for observer in observers:
            observer(graph, step)
        done.append(item.name)
    return report


def _run_one(graph: Graph, item: Pass, index: int, report: Report, done: Sequence[str]) -> Step:
    report._current = item.name
    start = time.perf_counter()
    stage = "failed"
    try:
        changed = item.run(graph, report)
        stage = "left a graph that does not verify"
        if changed:
            verify(graph)
    except OptionError:
        raise
    except Exception as error:
        cause = str(error) if isinstance(error, CompileError) else f"{type(error).__name__}: {error}"
        raise CompileError(f"pass {item} {stage}: {cause}; passes already run: {', '.join(done) or 'none'}") from error
    return Step(index, str(item), changed, time.perf_counter() - start, len(graph.nodes), item.lossy)


def parse_passes(spec: str, available: Mapping[str, type[Pass]]) -> tuple[Pass, ...]:
    """The passes a text such as `fold-weights{format=q8-channel},fuse-linear` names.

    Arguments are separated by commas. Raises OptionError that lists the passes, or a pass's arguments, there are.
    """
    found: list[Pass] = []
    at = 0
    while at < len(spec):
        match = _SPEC.match(spec, at)
        if match is None:
            raise OptionError(f"pass list: expected name or name{{argument=value,...}}, got {spec[at:at + 40]!r}")
        name, args, _ = match.groups()
        if name not in available:
            raise OptionError(f"there is no pass {name!r}; expected one of {', '.join(sorted(available))}")
        found.append(_make(available[name], args or ""))
        at = match.end()
    if not found:
        raise OptionError(f"the pass list is empty; expected some of {', '.join(sorted(available))}")
    return tuple(found)


def _make(kind: type[Pass], text: str) -> Pass:
    hints = get_type_hints(kind)
    names = {f.name.replace("_", "-"): f.name for f in dataclasses.fields(kind) if f.repr}
    values: dict[str, Any] = {}
    for item in filter(None, (t.strip() for t in text.split(","))):
        key, _, value = item.partition("=")
        key = key.strip()
        if key not in names:
            raise OptionError(f"pass {kind.name} has no argument {key!r}; expected {', '.join(names) or 'none'}")
        wanted = hints[names[key]]
        try:
            values[names[key]] = _BOOLS[value.strip()] if wanted is bool else wanted(value.strip())
        except (ValueError, KeyError) as error:
            raise OptionError(f"pass {kind.name}: {key} expected {wanted.__name__}, got {value.strip()!r}") from error
    return kind(**values)


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
