"""Grows the model of a seed: an input, and steps of all kinds."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.fuzz.contrib_steps import CONTRIB_STEPS
from tests.fuzz.fragments import FRAGMENTS
from tests.fuzz.grower import FEEDS, Discard, Grower
from tests.fuzz.odd_steps import ODD_STEPS
from tests.fuzz.rare_steps import RARE_STEPS
from tests.fuzz.steps import STEPS

ALL_STEPS: dict[Callable[[Grower], None], int] = {**STEPS, **FRAGMENTS, **ODD_STEPS, **RARE_STEPS,
                                                **CONTRIB_STEPS}
"""Every step and how often it is thought of."""


def grow(seed: int, quantize: bool) -> Grower:
    """A model of a few to a dozen steps."""
    g = Grower(seed, quantize)
    steps = list(ALL_STEPS)
    weights = np.array(list(ALL_STEPS.values()), float)
    while not g.inputs:
        try:
            g.input(np.float32, g.choice([0, 1, 2, 3, 3, 3]))
        except Discard:
            continue
    wanted = g.integer(1, 12)
    for _ in range(4 * wanted):
        before = len(g.nodes)
        try:
            steps[int(g.rng.choice(len(steps), p=weights / weights.sum()))](g)
        except Discard:
            pass
        wanted -= len(g.nodes) > before
        if wanted <= 0:
            break
    if not g.nodes:
        g.add("Identity", g.values[0], exact=True)
    assert len(g.feeds) == FEEDS
    return g
