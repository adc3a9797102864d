"""Inputs that are given a shape or a value when a model is compiled, and inputs that nothing reads then."""
from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from q8c.errors import OptionError
from q8c.frontend.weights import compute_type
from q8c.ir.dims import as_symbol
from q8c.ir.graph import Array, Graph, Value
from q8c.ir.nested import names_in

if TYPE_CHECKING:
    import onnx

    from q8c.frontend.load import Model

Number: TypeAlias = "bool | int | float"
Sizes: TypeAlias = "Sequence[int | str]"


def set_shapes(model: Model, shapes: Mapping[str, Sizes]) -> None:
    """State the shapes of inputs: numbers, and names, or expressions of names, for sizes that vary.

    Raises OptionError for a name that is no input, another rank than the model states, and what is no size.
    """
    inputs = {v.name: v.type for v in model.inputs()}
    for name, sizes in shapes.items():
        if name not in inputs or not inputs[name].HasField("tensor_type"):
            raise OptionError(f"the model has no input {name!r} to give a shape; its inputs are {', '.join(inputs)}")
        if isinstance(sizes, str) or not isinstance(sizes, Sequence) or not all(_is_size(size) for size in sizes):
            raise OptionError(f"input {name!r} cannot have the shape {sizes!r}; expected numbers, and names for sizes "
                              "that vary, such as ['batch', 128]")
        tensor = inputs[name].tensor_type
        if tensor.HasField("shape") and len(tensor.shape.dim) != len(sizes):
            raise OptionError(f"input {name!r} cannot have the shape {list(sizes)}: it has {len(tensor.shape.dim)} "
                              "dimensions")
        tensor.ClearField("shape")
        tensor.shape.SetInParent()
        for size in sizes:
            tensor.shape.dim.add(**{"dim_param" if isinstance(size, str) else "dim_value": size})


def _is_size(size: object) -> bool:
    return isinstance(size, str) and bool(size.strip()) or type(size) is int and size >= 0


def set_inputs(model: Model, values: Mapping[str, Number]) -> None:
    """Make inputs of a model constants, every element of the given value.

    Raises OptionError for a name that is no input, an input without a fixed shape, and a value its type does not hold.
    """
    from onnx import GraphProto, numpy_helper

    inputs = {v.name: v for v in model.inputs()}
    constants = GraphProto()
    for name, value in values.items():
        if name not in inputs:
            raise OptionError(f"the model has no input {name!r} to set; its inputs are {', '.join(inputs)}")
        constants.initializer.append(numpy_helper.from_array(_elements(inputs[name], value), name))
    model.weights.add(constants)


def _elements(info: onnx.ValueInfoProto, value: Number) -> Array:
    tensor, what = info.type.tensor_type, f"input {info.name!r}"
    dims = [d.dim_value for d in tensor.shape.dim if d.HasField("dim_value")]
    if not tensor.HasField("shape") or len(dims) < len(tensor.shape.dim):
        raise OptionError(f"{what} cannot be set to {value!r}: its shape varies; give an input of a fixed shape")
    dtype = compute_type(tensor.elem_type, what)
    if not isinstance(value, (bool, int, float)) or np.array(value).astype(dtype.numpy) != value \
            or (dtype.name == "bool") != isinstance(value, bool):
        raise OptionError(f"{what} cannot be set to {value!r}: its elements are {dtype}")
    return np.full(dims, value, dtype.numpy)


def is_read(graph: Graph, value: Value) -> bool:
    """Whether something reads an input."""
    return bool(value.users) or graph.is_output(value)


def drop_unread(graph: Graph, kept: Container[str] = ()) -> None:
    """Take away inputs that nothing reads, but for those `kept` by name, and for those that alone tell a size something
    else has."""
    for value in [v for v in graph.inputs if v.name not in kept and not is_read(graph, v)]:
        others = [v for v in graph.inputs if v is not value]
        told = {as_symbol(d) for v in others for d in v.shape}
        needed = names_in([v.shape for v in others], [(n.attrs.values(), [v.shape for v in n.outputs])
                                                      for n in graph.nodes], graph.assumptions)
        if not (names_in(value.shape) & needed) - told:
            graph.inputs = others
            graph.stretches.pop(value, None)
