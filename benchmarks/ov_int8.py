"""int8 weights for OpenVINO, as its own tools write them: a scale per output channel before each matrix product."""
from __future__ import annotations

from pathlib import Path


def compress(model: Path, output: Path) -> int:
    """Write the ONNX model as OpenVINO IR with its weights as int8 constants; how many there were.

    Symmetric, scale = absmax / 127 per output channel (what nncf calls INT8_SYM). OpenVINO's CPU plugin multiplies
    such weights by int8 rows where DYNAMIC_QUANTIZATION_GROUP_SIZE is set.
    """
    import numpy as np
    import openvino as ov
    from openvino import opset13 as ops
    graph = ov.Core().read_model(model)
    count = 0
    for node in graph.get_ordered_ops():
        if node.get_type_name() != "MatMul":
            continue
        source = node.input(1).get_source_output().get_node()
        if source.get_type_name() != "Constant" or len(source.get_output_shape(0)) != 2:
            continue
        weight = source.data.astype(np.float32)
        axis = 1 if node.get_attributes()["transpose_b"] else 0  # the depth of the product
        scale = np.maximum(np.abs(weight).max(axis=axis, keepdims=True) / 127, 1e-30).astype(np.float32)
        packed = ops.constant(np.clip(np.rint(weight / scale), -127, 127).astype(np.int8))
        restored = ops.multiply(ops.convert(packed, "f32"), ops.constant(scale))
        node.input(1).replace_source_output(restored.output(0))
        count += 1
    ov.save_model(graph, output, compress_to_fp16=False)
    return count
