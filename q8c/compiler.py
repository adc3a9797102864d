"""The driver: import a model, run the passes, generate code for each tier, write one file."""
from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from q8c.codegen.constants import Packed, packed_constants
from q8c.codegen.generate import Generated
from q8c.codegen.parallel import Generators
from q8c.codegen.targets import TIERS, Tier, tier
from q8c.describe import describe, described
from q8c.errors import ArtifactError, CompileError, InputError, OptionError
from q8c.frontend import import_parts
from q8c.frontend.choices import Choice, Part, Parts
from q8c.ir import Graph, clone, print_graph
from q8c.ir.graph import Array
from q8c.ir.spill import many_files, release
from q8c.measure import Measured, quantization_error
from q8c.passes.calibration import Calibration, Feeds, checked_feeds
from q8c.passes.default_format import DEFAULT, format_for
from q8c.passes.fold_constants import FoldConstants
from q8c.passes.fold_weights import BLOCK_FORMAT
from q8c.passes.last_logits import LastLogits, last_mask
from q8c.passes.lift_quantized import LiftQuantized
from q8c.passes.manager import Observer, Report, run_passes
from q8c.passes.pipeline import Options, pipeline
from q8c.products import Product, product_names, products_of
from q8c.runtime import cpu
from q8c.runtime.model import MAX_SYMBOLS, MAX_TENSORS
from q8c.runtime.sections import MAX_RANK, Constant
from q8c.runtime.strict_json import fits
from q8c.runtime.writer import Writer

if TYPE_CHECKING:
    import onnx

Source: TypeAlias = "str | os.PathLike[str] | bytes | onnx.ModelProto"
Progress: TypeAlias = Callable[[str], None]
NUMERICS = ("fast", "reproducible")
_CONDITION = Options(quantize=False)
_SMALL = 150
"""Nodes of a model as imported below which its code is made before another process would be ready to help."""


@dataclass(frozen=True)
class Built:
    """What became of a part of the model: what the passes did and made of its matrix products, the error of that (None
    where nothing is quantized or made-up inputs do not fit), and its code. `when` says which part it is."""

    when: str
    graph: Graph
    report: Report
    products: tuple[Product, ...]
    measured: Measured | None
    generated: tuple[Generated, ...]
    constants: tuple[Constant, ...]
    options: Options


@dataclass(frozen=True)
class Result:
    """What a compilation left: the file; its parts, of which most models have one, and behind those the conditions that
    choose among them; of branches that are not compiled, when they are taken and why; how long all took and each stage,
    some of which run side by side; and sizes in bytes (`model_weight_bytes`: the model's constants as they came)."""

    path: Path
    parts: tuple[Built, ...]
    conditions: tuple[Built, ...]
    refused: tuple[str, ...]
    elapsed: float
    seconds: dict[str, float]
    model_weight_bytes: int
    weight_bytes: int
    file_bytes: int


@dataclass
class _Stages:
    """Times the stages of a compilation and tells whoever watches."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)
    start: float = field(default_factory=time.perf_counter)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.progress(name)
        start = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Count further time of a stage."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def code(self, tier: Tier) -> None:
        """Code for a tier is begun; how long that takes is known elsewhere."""
        self.progress(f"code for {tier.name}")


@many_files()
def compile_model(model: Source, output: str | os.PathLike[str] | None = None, *, target: str = "native",
                  options: Options | None = None, observers: Sequence[Observer] = (),
                  progress: Progress = lambda stage: None) -> Result:
    """Compile an ONNX model (path, bytes or ModelProto) into one file.

    `output` is the file to write; beside a model given by path, with the suffix .q8c, if not stated. `target` is
    `native` (the best tier of this CPU), `all`, or names of tiers separated by commas. `observers` see the graph
    between passes, `progress` hears what is going on.

    Raises CompileError and UnsupportedError; nothing is left under the output's name then.
    """
    options = options or Options()
    _check_options(options)
    pipeline(options)  # that there is one, before anything is read
    tiers = _tiers(target)
    path = output_path(model, output)
    stages = _Stages(progress)
    with stages.stage("import"):
        parts = import_parts(model, dict(options.set_inputs), dict(options.shapes))
        for part in parts.ways:
            _check_signature(part.graph)
            _check_mask(part.graph, options.pack)
        options = replace(options, weights=_format(parts, options.weights))
        own = [replace(options, feeds=feeds, keep=_keep(part, parts, options.keep))
               for part, feeds in zip(parts.ways, _feeds(parts, options.feeds), strict=True)]
        model_weight_bytes = sum({v.name: v.array().nbytes for part in parts.parts
                                  for v in part.graph.constants.values()}.values())
    factors: dict[bytes, Array] | None = {} if parts.conditions else None
    helpers = _helpers(parts.parts[0].graph, tiers)
    with _writer(path) as writer, Generators(helpers) as generators:
        def build(part: Part, options: Options, observers: Sequence[Observer]) -> Built:
            return _build(part, options, Calibration(options.feeds, factors=factors), tiers, observers, stages, writer,
                          generators)

        built = tuple(build(part, told, observers) for part, told in zip(parts.ways, own, strict=True))
        conditions = tuple(build(part, _CONDITION, ()) for part in parts.conditions)
        with stages.stage("write"):
            _write(writer, [*built, *conditions], parts.choice)
    weights = {c.offset: c.nbytes for one in (*built, *conditions) for c in one.constants}
    return Result(path, built, conditions, parts.refused, time.perf_counter() - stages.start, stages.seconds,
                  model_weight_bytes, sum(weights.values()), path.stat().st_size)


def _build(part: Part, options: Options, calibration: Calibration, tiers: Sequence[Tier],
           observers: Sequence[Observer], stages: _Stages, writer: Writer, generators: Generators) -> Built:
    """Run the passes on one part, write its constants and generate its code."""
    graph, names = part.graph, product_names(part.graph)
    tiers = [with_numerics(tier, described(options)) for tier in tiers]
    with stages.stage("passes"):
        imported = clone(graph)
        if options.quantize:  # the error is that of q8c's own rounding, not its distance from a quantized file's
            run_passes(imported, (LiftQuantized(),))
        report = run_passes(graph, pipeline(options, calibration), observers=observers)
    with stages.stage("write"):
        constants = [_written(writer, item) for item in packed_constants(graph)]
    offsets = {c.name: c.offset for c in constants}
    generators.begin(graph, tiers, offsets)
    with stages.stage("error"):
        if options.last_logits:
            run_passes(imported, (FoldConstants(), LastLogits(last_mask(graph))))
        measured = quantization_error(imported, graph, options.feeds)
        del imported
    made = generators.finish(graph, tiers, offsets, stages.code)
    for one, seconds in made:
        stages.add(f"code for {one.tier.name}", seconds)
    return Built(part.when, graph, report, products_of(graph, names, report, options.quantize), measured,
                 tuple(one for one, _ in made), tuple(constants), options)


def _written(writer: Writer, item: Packed) -> Constant:
    constant = writer.constant(item.name, item.array())
    release(item.value.array())
    return constant


def _format(parts: Parts, name: str) -> str:
    """A format's name; where branches are to share weights, `default` is that of a decoder if one of them is one."""
    if name == DEFAULT and parts.conditions:
        return next((f for part in parts.ways if (f := format_for(part.graph, name)) == BLOCK_FORMAT), name)
    return name


def _keep(part: Part, parts: Parts, names: Sequence[str]) -> tuple[str, ...]:
    """Of nodes that are to stay float, those of this part, and those that no part has, which is an error to come."""
    own, *others = ({name for node in one.graph.nodes for name in node.source} for one in (part, *parts.ways))
    return tuple(name for name in names if name in own or not any(name in other for other in others))


def _feeds(parts: Parts, feeds: Feeds) -> list[Feeds]:
    """Of each part that is no condition, the feeds that choose it. Raises InputError for a feed that does not fit."""
    if not parts.conditions:
        return [checked_feeds(parts.parts[0].graph, feeds)]
    chosen: list[list[Mapping[str, Any]]] = [[] for _ in parts.ways]
    for feed in feeds:
        if not isinstance(feed, Mapping):
            raise InputError(f"a calibration feed is a {type(feed).__name__}, expected a dict of arrays by input name")
        number = parts.chosen(feed)
        chosen[number].append(parts.feed(number, feed))
    return [checked_feeds(part.graph, tuple(own)) for part, own in zip(parts.ways, chosen, strict=True)]


def _check_options(options: Options) -> None:
    """Raise OptionError for options of a wrong type, or numerics that do not exist; passes check their own."""
    for name in ("quantize", "balance", "last_logits"):
        if not isinstance(getattr(options, name), bool):
            raise OptionError(f"{name} must be True or False, got {getattr(options, name)!r}")
    for name in ("max_error", "max_layer_error"):
        given = getattr(options, name)
        if given is not None and (isinstance(given, bool) or not isinstance(given, (int, float))):
            raise OptionError(f"{name} must be a number, got {given!r}")
    if not isinstance(options.weights, str):
        raise OptionError(f"weights must be the name of a format, got {options.weights!r}")
    if not all(isinstance(name, str) for name in options.keep):
        raise OptionError(f"keep must be a list of names, got {list(options.keep)!r}")
    if options.numerics not in NUMERICS:
        raise OptionError(f"numerics {options.numerics!r} are unknown; expected {' or '.join(NUMERICS)}")


def _helpers(graph: Graph, tiers: Sequence[Tier]) -> int:
    """How many processes beside this one are to generate code."""
    return 0 if len(graph.nodes) < _SMALL else min(len(tiers), cpu.count() - 1)


def tiers_of(target: str, options: Mapping[str, Any]) -> tuple[Tier, ...]:
    """The tiers a target names, oldest first, with the numerics that options, as a manifest has them, ask for.

    Raises OptionError for an unknown target, or a CPU that has none.
    """
    return tuple(with_numerics(t, options) for t in _tiers(target))


def with_numerics(tier: Tier, options: Mapping[str, Any]) -> Tier:
    """A tier with the numerics that options ask for: a model that is to stay fp32 is computed in fp32."""
    return tier.fast() if options.get("numerics") == "fast" and options.get("quantize") is True else tier


def _tiers(target: str) -> tuple[Tier, ...]:
    if not isinstance(target, str):
        raise OptionError(f"target must be native, all or names of tiers separated by commas, got {target!r}")
    if target == "all":
        return tuple(TIERS.values())
    if target == "native":
        available = cpu.features()
        able = [name for name, needs in cpu.TIERS.items() if available.issuperset(needs)]
        if not able:
            raise OptionError("this CPU has none of the tiers; name a target: " + ", ".join([*TIERS, "all"]))
        return (tier(able[0]),)
    wanted = {_named(name.strip()).name for name in target.split(",")}
    return tuple(t for t in TIERS.values() if t.name in wanted)


def _named(name: str) -> Tier:
    if name not in TIERS:
        raise OptionError(f"unknown target {name!r}; expected native, all, or some of {', '.join(TIERS)}")
    return tier(name)


def output_path(model: Source, output: str | os.PathLike[str] | None) -> Path:
    """The file to write. Raises CompileError if it cannot be told from the model, would replace it, or has no place."""
    source = Path(model) if isinstance(model, (str, os.PathLike)) else None
    if source is not None and source.is_dir():
        raise CompileError(f"the model {source} is a folder; name the ONNX file in it")
    if output is None and (source is None or not source.name):
        raise CompileError("a model given as bytes or ModelProto has no name; state the output file")
    try:
        path = source.with_suffix(".q8c") if output is None and source is not None else Path(os.fsdecode(output or ""))
        os.path.realpath(path)  # pathlib's questions hide what cannot be a name
        if path.is_dir():
            raise CompileError(f"the output {path} is a folder; name a file in it")
        if path.exists() and not path.is_file():
            raise CompileError(f"the output {path} is a device, a pipe or the like; name a file")
        if not path.parent.is_dir():
            raise CompileError(f"the output's folder {path.parent} does not exist; make it first")
        if source is not None and path.exists() and source.exists() and path.samefile(source):
            raise CompileError(f"the output {path} is the model itself; name another file")
    except (TypeError, ValueError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        told = repr(os.fspath(output) if isinstance(output, os.PathLike) else output)
        raise CompileError(f"cannot write to the output {told:.200} ({reason}); name a file") from error
    return path


def _check_mask(graph: Graph, mask: bool | str) -> None:
    inputs = [v.name for v in graph.inputs]
    if isinstance(mask, str) and mask and mask not in inputs:
        raise OptionError(f"the model has no input {mask!r} to take for the padding mask; its inputs are "
                           f"{', '.join(inputs)}")


def _check_signature(graph: Graph) -> None:
    """Raise CompileError for names that a compiled file has no room for, as people must be able to write them, and for
    more of anything than it has room for."""
    for what, names, most in (("input", [v.name for v in graph.inputs], MAX_TENSORS),
                              ("output", graph.output_names, MAX_TENSORS), ("free size", graph.symbols(), MAX_SYMBOLS)):
        if len(names) > most:
            raise CompileError(f"the model has {len(names)} {what}s; a compiled file has room for {most}")
        for name in names:
            if not fits(name):
                raise CompileError(f"{what} {name[:100]!r} has control characters in its name, or it is very long; "
                                   "rename it in the model")
    for value in (*graph.inputs, *graph.outputs):
        if value.type.rank > MAX_RANK:
            raise CompileError(f"%{value.name} has {value.type.rank} axes; inputs and outputs have up to {MAX_RANK}")


@contextlib.contextmanager
def _writer(path: Path) -> Iterator[Writer]:
    try:
        with Writer(path) as writer:
            yield writer
    except ArtifactError as error:
        raise CompileError(str(error)) from error


def _write(writer: Writer, built: Sequence[Built], choice: Choice) -> None:
    parts = []
    for one in built:
        images = [writer.image(g.tier.name, g.tier.extras, g.image.code, g.image.symbols) for g in one.generated]
        model = describe(one.graph, one.generated, one.options, one.report, one.measured, one.products)
        parts.append(writer.part(model, one.constants, images, print_graph(one.graph), one.when))
    writer.finish(parts, choice)
