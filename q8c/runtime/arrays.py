"""Turns what people feed a model into dense arrays of the declared type, or says what was expected and what came."""
from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from q8c.errors import InputError
from q8c.runtime.memory import require_memory

Array = npt.NDArray[Any]


def misfit(feed: object, known: Collection[str], needed: Collection[str], listed: str = "the inputs are") -> InputError:
    """The error of a feed that is no dict, lacks a `needed` name or has one that is not `known`; both in order."""
    listed = f"{listed} {', '.join(known) or 'none'}"
    if not isinstance(feed, Mapping):
        return InputError(f"the feed must be a dict from names to arrays, got a {type(feed).__name__}; {listed}")
    missing = [name for name in needed if name not in feed]
    unknown = [name for name in feed if name not in known]
    parts = [f"{what} {', '.join(map(repr, names))}"
             for what, names in (("lacks", missing), ("has the unknown", unknown)) if names]
    return InputError(f"the feed {' and '.join(parts)}; {listed}")


def coerce(name: str, value: object, dtype: np.dtype[Any]) -> Array:
    """`value` as a plain array of exactly `dtype` in native byte order.

    Arrays must have the dtype already, in any byte order. Python numbers and (nested) lists and tuples of them are
    taken where every value fits: integers into integers and floats, floats into floats, bools into bool.
    """
    if isinstance(value, (bool, int, float, list, tuple)):
        return _from_python(name, value, dtype)
    try:
        array: Array = np.asarray(value)
    except Exception as error:  # whatever an array-like's own conversion raises
        reason = " ".join(str(error).split())
        raise InputError(f"input {name!r} cannot be read as an array ({reason}); pass a numpy array") from error
    if array.dtype != dtype:
        if array.dtype.newbyteorder("=") != dtype:
            advice = "pass a numpy array of that type"
            if array.dtype.kind in "biufc":
                advice = f"convert it with .astype(np.{_numpy_name(dtype)})"
            raise InputError(f"input {name!r} must be {dtype}, got {_kind(value, array)}; {advice}")
        require_memory(array.nbytes, f"a native copy of input {name!r}")
        return np.array(array, dtype)
    return array


def dense(name: str, array: Array) -> Array:
    """A copy of a strided or misaligned array that compiled code can read. Raises InputError if there is no room."""
    require_memory(array.nbytes, f"a dense copy of input {name!r}")
    try:
        return np.array(array, order="C")
    except MemoryError as error:
        raise InputError(f"no memory for a dense copy of input {name!r} ({array.nbytes} bytes)") from error


def _from_python(name: str, value: object, dtype: np.dtype[Any]) -> Array:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"input {name!r} is not a regular list of numbers ({error}); pass a numpy array") from None
    if array.size == 0 and array.dtype == np.float64:  # an empty list says nothing of a type
        return array.astype(dtype)
    kind, wanted = array.dtype.kind, dtype.kind
    if not (kind == wanted or kind in "iu" and wanted in "iuf"):
        raise InputError(f"input {name!r} must be {dtype}, got a list of {array.dtype}; "
                         f"pass np.array(..., np.{_numpy_name(dtype)})")
    with np.errstate(over="ignore"):
        converted = array.astype(dtype)
    exact = np.array_equal(converted, array) if kind != "f" else bool(
        (np.isfinite(converted) == np.isfinite(array)).all())
    if not exact:
        raise InputError(f"input {name!r} must be {dtype}, and it holds a number that does not fit")
    return converted


def _kind(value: object, array: Array) -> str:
    dtype = str(array.dtype)
    return dtype if isinstance(value, (np.ndarray, np.generic)) else f"a {type(value).__name__} of {dtype}"


def _numpy_name(dtype: np.dtype[Any]) -> str:
    return "bool_" if dtype.name == "bool" else dtype.name
