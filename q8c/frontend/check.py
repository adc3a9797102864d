"""Runs ONNX's checker on a model whose initializers were set aside."""
from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from q8c.errors import CompileError
from q8c.frontend.functions import all_nodes
from q8c.frontend.registry import MICROSOFT, find_importer

if TYPE_CHECKING:
    import onnx
    from google.protobuf.message import Message

    from q8c.frontend.load import Model


def check(model: Model) -> None:
    """Raise CompileError with the checker's first complaint; return nothing if it has none.

    The checker sees initializers as inputs, so its time does not depend on the size of the weights.
    """
    import onnx

    for name in (*_texts(model.proto), *model.weights):
        if not isinstance(name, str):
            raise CompileError(f"not a valid ONNX model: the text {name[:100]!r} is not UTF-8")
    copy = onnx.ModelProto()
    copy.CopyFrom(model.proto)
    declared = {v.name for v in copy.graph.input}
    for name, elem_type, shape in model.weights.signatures():
        if name not in declared:
            copy.graph.input.append(onnx.helper.make_tensor_value_info(name, elem_type, shape))
    for value in (*copy.graph.input, *copy.graph.output):
        if value.type.WhichOneof("value") in (None, "tensor_type"):
            value.type.tensor_type.shape.SetInParent()
    _set_aside_extensions(copy, model.opsets.get("", 1))
    _fill_in(copy)
    try:
        onnx.checker.check_model(copy, skip_opset_compatibility_check=True)
    except Exception as error:  # the checker raises ValidationError, and others for what it cannot serialize
        raise CompileError(f"not a valid ONNX model: {' '.join(str(error).split())[:600]}") from error


def _fill_in(model: onnx.ModelProto) -> None:
    """What the checker wants and nothing here needs: names, a newer format, and data in files, which are looked for
    when they are read."""
    import onnx

    model.ir_version = max(model.ir_version, 3)
    model.graph.name = model.graph.name or "graph"
    for value in model.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.elem_type = value.type.tensor_type.elem_type or onnx.TensorProto.FLOAT
    for node in all_nodes(model.graph.node):
        for attribute in node.attribute:
            for tensor in (attribute.t, *attribute.g.initializer):
                if tensor.data_location == onnx.TensorProto.EXTERNAL:
                    tensor.CopyFrom(onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[0]))


def _texts(message: Message) -> Iterator[str | bytes]:
    """Every text in a message; protobuf gives bytes for those that are not UTF-8."""
    from google.protobuf.message import Message

    for field, value in message.ListFields():
        if field.type in (field.TYPE_STRING, field.TYPE_MESSAGE):
            for part in [value] if isinstance(value, (str, bytes, Message)) else value:
                yield from _texts(part) if isinstance(part, Message) else [part]


def _set_aside_extensions(model: onnx.ModelProto, opset: int) -> None:
    """Nodes that ONNX Runtime puts in the default domain though ONNX does not define them, as its own domain's."""
    import onnx

    for node in model.graph.node:
        if node.domain or find_importer("", node.op_type, opset) is None:
            continue
        try:
            onnx.defs.get_schema(node.op_type, opset, "")
        except onnx.defs.SchemaError:
            node.domain = MICROSOFT
