"""What a model takes and gives: checks a feed and finds the plan of a run on it."""
from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from q8c.errors import InputError
from q8c.runtime import arrays
from q8c.runtime.arrays import Array
from q8c.runtime.memory import is_dense
from q8c.runtime.model import Model
from q8c.runtime.planner import Plan, Planner, Shape

_CACHED_PLANS = 256


class Signature:
    """A model's inputs and outputs. Plans are cached per set of input shapes (and of counts, if the model counts in
    its inputs); all methods are safe in threads."""

    def __init__(self, model: Model) -> None:
        """Raises ArtifactError if the input shapes do not determine every symbol."""
        self._inputs = [(t.name, np.dtype(t.dtype)) for t in model.inputs]
        self._output_indices = {t.name: i for i, t in enumerate(model.outputs)}
        self._counted = [c.input for c in model.counts]
        planner = Planner(model)
        self._plans = functools.lru_cache(_CACHED_PLANS)(planner)
        self._stretched = functools.lru_cache(_CACHED_PLANS)(planner.stretched)

    def plan(self, *shapes: Shape) -> Plan:
        """The plan for input shapes, in the order of the inputs. Raises InputError where they do not fit.

        Where the model counts elements that are not 0, none is taken to be.
        """
        return self._plans(shapes, tuple([math.prod(shapes[i]) for i in self._counted]))

    def collect(self, feed: Mapping[str, object]) -> tuple[list[Array], Plan]:
        """The feed's arrays in order, dense and of the right types, and the plan of a run on them.

        An axis of 1 that the model broadcasts is stretched where others are longer. Raises InputError that says what
        was expected and what came.
        """
        inputs = self._inputs
        try:
            values = [feed[name] for name, _ in inputs]
            complete = len(feed) == len(inputs)
        except (KeyError, TypeError, IndexError):
            complete = False
        if not complete:
            names = [name for name, _ in inputs]
            raise arrays.misfit(feed, names, names)
        found: list[Array] = [
            value if type(value) is np.ndarray and value.dtype == dtype else arrays.coerce(name, value, dtype)
            for value, (name, dtype) in zip(values, inputs)]  # noqa: B905
        shapes = tuple([array.shape for array in found])
        try:
            plan = self._plans(shapes, self._counts(found))
        except InputError:
            stretched = self._stretched(shapes)
            if stretched == shapes:
                raise
            found = [np.broadcast_to(array, shape) for array, shape in zip(found, stretched)]  # noqa: B905
            plan = self._plans(stretched, self._counts(found))
        for i, array in enumerate(found):
            if not is_dense(array):
                found[i] = arrays.dense(inputs[i][0], array)
        return found, plan

    def _counts(self, arrays: list[Array]) -> tuple[int, ...]:
        return tuple([int(np.count_nonzero(arrays[i])) for i in self._counted])

    def array(self, index: int, value: object) -> Array:
        """What is fed to one input as a dense array of the right type. Raises InputError."""
        name, dtype = self._inputs[index]
        array = arrays.coerce(name, value, dtype)
        return array if is_dense(array) else arrays.dense(name, array)

    def select(self, names: Sequence[str]) -> list[int]:
        """Indices of outputs by name. Raises InputError naming those that do not exist."""
        known = self._output_indices
        if isinstance(names, str) or not isinstance(names, Iterable):
            raise InputError(f"output names must be a list of strings or None, got {names!r}")
        names = list(names)
        if not all(isinstance(name, str) for name in names):
            raise InputError(f"output names must be a list of strings or None, got {names!r}")
        unknown = [name for name in names if name not in known]
        if unknown:
            raise InputError(f"no outputs named {', '.join(map(repr, unknown))}; the outputs are {', '.join(known)}")
        return [known[name] for name in names]
