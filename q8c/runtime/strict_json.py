"""JSON for files nobody vouches for: one spelling when written, and every liberty refused when read.

The checkers raise ArtifactError naming the member (`manifest.inputs[0].name`), so the manifest's own `from_json` is a
plain list of what it expects.
"""
from __future__ import annotations

import json
import math
import re
from typing import Any

from q8c.errors import ArtifactError

MAX_BYTES = 16 << 20
"""The longest JSON text read; parsed, it stays below half a gigabyte whatever it holds."""
MAX_STRING = 4096
_INTEGER_DIGITS = 20
_UNFIT = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]")


def dumps(value: object) -> bytes:
    """Canonical JSON (sorted keys, no spaces, ASCII). Raises ValueError for NaN and TypeError for non-JSON values."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def loads(data: bytes) -> object:
    """The value of a JSON text of at most `MAX_BYTES` (the caller sees to that), which may hold no duplicate keys, NaN,
    infinities, long integers or deep nesting. Raises ArtifactError."""
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_int=_integer, parse_float=_finite,
                          parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:100]
        raise ArtifactError(f"the manifest is not valid JSON ({reason}); compile the model again") from None


def bad(where: str, expected: str, value: object) -> ArtifactError:
    """The error for a member that is not what the format says."""
    got = repr(value)[:60] if isinstance(value, (str, int, float, type(None))) else f"a {type(value).__name__}"
    return ArtifactError(f"{where} must be {expected}, got {got}; the file is damaged: compile the model again")


def members(value: object, where: str, *names: str) -> list[Any]:
    """The values of an object's members, which must be exactly `names`, in that order."""
    if not isinstance(value, dict):
        raise bad(where, "an object", value)
    if set(value) != set(names):
        raise bad(where, f"an object with the members {', '.join(names)}", ", ".join(sorted(map(str, value))))
    return [value[name] for name in names]


def items(value: object, where: str, limit: int = 1 << 20) -> list[tuple[str, Any]]:
    """A list's elements, each with the name it goes by in messages."""
    if not isinstance(value, list) or len(value) > limit:
        raise bad(where, f"a list of at most {limit}", value)
    return [(f"{where}[{i}]", element) for i, element in enumerate(value)]


def fits(text: str, limit: int = MAX_STRING) -> bool:
    """Whether `string` takes the text."""
    return len(text) <= limit and not _UNFIT.search(text)


def escaped(text: str) -> str:
    """The text as `string` takes it: control characters as escapes, the end cut off if it is very long."""
    return _UNFIT.sub(lambda match: repr(match[0])[1:-1], text)[:MAX_STRING]


def string(value: object, where: str, limit: int = MAX_STRING) -> str:
    """A string of at most `limit` characters, without any that break a line or cannot be printed."""
    if not isinstance(value, str) or not fits(value, limit):
        raise bad(where, f"a string of at most {limit} characters without control characters", value)
    return value


def integer(value: object, where: str, low: int = 0, high: int = 1 << 47) -> int:
    """An integer in [low, high]."""
    if type(value) is not int or not low <= value <= high:
        raise bad(where, f"an integer in [{low}, {high}]", value)
    return value


def mapping(value: object, where: str) -> dict[str, Any]:
    """An object with any members."""
    if not isinstance(value, dict):
        raise bad(where, "an object", value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return result


def _integer(digits: str) -> int:
    if len(digits) > _INTEGER_DIGITS:
        raise ValueError("an integer is too long")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number is out of range")
    return value


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
