"""Choose the format of every weight so that the model's error stays under a bound."""
from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from q8c.errors import OptionError
from q8c.ir.graph import Graph, Node
from q8c.passes.calibration import Calibration
from q8c.passes.fold_weights import FoldWeights, Names, fold, weight_shape
from q8c.passes.format_search import FLOAT, SPEED, Search
from q8c.passes.manager import Pass, Report

TRIES = 8  # each is one run of the model; the sum of single effects predicts the whole well, two or three are common


@dataclass(frozen=True)
class ChooseFormats(Pass):
    """Replaces matmul(x, w) by matmul(x, dequantize_weight(u8, scale)), each in the fastest format that will do.

    The relative L2 of the model's outputs on the calibration inputs, all products quantized, stays under `max_error`.
    All products of one tensor share a format; `float` is the last resort. `keep` names nodes that stay float.
    """

    name: ClassVar[str] = "choose-formats"
    lossy: ClassVar[bool] = True
    max_error: float = 0.02
    keep: Names = Names()
    calibration: Calibration = field(default_factory=Calibration, repr=False)

    def __post_init__(self) -> None:
        if not self.max_error > 0:
            raise OptionError(f"the largest error is {self.max_error}; expected a number above 0, such as 0.02")

    def run(self, graph: Graph, report: Report) -> bool:
        """Whether a weight was quantized."""
        return fold(graph, self.formats(graph, report), report)

    def formats(self, graph: Graph, report: Report) -> dict[Node, str]:
        """The matmuls whose weights are to be quantized, each with its format; the choice goes to the report."""
        products = list(FoldWeights(keep=self.keep, max_layer_error=math.inf).formats(graph, report))
        if not products:
            return {}
        search = Search(graph, products, self.calibration.inputs(graph))
        chosen, error = self.choose(search)
        explain(search, chosen, error, self.max_error, report)
        return {node: format for node, format in chosen.items() if format != FLOAT}

    def choose(self, search: Search) -> tuple[dict[Node, str], float]:
        """The fastest choice found that keeps the error, and its error."""
        budget = self.max_error
        for _ in range(TRIES):
            chosen = search.fastest(budget)
            error = search.error(chosen)
            if error <= self.max_error:
                return chosen, error
            budget *= 0.97 * self.max_error / error
        return dict.fromkeys(search.products, FLOAT), 0.0


def explain(search: Search, chosen: Mapping[Node, str], error: float, bound: float, report: Report) -> None:
    """Say for each product what was chosen, and for the slower ones what the fastest format would have cost."""
    fastest = next(iter(SPEED))
    total = f"the model's relative L2 is {error:.4f}, {bound:g} allowed"
    for node, format in chosen.items():
        alone = f"alone it puts {search.alone(node, fastest):.4f} on the model's error as {fastest}"
        alone += f", {search.alone(node, format):.4f} as {format}" if format not in (fastest, FLOAT) else ""
        if format == FLOAT:
            depth, cols = weight_shape(node)
            report.decline(node, f"{depth} x {cols} stays float: {alone}; {total}")
        else:
            report.rewrote(node, f"{format}: {alone}; {total}")
