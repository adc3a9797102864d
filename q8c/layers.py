"""What quantizing each product of a model does, one at a time: its own noise, and its effect on the outputs."""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from q8c.errors import CompileError
from q8c.frontend import import_parts
from q8c.ir import Graph, q8
from q8c.ir.graph import Node
from q8c.passes.calibration import checked_feeds
from q8c.passes.choose_formats import ChooseFormats
from q8c.passes.fold_weights import FoldWeights, weight_array, weight_shape
from q8c.passes.format_search import FLOAT, Search
from q8c.passes.manager import Report, run_passes
from q8c.passes.pipeline import Options, pipeline
from q8c.passes.quantized_product import rounded_rows, rounded_weight

if TYPE_CHECKING:
    from q8c.compiler import Source


@dataclass(frozen=True)
class Layer:
    """One product: the model's nodes behind it, the weight's depth and columns, how it is quantized (`format`, and
    whether rows have a `zero_point`), the ratio of the product's own signal and rounding noise in decibels (`snr_db`),
    and the relative L2 of the outputs when it alone is quantized (`effect`)."""

    nodes: tuple[str, ...]
    depth: int
    cols: int
    format: str
    zero_point: bool
    snr_db: float
    effect: float


@dataclass(frozen=True)
class Layers:
    """All products, worst effect first, and the relative L2 of the outputs with all of them quantized (`total`)."""

    layers: tuple[Layer, ...]
    total: float


def layer_errors(model: Source, options: Options, feeds: Sequence[Mapping[str, Any]],
                 progress: Callable[[str], None] = lambda stage: None) -> Layers:
    """Import a model, prepare it as compiling would, and quantize one product after the other on the feeds.

    The reference interpreter runs the model once for each product. Where inputs choose a branch of the model, the first
    feed does. Raises CompileError if none would be quantized, and
    InputError for feeds that do not fit.
    """
    progress("import")
    parts = import_parts(model)
    number = parts.chosen(feeds[0])
    graph = parts.parts[number].graph
    used = checked_feeds(graph, tuple(parts.feed(number, feed) for feed in feeds))
    progress("passes")
    formats = prepare(graph, options)
    if not any(format != FLOAT for format in formats.values()):
        raise CompileError("none of the model's products would be quantized; `q8c compile` says why")
    progress("fp32")
    search = Search(graph, list(formats), used)
    found = []
    for i, (node, format) in enumerate(formats.items()):
        progress(f"product {i + 1} of {len(formats)}")
        found.append(measure(search, node, format))
    progress("all products")
    return Layers(tuple(sorted(found, key=lambda layer: -layer.effect)), search.error(formats))


def prepare(graph: Graph, options: Options) -> dict[Node, str]:
    """Run the passes before weights are quantized; returns the products that are to be, each with its format."""
    passes = pipeline(options)
    at = next((i for i, item in enumerate(passes) if isinstance(item, (FoldWeights, ChooseFormats))), len(passes))
    run_passes(graph, passes[:at])
    fold = passes[at] if at < len(passes) else None
    if isinstance(fold, FoldWeights):  # products that compiling keeps float for their error are what one looks for
        fold = replace(fold, max_layer_error=math.inf)
    return fold.formats(graph, Report()) if isinstance(fold, (FoldWeights, ChooseFormats)) else {}


def measure(search: Search, node: Node, format: str) -> Layer:
    """One product's figures."""
    block = q8.block_size(format)
    rows, w = search.rows[node.input(0)], weight_array(node)
    zero_point = search.zero_point(node.input(0), block)
    exact = rows @ w
    noise = rounded_rows(rows, block, zero_point) @ rounded_weight(w, block) - exact
    signal, error = (float((a.astype("f8")**2).sum()) for a in (exact, noise))
    snr = 10 * math.log10(signal / error) if signal and error else math.inf
    return Layer(node.source or (f"%{node.output.name}",), *weight_shape(node), format, zero_point, snr,
                 search.error({node: format}))
