"""Which part of a compiled file a run is of, where branches of the model are chosen by what its inputs hold."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from q8c.errors import Error, InputError
from q8c.runtime.arrays import misfit
from q8c.runtime.manifest import Manifest, ways_of
from q8c.runtime.model import Tensor
from q8c.runtime.runner import Feed, Runner
from q8c.runtime.state import Layout

_ONNX_TYPES = {"float32": "float", "float64": "double"}


@dataclass(frozen=True)
class Argument:
    """An input or output as ONNX Runtime describes one: free dimensions are text, `type` is such as "tensor(int64)"."""

    name: str
    shape: list[int | str]
    type: str
    dtype: np.dtype[Any]


class Chooser:
    """Runs the conditions of a file with several parts; of a file with one part it is that one. Safe in threads."""

    def __init__(self, manifest: Manifest, runners: tuple[Runner, ...]) -> None:
        self._runners, self._choice = runners, manifest.choice
        self._ways = [runners[n] for n in ways_of(manifest.choice)]
        self._names = {t.name for runner in runners for t in runner.model.inputs}

    def choose(self, feed: Feed, on_state: bool) -> tuple[Runner, Feed]:
        """The part for a feed, and what it reads of it; inputs that only others read may be there or not.

        On a state it is the part that keeps one, if that is the only one and the feed does not say otherwise. Raises
        InputError for inputs that there are not, and where what decides is missing.
        """
        if len(self._runners) == 1:
            return self._runners[0], feed
        if not isinstance(feed, Mapping) or not feed.keys() <= self._names:
            raise misfit(feed, [argument.name for argument in self.inputs()], ())
        keeping = [runner for runner in self._ways if runner.keeper]
        runner = keeping[0] if on_state and len(keeping) == 1 and not self._decided(feed) else self._chosen(feed)
        return runner, _read(runner, feed)

    def layout(self) -> Layout | None:
        """What states hold, None if no part keeps any. Raises Error where parts keep different ones."""
        layouts = [runner.layout for runner in self._ways if runner.layout]
        if any(layout != layouts[0] for layout in layouts):
            raise Error("the branches of this model keep different keys and values, which no state holds; "
                        "compile them one by one (q8c compile --set)")
        return layouts[0] if layouts else None

    def inputs(self) -> list[Argument]:
        """All inputs, each name once, in the order of the parts."""
        found: dict[str, list[Tensor]] = {}
        for runner in self._runners:
            for tensor in runner.model.inputs:
                found.setdefault(tensor.name, []).append(tensor)
        return [_argument(same) for same in found.values()]

    def outputs(self) -> list[Argument]:
        """The outputs, which are the same in all parts that are no conditions, but for their shapes; one that the
        model lists twice is there twice."""
        return [_argument(list(same)) for same in zip(*(r.model.outputs for r in self._ways), strict=True)]

    def _chosen(self, feed: Feed) -> Runner:
        choice = self._choice
        while isinstance(choice, tuple):
            number, yes, no = choice
            condition = self._runners[number]
            missing = [t.name for t in condition.model.inputs if t.name not in feed]
            if missing:
                raise InputError(f"the feed lacks {', '.join(map(repr, missing))}, which chooses a branch of the model")
            [holds] = condition.run((), _read(condition, feed))
            choice = yes if holds.any() else no
        if isinstance(choice, str):
            raise InputError(f"the feed chooses a branch that is not compiled, {choice}")
        return self._runners[choice]

    def _decided(self, feed: Feed) -> bool:
        """Whether the feed has all that the first condition reads."""
        assert isinstance(self._choice, tuple)
        return all(t.name in feed for t in self._runners[self._choice[0]].model.inputs)


def _read(runner: Runner, feed: Feed) -> Feed:
    return {t.name: feed[t.name] for t in runner.model.inputs if t.name in feed}


def _argument(tensors: list[Tensor]) -> Argument:
    """One tensor of all parts that have it: dimensions that differ are text, such as `seq or past + seq`; where ranks
    do, the shape is that of the first."""
    first = tensors[0]
    alike = [t for t in tensors if len(t.shape) == len(first.shape)]
    shape: list[int | str] = []
    for axis, program in enumerate(first.shape):
        texts = list(dict.fromkeys(t.text[axis] for t in alike))
        shape.append(program if isinstance(program, int) and len(texts) == 1 else " or ".join(texts))
    element = _ONNX_TYPES.get(first.dtype, first.dtype)
    return Argument(first.name, shape, f"tensor({element})", np.dtype(first.dtype))
