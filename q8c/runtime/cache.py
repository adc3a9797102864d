"""What a compiled file says of the keys and values a model keeps from run to run."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from q8c.runtime.kept import FORMATS
from q8c.runtime.strict_json import bad, integer, items, members, string

if TYPE_CHECKING:
    from q8c.runtime.model import Tensor

NONE = -1
MOST_KEYS = (1 << 31) - 1
_POSITIONS = ("int32", "int64")
_MASKS = ("bool", "int8", "int16", "uint8", "uint16", "uint32", "uint64", *_POSITIONS)


@dataclass(frozen=True)
class Cache:
    """Keys and values in buffers that grow in place; inputs and outputs by number.

    `pairs` are an input, what is kept, and the output it becomes: float32 [batch, heads, past, size], `formats` how the
    rows of each lie in its buffer. `tokens` are an input and its axis that is as long as there are new tokens. `mask`
    is the input [batch, past + new] that is not 0 where a key may be seen, `positions` the one [batch, new] that says
    where in their sequence new tokens stand, `NONE` where there is no such. In a `uniform` model all sequences of a
    batch must be equally long. Where lengths are `given`, inputs of a run without a state say them. With a `window`, no
    token sees keys so many or more before it; 0: all.
    """

    pairs: tuple[tuple[int, int], ...]
    formats: tuple[str, ...]
    tokens: tuple[int, int]
    mask: int
    positions: int
    uniform: bool
    given: bool = False
    window: int = 0

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        return {"pairs": list(map(list, self.pairs)), "formats": list(self.formats), "tokens": list(self.tokens),
                "mask": self.mask, "positions": self.positions, "uniform": self.uniform, "given": self.given,
                "window": self.window}


def read_cache(value: object, where: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Cache | None:
    """The record a JSON value stands for, None for null. Raises ArtifactError where it does not fit the signature."""
    if value is None:
        return None
    pairs, formats, tokens, mask, positions, uniform, given, window = members(
        value, where, "pairs", "formats", "tokens", "mask", "positions", "uniform", "given", "window")
    cache = Cache(
        tuple(_two(pair, at, len(inputs), len(outputs)) for at, pair in items(pairs, f"{where}.pairs", len(inputs))),
        tuple(string(name, at) for at, name in items(formats, f"{where}.formats", len(inputs))),
        _two(tokens, f"{where}.tokens", len(inputs), 32),
        integer(mask, f"{where}.mask", NONE, len(inputs) - 1),
        integer(positions, f"{where}.positions", NONE, len(inputs) - 1), uniform, given,
        integer(window, f"{where}.window", 0, MOST_KEYS))
    for name, flag in (("uniform", uniform), ("given", given)):
        if type(flag) is not bool:
            raise bad(f"{where}.{name}", "true or false", flag)
    _check_pairs(cache, where, inputs, outputs)
    _check_roles(cache, where, inputs)
    return cache


def _two(value: object, where: str, first: int, second: int) -> tuple[int, int]:
    parts = items(value, where, 2)
    if len(parts) != 2:
        raise bad(where, "two numbers", value)
    (a_at, a), (b_at, b) = parts
    return integer(a, a_at, 0, first - 1), integer(b, b_at, 0, second - 1)


def _check_pairs(cache: Cache, where: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    if not cache.pairs:
        raise bad(f"{where}.pairs", "at least one pair", [])
    if len(cache.formats) != len(cache.pairs) or not set(cache.formats) <= set(FORMATS) or (
            "f32" in cache.formats and len(set(cache.formats)) > 1):
        raise bad(f"{where}.formats", f"for each pair one of {', '.join(FORMATS)}, f32 for all or none",
                  list(cache.formats))
    lengths = set()
    for number, (i, o) in enumerate(cache.pairs):
        past, present = inputs[i], outputs[o]
        kept = len(past.shape) == 4 == len(present.shape) and past.dtype == present.dtype == "float32" and (
            past.shape[:2] == present.shape[:2] and past.shape[3] == present.shape[3])
        if not kept or not all(isinstance(d, int) and 0 < d < 1 << 20 for d in past.shape[1::2]):
            raise bad(f"{where}.pairs[{number}]", "float32 [batch, heads, past, size] and the same with more tokens",
                      f"{past.name}, {present.name}")
        lengths.add(past.shape[::2])
    if len(lengths) > 1 or not isinstance(length := lengths.pop()[1], tuple) or length[0] != "$":
        raise bad(f"{where}.pairs", "pasts of one batch and one free length", None)
    if any(len(set(numbers)) != len(cache.pairs) for numbers in zip(*cache.pairs, strict=True)):
        raise bad(f"{where}.pairs", "each input and output once", None)


def _check_roles(cache: Cache, where: str, inputs: Sequence[Tensor]) -> None:
    number, axis = cache.tokens
    if axis >= len(inputs[number].shape):
        raise bad(f"{where}.tokens", "an input and one of its axes", axis)
    given = [n for n in (number, cache.mask, cache.positions) if n != NONE]
    if len(set(given)) != len(given) or set(given) & {i for i, _ in cache.pairs}:
        raise bad(where, "with an input of its own for each of tokens, mask and positions", None)
    for role, n, dtypes in (("mask", cache.mask, _MASKS), ("positions", cache.positions, _POSITIONS)):
        if n != NONE and (len(inputs[n].shape) != 2 or inputs[n].dtype not in dtypes):
            raise bad(f"{where}.{role}", f"an input of {', '.join(dtypes)} with two axes", inputs[n].name)
