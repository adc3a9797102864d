"""Code made anew from the graph inside a compiled file, to check its code or to run without trusting it."""
from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from q8c.codegen.constants import packed_constants
from q8c.codegen.generate import Generated, generate
from q8c.codegen.targets import tier
from q8c.compiler import Progress, describe, offsets_of, tiers_of, with_numerics
from q8c.errors import ArtifactError
from q8c.ir import Graph, parse_graph
from q8c.passes.manager import Report
from q8c.passes.pipeline import Options
from q8c.runtime.artifact import Artifact
from q8c.runtime.manifest import constant_layout
from q8c.runtime.writer import Writer


def compare(path: str | os.PathLike[str], progress: Progress = lambda stage: None) -> dict[str, bool]:
    """Whether each tier's code in the file is what this compiler makes of the graph in it.

    Raises ArtifactError if the file is damaged or its constants are not the graph's.
    """
    artifact = Artifact(path)
    graph, offsets = _graph(artifact)
    made: list[Generated] = []
    for image in artifact.manifest.images:
        progress(f"code for {image.tier}")
        made.append(generate(graph, with_numerics(tier(image.tier), artifact.manifest.model.options), offsets))
    called = _calling(describe(graph, made, Options(), Report())) == _calling(artifact.manifest.model)
    return {image.tier: called and artifact.read(image.section) == one.image.code
            and dict(image.entries) == one.image.symbols
            for image, one in zip(artifact.manifest.images, made, strict=True)}


def rebuild(path: str | os.PathLike[str], output: str | os.PathLike[str], *, target: str = "native",
            sha256: str | None = None) -> Path:
    """Write a file with the graph and weights of `path` and code that this compiler makes of them.

    Nothing of the code, and nothing the manifest says about how to call it, is taken over. Raises ArtifactError and
    CompileError.
    """
    artifact = Artifact(path, sha256)
    graph, offsets = _graph(artifact)
    told = artifact.manifest.model  # what is for people only is kept, and the numerics they asked for
    tiers = tiers_of(target, told.options)
    generated: list[Generated] = [generate(graph, one, offsets) for one in tiers]
    model = replace(describe(graph, generated, Options(), Report()), options=told.options, notes=told.notes)
    with Writer(output) as writer:
        for constant in artifact.manifest.constants:
            writer.constant(constant.name, artifact.constant(constant.name))
        for one in generated:
            writer.image(one.tier.name, one.tier.extras, one.image.code, one.image.symbols)
        writer.finish(model, artifact.ir)
    return Path(output)


def _graph(artifact: Artifact) -> tuple[Graph, dict[str, int]]:
    """The graph in the file, and where its constants lie; they must be those the graph needs."""
    graph = parse_graph(artifact.ir)
    packed = packed_constants(graph)
    expected = constant_layout([(p.name, p.dtype.value, p.shape) for p in packed])
    if expected != list(artifact.manifest.constants):
        raise ArtifactError(f"{artifact.path}: the constants are not those of the graph in it; compile the model again")
    return graph, offsets_of(packed)


def _calling(model: object) -> dict[str, object]:
    """The part of a manifest's model that decides how the code is called."""
    names = ("inputs", "outputs", "symbols", "counts", "dims", "slots", "scratch", "cost", "constraints", "cache")
    return {name: getattr(model, name) for name in names}
