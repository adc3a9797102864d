"""Score texts with a language model compiled to int8: how likely it finds each token after those before it.

Prints, for each text, the mean negative log-likelihood of its tokens and the perplexity, exp of that mean; the lower,
the less the text surprised the model. With --fp32 the same from ONNX Runtime in fp32, and the difference.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

try:
    import chat
    import llama
    import numpy as np
    import numpy.typing as npt
    import onnx_graph
    import onnxruntime

    import q8c
except ModuleNotFoundError as error:
    sys.exit(f"perplexity.py: {error}; make chat installs all it needs, and so does: pip install '.[examples]'")

EPILOG = """\
examples:
  python examples/perplexity.py README.md              a file
  python examples/perplexity.py a.txt b.txt --fp32     which is likelier, and how close int8 is to fp32
  git log -5 | python examples/perplexity.py -         standard input
"""

Array = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Score = Callable[[Ids], Array]  # tokens [1, seq] -> logits [1, seq, vocabulary]


@dataclass(frozen=True)
class Surprise:
    """The sum of the negative log-likelihoods of so many tokens."""

    total: float = 0.0
    tokens: int = 0

    def __add__(self, other: Surprise) -> Surprise:
        return Surprise(self.total + other.total, self.tokens + other.tokens)

    @property
    def mean(self) -> float:
        """Per token, in nats; NaN for a text of one token, whose likelihood nothing tells."""
        return self.total / self.tokens if self.tokens else math.nan


def windows(ids: list[int], size: int) -> Iterator[Ids]:
    """Pieces of at most `size` tokens, each beginning with the last one of the piece before."""
    for start in range(0, max(len(ids) - 1, 1), size - 1):
        yield np.array([ids[start : start + size]], np.int64)


def surprise(score: Score, ids: list[int], size: int) -> Surprise:
    """Of all tokens but the first."""
    found = Surprise()
    for done, piece in enumerate(windows(ids, size)):
        chat.step(f"{done * (size - 1)} of {len(ids)} tokens")
        logits = score(piece)[0, :-1].astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        chosen = np.take_along_axis(logits, piece[0, 1:, None], axis=-1)[:, 0]
        found += Surprise(float((np.log(np.exp(logits).sum(axis=-1)) - chosen).sum()), len(chosen))
    chat.step("")
    return found


def int8_score(path: Path, threads: int | None) -> Score:
    """Logits of the compiled model."""
    session = q8c.load(path, threads=threads)
    inputs = [(i.name, i.shape) for i in session.get_inputs()]
    return lambda ids: session.run(["logits"], llama.first_feed(ids, inputs))[0]


def fp32_score(gguf: llama.Gguf, threads: int | None) -> Score:
    """Logits of the same weights in fp32."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    with tempfile.TemporaryDirectory() as folder:  # from a file it needs half the memory
        path = Path(folder) / "decoder.onnx"
        onnx_graph.save(llama.build(gguf), path)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = [(i.name, i.shape) for i in session.get_inputs()]
    return lambda ids: session.run(["logits"], llama.first_feed(ids, inputs))[0]


def read(name: str) -> str:
    """The text of a file, or of standard input for `-`."""
    return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")


def run(args: argparse.Namespace) -> None:
    texts = {name: read(name) for name in args.texts}
    gguf = llama.Gguf(args.gguf or llama.smollm2_weights())
    tokenizer = gguf.tokenizer()
    path = chat.prepared(gguf, args.output or chat.BUILD / f"{gguf.path.stem}.q8c", args.recompile)
    scores = {"int8": int8_score(path, args.threads)}
    if args.fp32:
        scores["fp32"] = fp32_score(gguf, args.threads)
    print(f"{'text':<32} {'tokens':>7}", *(f"{f'NLL {name}':>9} {'perplexity':>10}" for name in scores),
          *([f"{'difference':>10}"] if args.fp32 else []))
    for name, text in texts.items():
        ids = tokenizer.encode(text).ids
        means = [surprise(score, ids, args.window).mean for score in scores.values()] if ids else [math.nan]
        print(f"{name[-32:]:<32} {len(ids):>7}", *(f"{mean:9.4f} {math.exp(mean):10.2f}" for mean in means),
              *([f"{math.expm1(means[0] - means[-1]):+10.2%}"] if args.fp32 else []))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("texts", nargs="+", metavar="FILE", help="a text in UTF-8; - is standard input")
    add("--fp32", action="store_true", help="compare with ONNX Runtime in fp32")
    add("--window", type=chat.number(2, kind=int), default=512, metavar="N",
        help="tokens that are scored together (default 512)")
    add("--threads", type=chat.number(1, kind=int), metavar="N", help="(default: all cores)")
    add("--gguf", type=Path, metavar="FILE", help="the weights (default: those of the installed package)")
    add("--output", type=Path, metavar="FILE.q8c", help="the compiled model (default: in examples/build)")
    add("--recompile", action="store_true", help="compile although there is a compiled model")
    return parser.parse_args()


def main() -> int:
    try:
        run(parse_args())
    except (llama.GgufError, q8c.Error, OSError, UnicodeDecodeError) as error:
        chat.step("")
        print(f"perplexity.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
