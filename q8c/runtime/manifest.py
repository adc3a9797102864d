"""The manifest of a compiled file: its parts, what chooses among them, and where everything lies in the file."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from q8c.runtime.cpu import TIERS
from q8c.runtime.model import Model, Tensor, model_json, read_model
from q8c.runtime.sections import (
    Constant,
    Image,
    Section,
    image_json,
    read_constants,
    read_image,
    read_section,
    section_json,
    unique,
)
from q8c.runtime.strict_json import bad, integer, items, members, string

Choice: TypeAlias = "int | str | tuple[int, Choice, Choice]"
"""The number of a part to run; or why there is none for this way; or the number of a condition, and the choices where
it is true and where it is not."""
MAX_PARTS = 64
MAX_CONDITIONS = 8  # one after the other


@dataclass(frozen=True)
class Part:
    """A model that can run. Most files have one; where branches of a model are chosen by what inputs hold, there is one
    for each way, `when` it is taken being for people, and one for each condition, which has one bool as its output."""

    when: str
    model: Model
    constants: tuple[Constant, ...]
    ir: Section
    images: tuple[Image, ...]

    def to_json(self) -> dict[str, Any]:
        """The part as JSON values."""
        return {"when": self.when, "model": model_json(self.model),
                "constants": [vars(c) | {"shape": list(c.shape)} for c in self.constants],
                "ir": section_json(self.ir), "images": list(map(image_json, self.images))}


@dataclass(frozen=True)
class Manifest:
    """Everything a compiled file says about itself. Conditions stand behind all other parts. Parts share the weights: a
    constant's offset is one in there."""

    parts: tuple[Part, ...]
    choice: Choice
    weights: Section

    @property
    def ways(self) -> list[Part]:
        """The parts that are no conditions."""
        return list(self.parts[:len(self.parts) - len(conditions_of(self.choice))])

    @property
    def model(self) -> Model:
        """The first part's model, which is the only one of most files."""
        return self.parts[0].model

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON values."""
        return {"parts": [part.to_json() for part in self.parts], "choice": self.choice,
                "weights": section_json(self.weights)}

    @staticmethod
    def from_json(value: object) -> Manifest:
        """The manifest a JSON value stands for. Raises ArtifactError naming the first member that is wrong."""
        parts, choice, weights = members(value, "manifest", "parts", "choice", "weights")
        section = read_section(weights, "manifest.weights")
        result = Manifest(tuple(_part(p, at, section.size) for at, p in items(parts, "manifest.parts", MAX_PARTS)),
                          _choice(choice, "manifest.choice", MAX_CONDITIONS), section)
        _check_choice(result)
        _check_borders(result)
        return result


def ways_of(choice: Choice) -> list[int]:
    """The numbers of the parts a choice ends in."""
    return [c for c in _within(choice) if isinstance(c, int)]


def refused_by(choice: Choice) -> list[str]:
    """Of each way that there is no part for, when it is taken and why."""
    return [c for c in _within(choice) if isinstance(c, str)]


def conditions_of(choice: Choice) -> list[int]:
    """The numbers of the parts that decide a choice."""
    return [c[0] for c in _within(choice) if isinstance(c, tuple)]


def _within(choice: Choice) -> Iterator[Choice]:
    """A choice and all choices in it."""
    yield choice
    for inner in choice[1:] if isinstance(choice, tuple) else ():
        yield from _within(inner)


def _part(value: object, where: str, weights: int) -> Part:
    when, model, constants, ir, images = members(value, where, "when", "model", "constants", "ir", "images")
    part = Part(string(when, f"{where}.when"), read_model(model, f"{where}.model"),
                read_constants(constants, f"{where}.constants", weights), read_section(ir, f"{where}.ir"),
                tuple(read_image(i, at) for at, i in items(images, f"{where}.images", len(TIERS))))
    unique([i.tier for i in part.images], f"{where}.images")
    return part


def _choice(value: object, where: str, depth: int) -> Choice:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return integer(value, where, 0, MAX_PARTS - 1)
    if len(value) != 3 or not depth:
        raise bad(where, f"[condition, choice, choice], at most {MAX_CONDITIONS} deep", value)
    return (integer(value[0], f"{where}[0]", 0, MAX_PARTS - 1),
            _choice(value[1], f"{where}[1]", depth - 1), _choice(value[2], f"{where}[2]", depth - 1))


def _check_choice(manifest: Manifest) -> None:
    """Every part must be chosen or decide once, and what decides must be a condition."""
    conditions = conditions_of(manifest.choice)
    ways = sorted(ways_of(manifest.choice))
    if not ways or [*ways, *sorted(conditions)] != list(range(len(manifest.parts))):
        raise bad("manifest.choice", f"a choice among {len(manifest.parts)} parts, each in it once", manifest.choice)
    for number in conditions:
        model = manifest.parts[number].model
        if [t.dtype for t in model.outputs] != ["bool"] or model.cache is not None:
            raise bad(f"manifest.parts[{number}].model", "a condition, with one output, which is bool", model.name)


def _check_borders(manifest: Manifest) -> None:
    """Parts must have code for the same tiers, agree on the types of inputs, and have the same outputs."""
    first, ways = manifest.parts[0], manifest.ways
    types: dict[str, str] = {}
    for number, part in enumerate(manifest.parts):
        where = f"manifest.parts[{number}]"
        if [i.tier for i in part.images] != [i.tier for i in first.images]:
            raise bad(f"{where}.images", "for the same tiers in all parts", ", ".join(i.tier for i in part.images))
        for tensor in part.model.inputs:
            if types.setdefault(tensor.name, tensor.dtype) != tensor.dtype:
                raise bad(f"{where}.model.inputs", f"of one type each in all parts ({tensor.name!r})", tensor.dtype)
    for part in ways:
        if _border(part.model.outputs) != _border(ways[0].model.outputs):
            raise bad("manifest.parts", f"of the same outputs ({part.when!r})", str(_border(part.model.outputs)))


def _border(tensors: tuple[Tensor, ...]) -> list[tuple[str, str]]:
    return [(t.name, t.dtype) for t in tensors]
