"""Show what a compiled file holds: inputs, outputs, code, weights, options, and the final graph."""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from q8c.cli.common import add_json_argument, alike, print_json, size_text, table

if TYPE_CHECKING:
    from q8c.runtime.artifact import Artifact
    from q8c.runtime.manifest import Part
    from q8c.runtime.model import Model


def configure(verb: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    verb.add_argument("model", type=Path, help="a compiled model")
    verb.add_argument("--ir", action="store_true", help="print the final graph as text")
    verb.add_argument("--constants", action="store_true", help="list the packed constants")
    add_json_argument(verb)


def run(args: argparse.Namespace) -> int:
    """Print what was asked for."""
    from q8c.runtime.artifact import Artifact
    artifact = Artifact(args.model)
    graphs = map(artifact.ir, range(len(artifact.manifest.parts)))
    if args.ir and not args.json:
        print("".join(graphs), end="")
    elif args.json:
        print_json({"sha256": artifact.sha256, "bytes": artifact.size, **artifact.manifest.to_json(),
                    **({"text": "".join(graphs)} if args.ir else {})})
    else:
        print(text(artifact, args.constants))
    return 0


def text(artifact: Artifact, constants: bool) -> str:
    """The file for people."""
    from q8c.runtime.manifest import refused_by

    manifest = artifact.manifest
    lines = [f"{artifact.path}: {size_text(artifact.size)}, sha256 {artifact.sha256}",
             f"  weights {size_text(manifest.weights.size)} in "
             f"{len({c.offset for part in manifest.parts for c in part.constants})} constants"]
    several = len(manifest.parts) > 1
    for number, part in enumerate(manifest.parts):
        if several:
            what = "where" if number < len(manifest.ways) else "condition"
            lines.append(f"  {what} {part.when}:")
        lines += [f"{'  ' * several}{line}" for line in part_lines(part)]
    lines += [f"  not compiled {reason}" for reason in refused_by(manifest.choice)]
    lines.append("  options " + ", ".join(f"{k}={v}" for k, v in manifest.model.options.items()))
    lines.append("  made by " + ", ".join(f"{k} {v}" for k, v in manifest.model.tools.items()))
    if constants:
        rows = [["constant", "dtype", "shape", "bytes"]]
        rows += [[c.name, c.dtype, "x".join(map(str, c.shape)), str(c.nbytes)]
                 for part in manifest.parts for c in part.constants]
        lines.append(table(rows, right=[3]))
    return "\n".join(lines)


def part_lines(part: Part) -> list[str]:
    """A part of the file for people."""
    from q8c.measure import measured_from
    model = part.model
    lines = []
    for title, tensors in (("input", model.inputs), ("output", model.outputs)):
        types = {t.name: f"{t.dtype}[{', '.join(t.text)}]" for t in tensors}
        lines += [f"  {title:7}{name}: {types[names[0]]}" for name, names in alike(types.items()).items()]
    lines += [f"  needs  {c.text}" for c in model.constraints]
    lines += _state(model)
    lines += [f"  code   {i.tier}: {size_text(i.section.size)}" + "".join(f", {f}" for f in i.features)
              for i in part.images]
    lines.append(f"  nodes  {len(model.nodes)}: {_count([n.op for n in model.nodes])}")
    measured = measured_from(model.notes)
    return [*lines, f"  error  {measured}"] if measured else lines


def _state(model: Model) -> list[str]:
    """What a state of the model keeps, and what it need not be told."""
    from q8c.runtime.state import Layout
    layout, cache = Layout.of(model, b""), model.cache
    if layout is None or cache is None:
        return []
    derived = [model.inputs[i].name for i in (cache.mask, cache.positions) if i >= 0]
    how = " in 8 bits" if layout.in_bytes else ""
    return [f"  state  {len(cache.pairs)} caches{how}, {size_text(layout.token_bytes)} a token of each sequence"
            + (f"; {' and '.join(derived)} may be left out" if derived else "")
            + ("; all sequences of one length" if cache.uniform else "")
            + (f"; a token sees {cache.window}, those before are forgotten" if cache.window else "")]


def _count(names: list[str]) -> str:
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    return ", ".join(f"{n} {name}" for name, n in sorted(counts.items(), key=lambda item: -item[1]))
