"""The driver: import a model, run the passes, generate code for each tier, write one file."""
from __future__ import annotations

import contextlib
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from q8c.codegen.constants import Packed, packed_constants
from q8c.codegen.cost import total_cost
from q8c.codegen.frame import Frame
from q8c.codegen.generate import Generated
from q8c.codegen.parallel import Generators
from q8c.codegen.targets import TIERS, Tier, tier
from q8c.errors import ArtifactError, CompileError
from q8c.frontend import import_onnx
from q8c.ir import Graph, clone, print_graph
from q8c.ir.cache import find_cache
from q8c.ir.dims import Dim, Expr, dim_max, to_program
from q8c.ir.graph import Value
from q8c.ir.spill import release
from q8c.measure import Measured, quantization_error
from q8c.passes.calibration import checked_feeds
from q8c.passes.fold_constants import FoldConstants
from q8c.passes.last_logits import LastLogits, last_mask
from q8c.passes.lift_quantized import LiftQuantized
from q8c.passes.manager import Observer, Report, run_passes
from q8c.passes.pipeline import Options, pipeline
from q8c.products import Product, product_names, products_of
from q8c.runtime import cpu, dims
from q8c.runtime.cache import NONE, Cache
from q8c.runtime.manifest import Constraint, Count, Model, Node, Tensor, constant_layout
from q8c.runtime.strict_json import escaped, fits
from q8c.runtime.writer import Writer

if TYPE_CHECKING:
    import onnx

Source: TypeAlias = "str | os.PathLike[str] | bytes | onnx.ModelProto"
Progress: TypeAlias = Callable[[str], None]
NUMERICS = ("fast", "reproducible")
_SMALL = 150
"""Nodes of a model as imported below which its code is made before another process would be ready to help."""


@dataclass(frozen=True)
class Result:
    """What a compilation left: the file, what the passes did and made of the model's matrix products, the error of
    that (None where nothing is quantized or made-up inputs do not fit), how long each stage took, and sizes in bytes
    (`model_weight_bytes`: the model's constants as they came)."""

    path: Path
    graph: Graph
    report: Report
    products: tuple[Product, ...]
    measured: Measured | None
    generated: tuple[Generated, ...]
    seconds: dict[str, float]
    model_weight_bytes: int
    weight_bytes: int
    file_bytes: int


@dataclass
class _Stages:
    """Times the stages of a compilation and tells whoever watches."""

    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.progress(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def code(self, tier: Tier) -> None:
        """Code for a tier is begun; how long that takes is known elsewhere."""
        self.progress(f"code for {tier.name}")


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
    passes = pipeline(options)
    tiers = tiers_of(target, _described(options))
    path = output_path(model, output)
    stages = _Stages(progress)
    with stages.stage("import"):
        graph = import_onnx(model, dict(options.set_inputs))
        _check_names(graph)
        _check_mask(graph, options.pack)
        names = product_names(graph)
        model_weight_bytes = sum(v.array().nbytes for v in graph.constants.values())
        if options.feeds:
            options = replace(options, feeds=checked_feeds(graph, options.feeds))
            passes = pipeline(options)
        imported = clone(graph)
        if options.quantize:  # the error is that of q8c's own rounding, not its distance from a quantized file's
            run_passes(imported, (LiftQuantized(),))
    with Generators(_helpers(graph, tiers)) as generators:
        with stages.stage("passes"):
            report = run_passes(graph, passes, observers=observers)
        packed = packed_constants(graph)
        offsets = offsets_of(packed)
        generators.begin(graph, tiers, offsets)
        with stages.stage("error"):
            if options.last_logits:
                run_passes(imported, (FoldConstants(), LastLogits(last_mask(graph))))
            measured = quantization_error(imported, graph, options.feeds)
            del imported
        made = generators.finish(graph, tiers, offsets, stages.code)
    generated = [one for one, _ in made]
    stages.seconds |= {f"code for {one.tier.name}": seconds for one, seconds in made}
    with stages.stage("write"):
        _write(path, graph, packed, generated, options, report, measured)
    return Result(path, graph, report, products_of(graph, names, report, options.quantize), measured,
                  tuple(generated), stages.seconds, model_weight_bytes, sum(c.nbytes for c in _layout(packed)),
                  path.stat().st_size)


def _check_options(options: Options) -> None:
    """Raise CompileError for options of a wrong type, or numerics that do not exist; passes check their own."""
    for name in ("quantize", "balance", "last_logits"):
        if not isinstance(getattr(options, name), bool):
            raise CompileError(f"{name} must be True or False, got {getattr(options, name)!r}")
    for name in ("max_error", "max_layer_error"):
        given = getattr(options, name)
        if given is not None and (isinstance(given, bool) or not isinstance(given, (int, float))):
            raise CompileError(f"{name} must be a number, got {given!r}")
    if not isinstance(options.weights, str):
        raise CompileError(f"weights must be the name of a format, got {options.weights!r}")
    if not all(isinstance(name, str) for name in options.keep):
        raise CompileError(f"keep must be a list of names, got {list(options.keep)!r}")
    if options.numerics not in NUMERICS:
        raise CompileError(f"numerics {options.numerics!r} are unknown; expected {' or '.join(NUMERICS)}")


def _helpers(graph: Graph, tiers: Sequence[Tier]) -> int:
    """How many processes beside this one are to generate code."""
    return 0 if len(graph.nodes) < _SMALL else min(len(tiers), cpu.count() - 1)


def tiers_of(target: str, options: Mapping[str, Any]) -> tuple[Tier, ...]:
    """The tiers a target names, oldest first, with the numerics that options, as a manifest has them, ask for.

    Raises CompileError for an unknown target, or a CPU that has none.
    """
    return tuple(with_numerics(t, options) for t in _tiers(target))


def with_numerics(tier: Tier, options: Mapping[str, Any]) -> Tier:
    """A tier with the numerics that options ask for: a model that is to stay fp32 is computed in fp32."""
    return tier.fast() if options.get("numerics") == "fast" and options.get("quantize") is True else tier


def _tiers(target: str) -> tuple[Tier, ...]:
    if not isinstance(target, str):
        raise CompileError(f"target must be native, all or names of tiers separated by commas, got {target!r}")
    if target == "all":
        return tuple(TIERS.values())
    if target == "native":
        available = cpu.features()
        able = [name for name, needs in cpu.TIERS.items() if available.issuperset(needs)]
        if not able:
            raise CompileError("this CPU has none of the tiers; name a target: " + ", ".join([*TIERS, "all"]))
        return (tier(able[0]),)
    wanted = {_named(name.strip()).name for name in target.split(",")}
    return tuple(t for t in TIERS.values() if t.name in wanted)


def _named(name: str) -> Tier:
    if name not in TIERS:
        raise CompileError(f"unknown target {name!r}; expected native, all, or some of {', '.join(TIERS)}")
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
        raise CompileError(f"cannot write to the output {output!r:.200} ({reason}); name a file") from error
    return path


def _check_mask(graph: Graph, mask: bool | str) -> None:
    inputs = [v.name for v in graph.inputs]
    if isinstance(mask, str) and mask and mask not in inputs:
        raise CompileError(f"the model has no input {mask!r} to take for the padding mask; its inputs are "
                           f"{', '.join(inputs)}")


def _check_names(graph: Graph) -> None:
    """Raise CompileError for names that a compiled file has no room for: people must be able to write them."""
    for what, names in (("input", [v.name for v in graph.inputs]), ("output", graph.output_names)):
        for name in names:
            if not fits(name):
                raise CompileError(f"{what} {name[:100]!r} has control characters in its name, or it is very long; "
                                   "rename it in the model")
    twice = [name for name, count in Counter(graph.output_names).items() if count > 1]
    if twice:
        raise CompileError(f"two outputs are named {twice[0]!r}; rename one in the model")


def offsets_of(packed: Sequence[Packed]) -> dict[str, int]:
    """Where each packed constant lies in the weights section, in bytes."""
    return {c.name: c.offset for c in _layout(packed)}


def _layout(packed: Sequence[Packed]) -> list[Any]:
    return constant_layout([(p.name, p.dtype.value, p.shape) for p in packed])


def _write(path: Path, graph: Graph, packed: Sequence[Packed], generated: Sequence[Generated], options: Options,
           report: Report, measured: Measured | None) -> None:
    try:
        with Writer(path) as writer:
            for item in packed:
                writer.constant(item.name, item.array())
                release(item.value.array())
            for one in generated:
                writer.image(one.tier.name, one.tier.extras, one.image.code, one.image.symbols)
            writer.finish(describe(graph, generated, options, report, measured), print_graph(graph))
    except ArtifactError as error:
        raise CompileError(str(error)) from error


def describe(graph: Graph, generated: Sequence[Generated], options: Options, report: Report,
             measured: Measured | None = None) -> Model:
    """What the artifact's manifest says about the model and how its code is called."""
    frame = _common_frame(generated)
    symbols = [*graph.symbols(), *graph.counts]
    index = {name: i for i, name in enumerate(symbols)}

    def program(d: Dim) -> dims.Program:
        try:
            return dims.freeze(to_program(d, index), len(symbols))
        except ValueError as error:
            raise CompileError(f"the model's sizes cannot be kept in a file: {error}, {d!s:.100}") from error

    def tensor(value: Value, name: str) -> Tensor:
        return Tensor(name, value.dtype.value, tuple(map(program, value.shape)), tuple(map(str, value.shape)),
                      graph.stretches.get(value, ()))

    return Model(
        escaped(graph.name),
        tuple(tensor(v, v.name) for v in graph.inputs),
        tuple(tensor(v, name) for v, name in zip(graph.outputs, graph.output_names, strict=True)),
        tuple(symbols),
        tuple(Count(index[name], graph.inputs.index(value)) for name, value in graph.counts.items()),
        dims=tuple(map(program, frame.sizes)),
        slots=tuple(map(program, frame.slots)),
        scratch=program(frame.scratch),
        cost=program(total_cost(graph)),
        constraints=tuple(Constraint(program(a), program(b), f"{a} == {b}") for a, b in graph.assumptions),
        cache=_cache(graph),
        nodes=tuple(Node(escaped(n.source[0] if n.source else f"%{n.output.name}"), n.op, _failure(n.op))
                    for n in graph.nodes),
        options=_described(options), tools=_tools(),
        notes={"rewrites": list(map(str, report.rewrites)), "declines": list(map(str, report.declines)),
               "error": None if measured is None else asdict(measured)})


def _cache(graph: Graph) -> Cache | None:
    """What the manifest says of the cache that grows in place."""
    found = find_cache(graph)
    if found is None:
        return None
    mask, positions = (NONE if index is None else index for index in (found.mask, found.positions))
    return Cache(found.pairs, found.formats, found.tokens, mask, positions, found.uniform, found.given)


def _common_frame(generated: Sequence[Generated]) -> Frame:
    """The frame of a file with these tiers, which may want more or less scratch: each is given the most.

    The scratch size stands last among the sizes, where a tier's code reads how far one thread's lies from the next's.
    Raises CompileError if the tiers differ in more.
    """
    frames = [one.frame for one in generated]
    if all(frame == frames[0] for frame in frames):
        return frames[0]
    scratch = dim_max(*(frame.scratch for frame in frames))
    common = [replace(frame, sizes=_with_last(frame.sizes, frame.scratch, scratch), scratch=scratch)
              for frame in frames]
    if any(frame != common[0] for frame in common):
        raise CompileError(f"{' and '.join(g.tier.name for g in generated)} want different frames")
    return common[0]


def _with_last(sizes: tuple[Expr, ...], last: Dim, other: Dim) -> tuple[Expr, ...]:
    return (*sizes[:-1], other) if sizes[-1:] == (last,) and isinstance(other, Expr) else sizes


def _described(options: Options) -> dict[str, Any]:
    """The options as JSON values; of the feeds, how many there were."""
    values = {f.name: getattr(options, f.name) for f in fields(options)}
    values = {name: str(value) if value == math.inf else value for name, value in values.items()}  # JSON has none
    return values | {"feeds": len(options.feeds), "keep": list(options.keep), "set_inputs": dict(options.set_inputs)}


def _failure(op: str) -> str:
    if op == "packing":
        return "the padding mask changed while the model ran: {detail} of its elements are not 0"
    if op == "last_token":
        return "there are no tokens, of which the last was to be taken"
    if op == "append":
        return "a sequence's length leaves no room for its new tokens, or is less than 0"
    return "index {detail} is out of range" if op.startswith(("gather", "scatter", "lookup")) else "failed on {detail}"


def _tools() -> dict[str, str]:
    import llvmlite
    import llvmlite.binding as llvm

    from q8c import __version__
    return {"q8c": __version__, "llvmlite": llvmlite.__version__, "llvm": ".".join(map(str, llvm.llvm_version_info))}
