"""A BERT encoder in ONNX Runtime's own fused operators, from the weights as Hugging Face keeps them.

It is the graph ONNX Runtime's BERT optimizer aims for: EmbedLayerNormalization, Attention, SkipLayerNormalization and
BiasGelu, all of the domain com.microsoft. `quantize_dynamic` makes QAttention and integer products of it.
"""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.common import BenchmarkError

if TYPE_CHECKING:
    import minilm

MICROSOFT = "com.microsoft"
OPSET = 17


class _FusedBert:
    """Collects the nodes and initializers of one encoder; every method that adds a value returns its name."""

    def __init__(self, config: minilm.BertConfig, weights: minilm.Weights) -> None:
        self.config = config
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def node(self, op: str, inputs: list[str], output: str, domain: str = MICROSOFT, more: tuple[str, ...] = (),
             **attributes: Any) -> str:
        """A node named after its first result; `more` are further results."""
        self.nodes.append(helper.make_node(op, inputs, [output, *more], name=output, domain=domain, **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def vector(self, name: str) -> str:
        """A weight of one dimension under its own name."""
        return self.constant(name, self.weights.get(name, None))

    def norm(self, x: str, skip: str, scope: str, bias: str) -> str:
        """layer_norm(x + skip + bias)"""
        inputs = [x, skip, self.vector(f"{scope}.weight"), self.vector(f"{scope}.bias"), self.vector(bias)]
        return self.node("SkipLayerNormalization", inputs, scope, epsilon=self.config.layer_norm_eps)

    def product(self, x: str, scope: str) -> str:
        weight = self.constant(f"{scope}.weight", self.weights.get(f"{scope}.weight", None, None).T)
        return self.node("MatMul", [x, weight], f"{scope}.matmul", domain="")

    def narrow(self, name: str) -> str:
        return self.node("Cast", [name], f"{name}.int32", domain="", to=TensorProto.INT32)

    def embeddings(self, mask: str) -> str:
        names = (f"embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type"))
        tables = [self.constant(n, self.weights.get(n, None, self.config.hidden_size)) for n in names]
        scale = [self.vector(f"embeddings.LayerNorm.{part}") for part in ("weight", "bias")]
        inputs = [self.narrow("input_ids"), self.narrow("token_type_ids"), *tables, *scale, mask]
        return self.node("EmbedLayerNormalization", inputs, "embeddings", more=("mask_index",),
                         epsilon=self.config.layer_norm_eps)

    def layer(self, x: str, mask: str, scope: str) -> str:
        hidden = self.config.hidden_size
        parts = [f"{scope}.attention.self.{p}" for p in ("query", "key", "value")]
        qkv = np.concatenate([self.weights.get(f"{p}.weight", hidden, hidden).T for p in parts], 1)
        bias = np.concatenate([self.weights.get(f"{p}.bias", hidden) for p in parts])
        inputs = [x, self.constant(f"{scope}.qkv", qkv), self.constant(f"{scope}.qkv_bias", bias), mask]
        mixed = self.node("Attention", inputs, f"{scope}.attention", num_heads=self.config.num_attention_heads)
        out = f"{scope}.attention.output"
        x = self.norm(self.product(mixed, f"{out}.dense"), x, f"{out}.LayerNorm", f"{out}.dense.bias")
        wide = f"{scope}.intermediate.dense"
        active = self.node("BiasGelu", [self.product(x, wide), self.vector(f"{wide}.bias")], f"{scope}.gelu")
        out = f"{scope}.output"
        return self.norm(self.product(active, f"{out}.dense"), x, f"{out}.LayerNorm", f"{out}.dense.bias")


def build(folder: Path) -> onnx.ModelProto:
    """The float model, with inputs and output like those of the example's builder."""
    import minilm
    config = minilm.BertConfig.read(folder)
    if config.hidden_act != "gelu":
        raise BenchmarkError(f"the activation {config.hidden_act} has no fused operator here")
    bert = _FusedBert(config, minilm.Weights(folder / "model.safetensors"))
    mask = bert.narrow("attention_mask")
    x = bert.embeddings(mask)
    for layer in range(config.num_hidden_layers):
        x = bert.layer(x, mask, f"encoder.layer.{layer}")
    bert.node("Identity", [x], "last_hidden_state", domain="")
    tokens: list[str | int] = ["batch", "seq"]
    graph = helper.make_graph(
        bert.nodes, "fused",
        [helper.make_tensor_value_info(n, TensorProto.INT64, tokens) for n in minilm.INPUTS],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, [*tokens, config.hidden_size])],
        bert.initializers)
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
