"""A final graph to machine code: one position-independent image per CPU tier."""
from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from q8c.codegen.frame import Frame
from q8c.codegen.image import Image, link
from q8c.codegen.kernels import kernel_for
from q8c.codegen.lower import Entry, schedule
from q8c.codegen.module import Compiled
from q8c.codegen.targets import Tier
from q8c.codegen.units import Unit, reachable
from q8c.ir.graph import Graph
from q8c.ir.memory import slot_sizes


@dataclass(frozen=True)
class Generated:
    """One tier's code, the frame it expects, and the objects it was linked from (for `--dump-dir`)."""

    tier: Tier
    image: Image
    frame: Frame
    parts: tuple[Compiled, ...]


def generate(graph: Graph, tier: Tier, offsets: Mapping[str, int]) -> Generated:
    """The code of a final graph (after plan-memory) for one tier.

    `offsets` says where each packed constant lies in the weights section; the constants' elements are not looked at,
    so a graph read from an artifact's text gives the same bytes. Raises CompileError naming a node no kernel is for.
    """
    with _no_collection():
        unit = Unit(graph.name, tier)
        plan = schedule(graph, unit.module, tier, kernel_for, slot_sizes(graph))
        Entry(unit.module, tier, plan, offsets).emit()
        parts = (unit.compile(), *reachable(unit))
    return Generated(tier, link(*(part.object for part in parts)), plan.frame, parts)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python from looking for garbage among the hundred thousands of parts of a module under construction, none of
    which is: that took a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
