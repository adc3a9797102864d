"""The error that quantization made, measured by the reference interpreter before a model is written."""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from q8c.accuracy import error
from q8c.errors import Error
from q8c.ir import Graph, interpret
from q8c.ir.feeds import typical_feeds
from q8c.ir.single import single
from q8c.passes.calibration import Feeds

_SHOWN = 2      # outputs in one line: a decoder's cache has dozens
MOST_FEEDS = 4  # two runs of the model for each, which should not show in the time of a compilation


@dataclass(frozen=True)
class Measured:
    """Of each float output, by name: relative L2, mean cosine of rows, and largest difference; on `inputs`, which are
    the calibration's or made up."""

    inputs: str
    outputs: Mapping[str, Mapping[str, float]]

    def __str__(self) -> str:
        found = [f"{name} relative L2 {e['relative_l2']:.4f}, cosine {e['cosine']:.5f}"
                 for name, e in self.outputs.items()]
        more = f"; {len(found) - _SHOWN} more outputs" if len(found) > _SHOWN else ""
        return f"{'; '.join(found[:_SHOWN])}{more} (on {self.inputs} inputs)"


def quantization_error(before: Graph, after: Graph, feeds: Feeds) -> Measured | None:
    """The distance of a quantized graph's outputs from those of the graph before, on feeds or on made-up inputs; where
    padding was left out, of rows that are none.

    None if nothing in the graph is quantized, it has no float output of the shape it had before, or it does not run on
    made-up inputs.
    """
    if not any(n.op in ("q8_linear", "q8_matmul") for n in after.nodes):
        return None
    try:
        used = feeds[:MOST_FEEDS] or (typical_feeds(before),)
        results = [_there(after, feed, interpret(after, feed, instead=single)) for feed in used]
        exact = [_there(after, feed, interpret(before, feed, instead=single)) for feed in used]
    except Error:
        if feeds:
            raise
        return None
    names = {i: name for i, (v, name) in enumerate(zip(before.outputs, before.output_names, strict=True))
             if v.dtype.is_float and all(r[i].shape == e[i].shape for r, e in zip(results, exact, strict=True))}
    outputs = {name: _figures([r[i] for r in results], [r[i] for r in exact]) for i, name in names.items()}
    return Measured("calibration" if feeds else "made-up", outputs) if outputs else None


def measured_from(notes: Mapping[str, Any]) -> Measured | None:
    """What an artifact's notes say of its error, None if they do not."""
    found = notes.get("error")
    try:
        return Measured(str(found["inputs"]), {str(name): {k: float(v) for k, v in e.items()}
                                               for name, e in found["outputs"].items()}) if found else None
    except (AttributeError, KeyError, TypeError, ValueError):
        return None  # notes are for people, and may be of another version


def _figures(results: list[Any], exact: list[Any]) -> dict[str, float]:
    """The error over all feeds, as JSON can hold it."""
    found = error(_rows(results), _rows(exact))
    figures = {"relative_l2": found.relative_l2, "cosine": found.cosine, "max_abs": found.max_abs}
    return {k: float(f"{v:.4g}") if np.isfinite(v) else 1e30 for k, v in figures.items()}


def _there(graph: Graph, feed: Mapping[str, Any], outputs: list[Any]) -> list[Any]:
    """Outputs without the rows of padding, where the graph packs rows."""
    for value in graph.counts.values():
        mask = np.asarray(feed[value.name]) != 0
        outputs = [a[mask] if a.shape[:2] == mask.shape else a for a in outputs]
    return outputs


def _rows(arrays: list[Any]) -> Any:
    """Arrays of several feeds as rows of one; arrays whose last axes differ become one row each way."""
    if len({a.shape[-1:] for a in arrays}) == 1 and arrays[0].ndim:
        return np.concatenate([a.reshape(math.prod(a.shape[:-1]), a.shape[-1]) for a in arrays])
    return np.concatenate([a.reshape(-1) for a in arrays])
