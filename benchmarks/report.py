"""From figures to what is told: ratios, shares of the floor, tables, the plot, and the JSON's form."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import geometric_mean, ms, table
from benchmarks.engine import Engine
from benchmarks.race import Figures

SCHEMA = 1
"""Of the JSON file: raised when a member changes its meaning."""


def summarize(case: Mapping[str, Any], figures: Mapping[str, Figures], engines: Mapping[str, Engine], reference: str,
              floors: Mapping[str, Mapping[str, Any]], tiers: Mapping[str, str], dropped: Mapping[str, str],
              real: Any = None) -> dict[str, Any]:
    """One shape as the JSON file has it: per engine times in seconds, the ratio of its time to the floor of the CPU and
    to that of its tier if it has one, its error; of q8c how many times it is faster than the best peer and the best
    int8 peer. `real` says which rows of the outputs are no padding, if any are."""
    rows: dict[str, dict[str, Any]] = {}
    expected = figures[reference].outputs if reference in figures else None
    for name, found in figures.items():
        rows[name] = {"title": engines[name].title, "int8": engines[name].int8, **vars(found.times),
                      "first": found.first, "memory": found.memory,
                      "floors": {kind: found.times.median / floors[key]["seconds"]
                                 for kind, key in (("cpu", "cpu"), ("tier", tiers.get(name, ""))) if key in floors},
                      "error": None if expected is None else error(found.outputs, expected, real)}
    best = {"peer": _best(rows, False), "int8": _best(rows, True)}
    for name, row in rows.items():
        if name.startswith("q8c"):
            row["faster"] = {k: rows[peer]["median"] / row["median"] for k, peer in best.items() if peer}
    return {**case, "floors": dict(floors), "best": best, "engines": rows, "dropped": dict(dropped)}


def _best(rows: Mapping[str, Mapping[str, Any]], int8: bool) -> str | None:
    """The fastest peer, or the fastest that multiplies integers."""
    able = [n for n, row in rows.items() if not n.startswith("q8c") and (row["int8"] or not int8)]
    return min(able, key=lambda n: float(rows[n]["median"]), default=None)


def error(outputs: Sequence[Any], expected: Sequence[Any], real: Any = None) -> dict[str, float] | None:
    """Relative L2 and mean cosine of the first output, of its `real` rows if told; None where the shapes differ."""
    from q8c.accuracy import error as distance
    if not outputs or outputs[0].shape != expected[0].shape:
        return None
    rows = ... if real is None else real
    found = distance(outputs[0][rows], expected[0][rows])
    return {"relative_l2": found.relative_l2, "cosine": found.cosine}


def text(result: Mapping[str, Any]) -> str:
    """Everything for people."""
    parts = [machine_text(result)]
    parts += [_case(case) for case in result["results"]]
    parts += [part for part in (_summary(result), _loading(result), _skipped(result)) if part]
    return "\n\n".join(parts)


def machine_text(result: Mapping[str, Any]) -> str:
    """The machine and its ceilings."""
    machine = result["machine"]
    lines = [f"{machine['cpu']}, {machine['cores']} cores, load {machine['load']:.1f} before"]
    for threads, ceilings in result["ceilings"].items():
        rates = ", ".join(f"{r['unit']} {r['macs'] / 1e9:.0f}" for r in ceilings["rates"])
        reads = ", ".join(f"{level['name']} {level['read'] / 1e9:.0f}" for level in ceilings["levels"])
        lines.append(f"{threads} thread{'s' * (threads != '1')}: {rates} GMAC/s; reads {reads} GB/s")
    return "\n".join(lines)


def _case(case: Mapping[str, Any]) -> str:
    head = f"{case['model']} {case['shape']}, {case['threads']} thread{'s' * (case['threads'] > 1)}"
    told = [f"{name} floor {ms(f['seconds'])} ms ({f['int8']}, {f['attention']}, weights in {f['level']})"
            for name, f in case["floors"].items()]
    kinds = ("cpu", "tier") if case["floors"] else ()
    rows = [["", "ms", "p10", "p90", *(f"x {kind} floor" for kind in kinds), "error", "MB", "best"]]
    ordered = sorted(case["engines"].items(), key=lambda item: float(item[1]["median"]))
    for _, row in ordered:
        gap = row["error"]
        rows.append([row["title"], ms(row["median"]), ms(row["p10"]), ms(row["p90"]),
                     *(f"{row['floors'][kind]:.2f}" if kind in row["floors"] else "" for kind in kinds),
                     "" if gap is None else f"{gap['relative_l2']:.4f}", f"{row['memory'] / 1e6:.0f}",
                     " ".join(f"{v:.2f}x{' int8' if k == 'int8' else ''}" for k, v in row.get("faster", {}).items())])
    return "\n".join([f"{head}: {'; '.join(told)}" if told else head, table(rows, left=(0, len(rows[0]) - 1))])


def _summary(result: Mapping[str, Any]) -> str:
    """How much faster each q8c is, over all shapes of a model."""
    rows = [["", "shapes", "than best peer", "least", "than best int8", "least", "x tier floor"]]
    cases = result["results"]
    keys = dict.fromkeys((c["model"], n) for c in cases for n in c["engines"] if n.startswith("q8c"))
    for model, name in keys:
        mine = [c["engines"][name] for c in cases if c["model"] == model and name in c["engines"]]
        cells = [f"{model}, {mine[0]['title']}", str(len(mine))]
        for kind in ("peer", "int8"):
            ratios = [row["faster"][kind] for row in mine if kind in row["faster"]]
            cells += [f"{geometric_mean(ratios):.2f}x", f"{min(ratios):.2f}x"] if ratios else ["", ""]
        floors = [row["floors"]["tier"] for row in mine if "tier" in row["floors"]]
        rows.append([*cells, f"{geometric_mean(floors):.2f}" if floors else ""])
    return f"geometric means\n{table(rows)}" if len(rows) > 1 else ""


def _loading(result: Mapping[str, Any]) -> str:
    rows = [["loading, ms", "import", "load", "prepared in s"]]
    for entry in result["engines"]:
        if "load" in entry:
            name = f"{entry['model']}, {entry['threads']} thread{'s' * (entry['threads'] > 1)}, {entry['title']}"
            rows.append([name, f"{entry['import'] * 1e3:.0f}", f"{entry['load'] * 1e3:.0f}", f"{entry['prepare']:.1f}"])
    return table(rows) if len(rows) > 1 else ""


def _skipped(result: Mapping[str, Any]) -> str:
    lines = [f"  {e['model']}, {e['title']}: {e['skipped']}" for e in result["engines"] if "skipped" in e]
    lines += [f"  {c['model']} {c['shape']}, {name}: {reason}"
              for c in result["results"] for name, reason in c["dropped"].items()]
    return "\n".join(["left out:", *dict.fromkeys(lines)]) if lines else ""


def plot(result: Mapping[str, Any], path: Path) -> None:
    """Bars of how near each engine comes to the floor of the CPU, a chart per model and number of threads.

    Raises ModuleNotFoundError without matplotlib.
    """
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    cases = [c for c in result["results"] if "cpu" in c["floors"] and c["engines"]]
    charts = list(dict.fromkeys((c["model"], c["threads"]) for c in cases))
    if not charts:
        return
    names = list(dict.fromkeys(n for c in cases for n in c["engines"]))
    titles = {n: row["title"] for c in cases for n, row in c["engines"].items()}
    figure, axes = pyplot.subplots(len(charts), 1, figsize=(10, 3.4 * len(charts)), squeeze=False)
    for axis, (model, threads) in zip(axes[:, 0], charts, strict=True):
        mine = [c for c in cases if (c["model"], c["threads"]) == (model, threads)]
        width = 0.85 / len(names)
        for number, name in enumerate(names):
            heights = [100 * c["floors"]["cpu"]["seconds"] / c["engines"][name]["median"] if name in c["engines"]
                       else math.nan for c in mine]
            at = [i + (number - (len(names) - 1) / 2) * width for i in range(len(mine))]
            axis.bar(at, heights, width, label=titles[name], color=_color(number, name, names))
        axis.set_xticks(range(len(mine)), [c["shape"] for c in mine])
        axis.set_ylabel("% of what the CPU could do")
        axis.set_title(f"{model}, {threads} thread{'s' * (threads > 1)}", loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(fontsize="small", ncols=3, frameon=False, loc="upper left", bbox_to_anchor=(0, 1.45))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def _color(number: int, name: str, names: Sequence[str]) -> Any:
    """Dark for q8c, paler ones in the order of the names for peers."""
    if name.startswith("q8c"):
        return ("#0b3d91", "#3566b5", "#6f93cf", "#a9bfe3")[min(3, names.index(name))]
    shade = 0.45 + 0.45 * number / len(names)
    return (shade, shade, shade)
