"""Functions that many models need, each generated once in a process and an object of its own.

What a kernel is called says all that its code depends on. So a function of that name is made once for each tier, in a
module of its own (a unit), and every image that calls it links the same object: compiling a second model of a family
takes the time of what is new in it. What was compiled before changes no byte of an image.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import llvmlite.ir as ir

from q8c.codegen.module import Compiled, compile_module, new_module
from q8c.codegen.targets import Tier

KEPT_BYTES = 64 << 20
"""Of code and its bitcode that a process keeps, the latest: some thousand kernels."""


@dataclass(frozen=True)
class Shared:
    """The code of a unit that several functions of it may be called in, their types by name, and the units it calls."""

    compiled: Compiled
    types: Mapping[str, ir.FunctionType]
    needs: tuple[Shared, ...]


class Unit:
    """A module under construction that becomes one object, and the units its code calls."""

    def __init__(self, name: str, tier: Tier) -> None:
        self.module = new_module(name)
        self.module.unit = self
        self.tier = tier
        self.needs: list[Shared] = []

    def declare(self, other: Shared) -> None:
        """Let code of this unit call the functions of another one."""
        for name, kind in other.types.items():
            ir.Function(self.module, kind, name).linkage = "hidden"
        self.needs.append(other)

    def declare_outside(self, name: str, kind: ir.FunctionType) -> None:
        """Let code of this unit call a function of whatever image it is linked into."""
        ir.Function(self.module, kind, name).linkage = "hidden"

    def compile(self) -> Compiled:
        """Its code; functions that are declared only are undefined symbols of the object."""
        outside = [f.name for f in self.module.functions if f.is_declaration and f.linkage == "hidden"]
        return compile_module(self.module, self.tier, outside)


_shared: dict[tuple[Tier, str], Shared] = {}


def shared(module: ir.Module, names: Sequence[str], emit: Callable[[ir.Module], object]) -> list[ir.Function]:
    """Functions by name, to be called by code of the module; `emit` writes all of them into the module it is given.

    The names say all that the code depends on, but for the tier. In a module that is no unit's they are written where
    they are called.
    """
    if names[0] not in module.globals:
        unit = unit_of(module)
        if unit is None:
            emit(module)
        else:
            unit.declare(_made(unit.tier, names, emit))
    return [module.globals[name] for name in names]


def unit_of(module: ir.Module) -> Unit | None:
    """The unit a module belongs to, if it is a unit's."""
    return getattr(module, "unit", None)


def _made(tier: Tier, names: Sequence[str], emit: Callable[[ir.Module], object]) -> Shared:
    found = _shared.get((tier, names[0]))
    if found is None:
        unit = Unit(names[0], tier)
        emit(unit.module)
        functions = {name: unit.module.globals[name] for name in names}
        for function in functions.values():
            if function.linkage == "internal":
                function.linkage = "hidden"
        types = {name: function.ftype for name, function in functions.items()}
        found = _shared[tier, names[0]] = Shared(unit.compile(), types, tuple(unit.needs))
        _forget()
    return found


def _forget() -> None:
    """Keep the latest, up to `KEPT_BYTES`."""
    kept = sum(s.compiled.nbytes for s in _shared.values())
    for key in list(_shared)[:-1]:
        if kept <= KEPT_BYTES:
            return
        kept -= _shared.pop(key).compiled.nbytes


def reachable(unit: Unit) -> Iterator[Compiled]:
    """The code of all units that a unit calls, directly or not, in the order in which they are first called."""
    seen: set[str] = set()
    todo = unit.needs[::-1]
    while todo:
        one = todo.pop()
        if (name := next(iter(one.types))) not in seen:
            seen.add(name)
            yield one.compiled
            todo += one.needs[::-1]
