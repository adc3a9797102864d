"""Compiles a random model, runs it, and says how it went."""
from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

import q8c
from q8c.compiler import compile_model
from q8c.frontend import import_onnx
from q8c.ir import interpret, q8
from q8c.passes.manager import run_passes
from q8c.passes.pipeline import Options, pipeline
from q8c.runtime import cpu
from tests.fuzz.grow import grow
from tests.fuzz.grower import Array, Grower, Grown, Val

QUANTIZED_SHARE = 4  # one seed in so many
ROUNDINGS = 32.0     # times the distance between float32 and float64 in the reference, the float budget
FLOOR = 1e-5         # of the largest element, for what the reference happens to round the same way twice
NEAR_ONE = 2**-22     # four roundings of numbers near 1, which may cancel as in exp(x) - 1
INT8 = 6.0, 0.03     # the same of quantized models, whose shadow has 2 percent of noise on products


@dataclass(frozen=True)
class Verdict:
    """`equal`, `refused` (by q8c, with its own error), `wrong` or `broken` (any other exception), and why."""

    seed: int
    outcome: str
    why: str = ""

    @property
    def failed(self) -> bool:
        """Whether q8c is at fault."""
        return self.outcome in ("wrong", "broken")


def judge(seed: int, native: bool = True) -> tuple[Verdict, Grower]:
    """The verdict on the model of a seed: compiled and run, or only its passes, run by the interpreter."""
    g = grow(seed, seed % QUANTIZED_SHARE == 3)
    grown = g.grown()
    outcome, why = verdict_on(grown, native)
    return Verdict(seed, outcome, why), g


def verdict_on(grown: Grown, native: bool) -> tuple[str, str]:
    """Outcome and reason."""
    try:
        found = _native(grown) if native else _interpreted(grown)
    except q8c.Error as error:
        return "refused" if not str(error).startswith("pass ") else "broken", str(error)
    except Exception as error:  # whatever it is, it is not the error a user should see
        return "broken", f"{type(error).__name__}: {error}"
    for i, results in enumerate(found):
        for value, y in zip(grown.outputs, results, strict=True):
            why = difference(value, i, y, grown.quantize)
            if why:
                return "wrong", f"feed {i}, {value.name}: {why}"
    return "equal", ""


def options(grown: Grown) -> Options:
    """What a model is compiled with: every format has its turn."""
    return Options(quantize=grown.quantize, numerics="reproducible",
                   weights=["default", *q8.FORMATS][grown.seed // 16 % (1 + len(q8.FORMATS))])


def _native(grown: Grown) -> list[Sequence[Array]]:
    """What compiled code gives, which is the same for any number of threads; every tier of this CPU has its turn."""
    tiers = [name for name, needs in cpu.TIERS.items() if cpu.features().issuperset(needs)]
    tier = tiers[(grown.seed + grown.seed // QUANTIZED_SHARE) % len(tiers)]
    with tempfile.TemporaryDirectory() as folder:
        path = compile_model(grown.model, Path(folder) / "m.q8c", target=tier, options=options(grown)).path
        one, two = q8c.load(path, threads=1), q8c.load(path, threads=2)
        found: list[Sequence[Array]] = [one.run(None, feed) for feed in grown.feeds]
        for feed, results in zip(grown.feeds, found, strict=True):
            for a, b in zip(results, two.run(None, feed), strict=True):
                if a.tobytes() != b.tobytes():
                    raise AssertionError(f"one thread gives {_short(a)}, two give {_short(b)}")
        return found


def _interpreted(grown: Grown) -> list[Sequence[Array]]:
    graph = import_onnx(grown.model)
    run_passes(graph, pipeline(options(grown)))
    with np.errstate(all="ignore"):
        return [interpret(graph, feed) for feed in grown.feeds]


def difference(value: Val, feed: int, y: Array, quantized: bool) -> str:
    """What is wrong with an output, "" if it is within its budget."""
    want, shadow = value.arrays[feed], value.shadows[feed]
    if (y.dtype, y.shape) != (want.dtype, want.shape):
        return f"expected {want.dtype}{list(want.shape)}, got {y.dtype}{list(y.shape)}"
    if want.dtype.kind != "f" or not want.size:
        return "" if np.array_equal(y, want) else f"expected {_short(want)}, got {_short(y)}"
    finite = np.isfinite(want)
    sure = finite == np.isfinite(shadow)  # others are too near the end of the range to tell
    if not np.array_equal(y[sure & ~finite], want[sure & ~finite], equal_nan=True):
        return f"expected {_short(want[sure & ~finite])}, got {_short(y[sure & ~finite])} where that is not finite"
    y, want, shadow = y[sure & finite], want[sure & finite], shadow[sure & finite]
    times, floor = INT8 if quantized else (ROUNDINGS, FLOOR)
    budget = (times * np.abs(want.astype(np.float64) - shadow).max(initial=0.0)
              + floor * np.abs(want).max(initial=0.0) + NEAR_ONE)
    error = np.abs(y.astype(np.float64) - want).max(initial=0.0)
    if error <= budget:
        return ""
    return f"off by {error:.3g}, allowed {budget:.3g}: expected {_short(want)}, got {_short(y)}"


def _short(a: Array) -> str:
    return np.array2string(a.ravel()[:8], precision=5, separator=", ") + ("…" if a.size > 8 else "")


def shrink(g: Grower, native: bool) -> tuple[onnx.ModelProto, str]:
    """The smallest part of a failing model that fails, with one output, and why; the whole if no part does."""
    for value in [v for v in g.values if v.name.startswith("v")]:
        part = Grown(g.seed, g.model([value]), g.feeds, [value], g.quantize)
        outcome, why = verdict_on(part, native)
        if outcome in ("wrong", "broken"):
            return part.model, f"{outcome}: {why}"
    whole = g.grown().model
    return whole, "only with all its outputs"


def text_of(model: onnx.ModelProto) -> str:
    """The model as a person reads it, small constants with their elements."""
    constants = [f"  {t.name} = {np.array2string(onnx.numpy_helper.to_array(t), threshold=12, precision=4)}"
                 for t in model.graph.initializer]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.initializer[:]
    return "\n".join([onnx.printer.to_text(copy), *constants])
