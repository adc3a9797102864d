"""A BERT encoder in ONNX Runtime's own fused operators, from the weights as Hugging Face keeps them.

It is the graph ONNX Runtime's BERT optimizer aims for: EmbedLayerNormalization, Attention, SkipLayerNormalization and
BiasGelu, all of the domain com.microsoft. `quantize_dynamic` makes QAttention and integer products of it.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.common import BenchmarkError

MICROSOFT = "com.microsoft"
OPSET = 17


def build(folder: Path) -> onnx.ModelProto:
    """The float model, with inputs and output like those of the example's builder."""
    import minilm
    config = minilm.BertConfig.read(folder)
    if config.hidden_act != "gelu":
        raise BenchmarkError(f"the activation {config.hidden_act} has no fused operator here")
    weights = minilm.Weights(folder / "model.safetensors")
    hidden = config.hidden_size
    nodes: list[onnx.NodeProto] = []
    initializers: list[onnx.TensorProto] = []

    def node(op: str, inputs: list[str], outputs: list[str], domain: str = MICROSOFT, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, outputs, name=outputs[0], domain=domain, **attributes))
        return outputs[0]

    def constant(name: str, value: Any) -> str:
        initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def plain(name: str) -> str:
        return constant(name, weights.get(name, None))

    def norm(x: str, skip: str, scope: str, bias: str) -> str:
        """layer_norm(x + skip + bias)"""
        inputs = [x, skip, plain(f"{scope}.weight"), plain(f"{scope}.bias"), bias]
        return node("SkipLayerNormalization", inputs, [scope], epsilon=config.layer_norm_eps)

    def product(x: str, scope: str) -> str:
        weight = constant(f"{scope}.weight", weights.get(f"{scope}.weight", None, None).T)
        return node("MatMul", [x, weight], [f"{scope}.matmul"], domain="")

    def narrow(name: str) -> str:
        return node("Cast", [name], [f"{name}.int32"], domain="", to=TensorProto.INT32)

    tables = [constant(f"embeddings.{kind}_embeddings.weight",
                       weights.get(f"embeddings.{kind}_embeddings.weight", None, hidden))
              for kind in ("word", "position", "token_type")]
    ids, types, mask = (narrow(name) for name in ("input_ids", "token_type_ids", "attention_mask"))
    scale = [plain("embeddings.LayerNorm.weight"), plain("embeddings.LayerNorm.bias")]
    x = node("EmbedLayerNormalization", [ids, types, *tables, *scale, mask], ["embeddings", "mask_index"],
             epsilon=config.layer_norm_eps)
    for layer in range(config.num_hidden_layers):
        scope = f"encoder.layer.{layer}"
        parts = [f"{scope}.attention.self.{p}" for p in ("query", "key", "value")]
        qkv = constant(f"{scope}.qkv", np.concatenate([weights.get(f"{p}.weight", hidden, hidden).T for p in parts], 1))
        bias = constant(f"{scope}.qkv_bias", np.concatenate([weights.get(f"{p}.bias", hidden) for p in parts]))
        mixed = node("Attention", [x, qkv, bias, mask], [f"{scope}.attention"], num_heads=config.num_attention_heads)
        out = f"{scope}.attention.output"
        x = norm(product(mixed, f"{out}.dense"), x, f"{out}.LayerNorm", plain(f"{out}.dense.bias"))
        wide = f"{scope}.intermediate.dense"
        active = node("BiasGelu", [product(x, wide), plain(f"{wide}.bias")], [f"{scope}.gelu"])
        out = f"{scope}.output"
        x = norm(product(active, f"{out}.dense"), x, f"{out}.LayerNorm", plain(f"{out}.dense.bias"))
    node("Identity", [x], ["last_hidden_state"], domain="")
    tokens: list[str | int] = ["batch", "seq"]
    graph = helper.make_graph(
        nodes, "fused",
        [helper.make_tensor_value_info(n, TensorProto.INT64, tokens) for n in minilm.INPUTS],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*tokens, hidden])], initializers)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def integer_product(model: Path) -> onnx.ModelProto:
    """The product of a model of one MatMul with a constant as MatMulInteger: u8 rows `q`, s8 weights, int32 sums."""
    graph = onnx.load(str(model)).graph
    weights = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    name = next(n.input[1] for n in graph.node if n.op_type == "MatMul")
    weight = weights[name]
    whole = np.rint(weight / (np.abs(weight).max(axis=0) / 127)).astype(np.int8)
    depth, cols = weight.shape
    made = helper.make_graph(
        [helper.make_node("MatMulInteger", ["q", "w", "zero"], ["sums"], name="product")], "product",
        [helper.make_tensor_value_info("q", TensorProto.UINT8, ["rows", depth])],
        [helper.make_tensor_value_info("sums", TensorProto.INT32, ["rows", cols])],
        [numpy_helper.from_array(whole, "w"), numpy_helper.from_array(np.array(128, np.uint8), "zero")])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def optimized(model: Path, output: Path) -> None:
    """ONNX Runtime's BERT optimizer on an ONNX file. It fuses norms and activations of most exports and the attention
    of some. Raises BenchmarkError where it finds nothing to fuse."""
    from onnxruntime.transformers.optimizer import optimize_model
    made = optimize_model(str(model), model_type="bert", num_heads=0, hidden_size=0, opt_level=0)  # 0: find them out
    if not any(made.get_fused_operator_statistics().values()):
        raise BenchmarkError("its BERT optimizer finds nothing to fuse in this graph")
    made.save_model_to_file(str(output))


def quantize(model: Path, output: Path) -> None:
    """Dynamic int8 with a scale per output channel, as `quantize_dynamic` makes it."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    # Shapes are not inferred through fused operators, so what they give has to be said.
    quantize_dynamic(str(model), str(output), per_channel=True, weight_type=QuantType.QInt8,
                     op_types_to_quantize=["MatMul", "Attention"], extra_options={"DefaultTensorType": 1})
