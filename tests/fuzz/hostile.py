"""Models with something wrong in them: every one compiles or is one clear error, soon and in little memory."""
from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

import q8c
from q8c.compiler import compile_model
from q8c.passes.pipeline import Options
from tests.fuzz.grow import grow
from tests.fuzz.grower import Grower
from tests.fuzz.judge import Verdict

SECONDS, MEGABYTES = 15.0, 600  # of CPU time
NUMBERS = (0, 1, -1, 2, 3, 7, -2**63, 2**63 - 1, 2**31, 2**40, -2**31, 64, 1000)
FLOATS = (0.0, -1.0, float("nan"), float("inf"), 1e30, 0.5)
TEXTS = ("", "x", "\n", "é", "x0", "c0", "v0", "a" * 300, "SAME_UPPER", "NOTSET", "linear", "edge", "half_pixel")


def mutate(g: Grower, model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with one to three things changed."""
    for _ in range(g.integer(1, 3)):
        g.choice(MUTATIONS)(g, model)
    return model


def _node(g: Grower, model: onnx.ModelProto) -> onnx.NodeProto:
    found: onnx.NodeProto = g.choice(model.graph.node)
    return found


def attribute_value(g: Grower, model: onnx.ModelProto) -> None:
    attributes = [a for n in model.graph.node for a in n.attribute]
    if not attributes:
        return
    a = g.choice(attributes)
    if a.type == AttributeProto.INT:
        a.i = g.choice(NUMBERS)
    elif a.type == AttributeProto.FLOAT:
        a.f = g.choice(FLOATS)
    elif a.type == AttributeProto.STRING:
        a.s = g.choice(TEXTS).encode()
    elif a.type == AttributeProto.INTS and a.ints and g.chance(0.7):
        a.ints[g.integer(0, len(a.ints) - 1)] = g.choice(NUMBERS)
    elif a.type == AttributeProto.INTS:
        a.ints[:] = [g.choice(NUMBERS) for _ in range(g.integer(0, 4))]
    elif a.type == AttributeProto.TENSOR:
        tensor(g, a.t)


def attribute_kind(g: Grower, model: onnx.ModelProto) -> None:
    attributes = [a for n in model.graph.node for a in n.attribute]
    if attributes:
        a = g.choice(attributes)
        value = g.choice([3, -1, 1.5, "text", [1, 2], [0.5], np.arange(3)])
        made = helper.make_attribute(a.name, numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value)
        a.CopyFrom(made)


def attribute_gone(g: Grower, model: onnx.ModelProto) -> None:
    node = _node(g, model)
    if node.attribute:
        del node.attribute[g.integer(0, len(node.attribute) - 1)]


def constant(g: Grower, model: onnx.ModelProto) -> None:
    if model.graph.initializer:
        tensor(g, g.choice(model.graph.initializer))


def tensor(g: Grower, t: TensorProto) -> None:
    """Other elements, another shape, another type, or bytes that do not fit."""
    way = g.integer(0, 5)
    if way <= 2:
        array = numpy_helper.to_array(t).copy()
        if array.size and array.dtype.kind in "iu":
            info = np.iinfo(array.dtype)
            array.reshape(-1)[g.integer(0, array.size - 1)] = min(max(g.choice(NUMBERS), info.min), info.max)
        elif array.size and array.dtype.kind == "f":
            array.reshape(-1)[g.integer(0, array.size - 1)] = g.choice(FLOATS)
        t.CopyFrom(numpy_helper.from_array(array, t.name))
    elif way == 3:
        t.dims[:] = [g.choice(NUMBERS) for _ in range(g.integer(0, 4))]
    elif way == 4:
        t.data_type = g.integer(0, 25)
    else:
        t.raw_data = t.raw_data[:g.integer(0, len(t.raw_data))]


def operand(g: Grower, model: onnx.ModelProto) -> None:
    """Another value, one that comes later, one that is not there, or none."""
    node = _node(g, model)
    if node.input:
        names = [n for other in model.graph.node for n in (*other.input, *other.output)] + ["nowhere", ""]
        node.input[g.integer(0, len(node.input) - 1)] = g.choice(names)


def operand_count(g: Grower, model: onnx.ModelProto) -> None:
    node = _node(g, model)
    if node.input and g.chance(0.5):
        del node.input[-1]
    else:
        node.input.append(g.choice([*node.input, "x0"]))


def op(g: Grower, model: onnx.ModelProto) -> None:
    _node(g, model).op_type = g.choice([*(n.op_type for n in model.graph.node), "Nonsense", "", "Loop", "If", "Gemm"])


def output_name(g: Grower, model: onnx.ModelProto) -> None:
    node = _node(g, model)
    if node.output:
        node.output[g.integer(0, len(node.output) - 1)] = g.choice([*TEXTS, *(n.output[0] for n in model.graph.node)])


def node_gone(g: Grower, model: onnx.ModelProto) -> None:
    del model.graph.node[g.integer(0, len(model.graph.node) - 1)]


def node_twice(g: Grower, model: onnx.ModelProto) -> None:
    model.graph.node.append(_node(g, model))


def declared_size(g: Grower, model: onnx.ModelProto) -> None:
    dims = [d for v in model.graph.input for d in v.type.tensor_type.shape.dim]
    if dims and g.chance(0.5):
        g.choice(dims).dim_value = g.choice(NUMBERS)
    elif dims:
        g.choice(dims).dim_param = g.choice([*TEXTS, "n", "2*n", "n//0", "n-5", "max(n, m)", "n**9", "k*" * 200 + "1"])


def declared_type(g: Grower, model: onnx.ModelProto) -> None:
    g.choice([*model.graph.input, *model.graph.output]).type.tensor_type.elem_type = g.integer(0, 25)


def opset(g: Grower, model: onnx.ModelProto) -> None:
    model.opset_import[0].version = g.choice([0, 1, 6, 7, 9, 11, 13, 18, 23, 2**40, -1])


MUTATIONS: tuple[Callable[[Grower, onnx.ModelProto], None], ...] = (
    attribute_value, attribute_value, attribute_value, attribute_kind, attribute_gone, constant, constant, constant,
    operand, operand, operand_count, op, output_name, node_gone, node_twice, declared_size, declared_size,
    declared_type, opset)


def judge_hostile(seed: int) -> tuple[Verdict, onnx.ModelProto]:
    """`refused`, or `taken` where it compiles and runs or refuses what it is fed; else `broken`. And the model."""
    g = grow(seed, seed % 4 == 3)
    grown = g.grown()
    model = grown.model
    try:
        model = mutate(g, model)
    except (IndexError, ValueError, TypeError):  # the last node went before, or a tensor broke before
        return Verdict(seed, "refused", "nothing is left"), model
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome, why = _tried(model, grown.feeds, g.quantize)
    seconds, grew = time.process_time() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if seconds > SECONDS or grew > MEGABYTES:
        return Verdict(seed, "broken", f"{seconds:.0f} s, {grew:.0f} MB, then {outcome}: {why}"), model
    return Verdict(seed, outcome, why), model


def _tried(model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]], quantize: bool) -> tuple[str, str]:
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = compile_model(model, Path(folder) / "m.q8c", options=Options(quantize=quantize)).path
            session = q8c.load(path, threads=1)
            for feed in feeds:
                session.run(None, feed)
    except q8c.Error as error:
        text = str(error)
        clear = "\n" not in text and not text.startswith("pass ") and "Error: " not in text
        return ("refused" if clear else "broken"), text
    except Exception as error:  # whatever it is, it is not the error a user should see
        return "broken", f"{type(error).__name__}: {error}"
    return "taken", ""
