"""Small ONNX models for tests of the whole product, and ONNX Runtime's answers."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import minilm
import numpy as np
import numpy.typing as npt
import onnx
import onnx_graph
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from tests.examples.bert_folder import CONFIG, random_weights, write_folder

Array = npt.NDArray[Any]
HIDDEN = 48
# An inner size that is no multiple of 4, heads of 16: sizes that leave remainders in every kernel.
ENCODER: dict[str, Any] = CONFIG | {"hidden_size": HIDDEN, "intermediate_size": 70, "max_position_embeddings": 40}
VOCABULARY: int = ENCODER["vocab_size"]


def bert(folder: Path) -> onnx.ModelProto:
    """A BERT encoder of two layers on token ids; positions reach to 40."""
    return minilm.build(write_folder(folder, ENCODER, random_weights(ENCODER)))


def bert_feed(batch: int, seq: int, seed: int = 0) -> dict[str, npt.NDArray[np.int64]]:
    """Random ids; sequences of different lengths, the first of full length."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, seq + 1, batch)
    lengths[:1] = seq
    return {"input_ids": rng.integers(0, VOCABULARY, (batch, seq)),
            "attention_mask": (np.arange(seq) < lengths[:, None]).astype(np.int64),
            "token_type_ids": rng.integers(0, 2, (batch, seq))}


def encoder(folder: Path) -> onnx.ModelProto:
    """The same two layers on rows of floats: x [batch, seq, 48] and attention_mask to y, with nothing normalized before
    the first product."""
    source = write_folder(folder, ENCODER, random_weights(ENCODER))
    builder = minilm.BertBuilder(minilm.BertConfig.read(source), minilm.Weights(source / "model.safetensors"))
    x, mask = "x", builder.mask_bias()
    for layer in range(builder.config.num_hidden_layers):
        x = builder.layer(x, mask, f"encoder.layer.{layer}")
    builder.node("Identity", [x], "y")
    tokens = ["batch", "seq"]
    graph = helper.make_graph(
        builder.nodes, "encoder",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [*tokens, HIDDEN]),
         helper.make_tensor_value_info("attention_mask", TensorProto.INT64, tokens)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*tokens, HIDDEN])],
        list(builder.initializers.values()))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", onnx_graph.OPSET)],
                             ir_version=onnx_graph.IR_VERSION)


def encoder_feed(batch: int, seq: int, seed: int = 0) -> dict[str, Array]:
    """Standard normal rows, all of them real."""
    x = np.random.default_rng(seed).standard_normal((batch, seq, HIDDEN)).astype(np.float32)
    return {"x": x, "attention_mask": np.ones((batch, seq), np.int64)}


def mlp(sizes: Sequence[int] = (33, 70, 19), activation: str = "Gelu") -> onnx.ModelProto:
    """x [rows, sizes[0]] through products, biases and activations to y [rows, sizes[-1]]."""
    rng = np.random.default_rng(5)
    constants: dict[str, Array] = {}
    nodes, x = [], "x"
    for layer, (depth, cols) in enumerate(zip(sizes, sizes[1:], strict=False)):
        constants[f"w{layer}"] = rng.normal(0, depth ** -0.5, (depth, cols)).astype(np.float32)
        constants[f"b{layer}"] = rng.normal(0, 0.1, cols).astype(np.float32)
        nodes.append(helper.make_node("MatMul", [x, f"w{layer}"], [f"m{layer}"], name=f"matmul{layer}"))
        nodes.append(helper.make_node("Add", [f"m{layer}", f"b{layer}"], [f"a{layer}"], name=f"add{layer}"))
        x = f"a{layer}"
        if layer < len(sizes) - 2:
            nodes.append(helper.make_node(activation, [x], [f"g{layer}"], name=f"act{layer}"))
            x = f"g{layer}"
    nodes.append(helper.make_node("Identity", [x], ["y"], name="end"))
    return model(nodes, {"x": ("rows", sizes[0])}, {"y": ("rows", sizes[-1])}, constants)


def model(nodes: Sequence[onnx.NodeProto], inputs: Mapping[str, Sequence[int | str]],
          outputs: Mapping[str, Sequence[int | str] | None], constants: Mapping[str, Array] | None = None, *,
          dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """A model of these nodes with inputs and outputs of one type."""
    graph = helper.make_graph(
        list(nodes), "small", [helper.make_tensor_value_info(n, dtype, list(s)) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, dtype, s) for n, s in outputs.items()],
        [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def onnxruntime_outputs(proto: onnx.ModelProto, *feeds: Mapping[str, Array]) -> list[Array]:
    """The first output for each feed, fp32 by ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(session.run(None, dict(feed))[0]) for feed in feeds]
