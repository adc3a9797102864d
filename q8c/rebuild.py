"""Code made anew from the graph inside a compiled file, to check its code or to run without trusting it."""
from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from q8c.codegen.constants import packed_constants
from q8c.codegen.generate import Generated, generate
from q8c.codegen.targets import tier
from q8c.compiler import Progress, tiers_of, with_numerics
from q8c.describe import describe
from q8c.errors import ArtifactError
from q8c.ir import Graph, parse_graph
from q8c.passes.manager import Report
from q8c.passes.pipeline import Options
from q8c.runtime.artifact import Artifact
from q8c.runtime.writer import Writer


def compare(path: str | os.PathLike[str], progress: Progress = lambda stage: None) -> dict[str, bool]:
    """Whether each tier's code in the file is what this compiler makes of the graph in it.

    Raises ArtifactError if the file is damaged or its constants are not the graph's.
    """
    artifact = Artifact(path)
    same: dict[str, bool] = {}
    for number, part in enumerate(artifact.manifest.parts):
        graph, offsets = _graph(artifact, number)
        made: list[Generated] = []
        for image in part.images:
            progress(f"code for {image.tier}")
            made.append(generate(graph, with_numerics(tier(image.tier), part.model.options), offsets))
        called = _calling(describe(graph, made, Options(), Report())) == _calling(part.model)
        for image, one in zip(part.images, made, strict=True):
            equal = artifact.read(image.section) == one.image.code and dict(image.entries) == one.image.symbols
            same[image.tier] = same.get(image.tier, True) and called and equal
    return same


def rebuild(path: str | os.PathLike[str], output: str | os.PathLike[str], *, target: str = "native",
            sha256: str | None = None) -> Path:
    """Write a file with the graph and weights of `path` and code that this compiler makes of them.

    Nothing of the code, and nothing the manifest says about how to call it, is taken over. Raises ArtifactError and
    CompileError.
    """
    artifact = Artifact(path, sha256)
    parts = artifact.manifest.parts
    with Writer(output) as writer:
        constants = [[writer.constant(c.name, artifact.constant(c.name, number)) for c in part.constants]
                     for number, part in enumerate(parts)]
        written = []
        for number, (part, own) in enumerate(zip(parts, constants, strict=True)):
            graph, _ = _graph(artifact, number)
            told = part.model  # what is for people only is kept, and the numerics they asked for
            offsets = {c.name: c.offset for c in own}
            generated = [generate(graph, one, offsets) for one in tiers_of(target, told.options)]
            model = replace(describe(graph, generated, Options(), Report()), options=told.options, notes=told.notes)
            images = [writer.image(g.tier.name, g.tier.extras, g.image.code, g.image.symbols) for g in generated]
            written.append(writer.part(model, own, images, artifact.ir(number), part.when))
        writer.finish(written, artifact.manifest.choice)
    return Path(output)


def _graph(artifact: Artifact, part: int) -> tuple[Graph, dict[str, int]]:
    """The graph of a part, and where its constants lie; they must be those the graph needs."""
    graph, constants = parse_graph(artifact.ir(part)), artifact.manifest.parts[part].constants
    packed = [(p.name, p.dtype.value, p.shape) for p in packed_constants(graph)]
    if packed != [(c.name, c.dtype, c.shape) for c in constants]:
        raise ArtifactError(f"{artifact.path}: the constants are not those of the graph in it; compile the model again")
    return graph, {c.name: c.offset for c in constants}


def _calling(model: object) -> dict[str, object]:
    """The part of a manifest's model that decides how the code is called."""
    names = ("inputs", "outputs", "symbols", "counts", "dims", "slots", "scratch", "cost", "constraints", "cache")
    return {name: getattr(model, name) for name in names}
