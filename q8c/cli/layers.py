"""What `q8c check --layers` shows: each product's own noise and its effect on the outputs, as a table and a plot."""
from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import q8c
from q8c.cli.common import Progress, UsageError, is_onnx, table

if TYPE_CHECKING:
    from q8c.layers import Layer, Layers
    from q8c.passes.pipeline import Options

MOST_BARS = 40  # of a plot; the rest has the least effect


def add_layer_arguments(verb: argparse.ArgumentParser) -> None:
    """`--layers`, `--weights`, `--plot`."""
    verb.add_argument("--layers", action="store_true",
                      help="quantize one product at a time and show what that does to the outputs, worst first; needs "
                           "the ONNX file")
    verb.add_argument("--weights", metavar="FORMAT",
                      help="with --layers: the weight format to look at (default: the compiled file's)")
    verb.add_argument("--plot", type=Path, metavar="FILE.png", help="with --layers: draw it (needs q8c[plot])")


def measured_layers(args: argparse.Namespace, artifact: Any, feeds: Mapping[str, Any]) -> Layers:
    """The figures of every product. Raises UsageError without an ONNX file, and q8c.Error."""
    from q8c.extras import require_compiler
    onnx = args.onnx or (args.model if is_onnx(args.model) else None)
    if onnx is None:
        raise UsageError("--layers needs the model's floats; give the ONNX file as well")
    require_compiler()
    if args.plot:
        pyplot()  # before the long part
    from q8c.layers import layer_errors
    progress = Progress()
    try:
        return layer_errors(onnx, layer_options(artifact, args.weights), [feeds], progress)
    finally:
        progress.clear()


def layer_options(artifact: Any, weights: str | None) -> Options:
    """The options a compiled file was made with, as far as they touch products."""
    from q8c.passes.pipeline import Options
    told = artifact.manifest.model.options
    kept = {name: told[name] for name in ("weights", "balance", "max_error") if name in told}
    if weights is not None:
        kept |= {"weights": weights, "max_error": None}
    return Options(keep=tuple(told.get("keep", ())), **kept)


def layer_rows(layers: Layers) -> str:
    """The table."""
    rows = [["product", "weight", "format", "own noise dB", "effect alone"]]
    rows += [[layer_name(one), f"{one.depth}x{one.cols}", one.format + (" + zero" if one.zero_point else ""),
              f"{-one.snr_db:.1f}", f"{one.effect:.5f}"] for one in layers.layers]
    return f"{table(rows, right=[3, 4])}\nall together: relative L2 {layers.total:.5f} on these inputs"


def layers_json(layers: Layers) -> dict[str, Any]:
    """The same for scripts."""
    return {"total": layers.total, "products": [asdict(one) for one in layers.layers]}


def layer_name(layer: Layer) -> str:
    """The first of the model's nodes behind a product, and how many more there are."""
    more = len(layer.nodes) - 1
    return layer.nodes[0] + (f" and {more} more" if more else "")


def plot(layers: Layers, path: Path) -> None:
    """Write the picture: a bar for each product, worst first. Raises q8c.Error without matplotlib."""
    shown = layers.layers[:MOST_BARS]
    figure, axes = pyplot().subplots(figsize=(9, 1 + 0.24 * len(shown)), layout="constrained")
    bars = axes.barh(range(len(shown)), [one.effect for one in shown], color="#3b6ea5")
    axes.bar_label(bars, [f"{-one.snr_db:.0f} dB" for one in shown], padding=3, fontsize=7)
    axes.set_yticks(range(len(shown)), [layer_name(one) for one in shown], fontsize=7)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("relative L2 error of the outputs with this product alone quantized (label: its own noise)")
    axes.set_title(f"all products together: {layers.total:.4f}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:  # an ending matplotlib has no writer for
        raise UsageError(f"--plot {path}: {error}") from error


def pyplot() -> Any:
    """matplotlib without a window. Raises q8c.Error where it is not installed."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise q8c.Error("--plot needs matplotlib, not installed here: pip install 'q8c[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as found
    return found
