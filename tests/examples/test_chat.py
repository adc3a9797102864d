"""The chat example: picking tokens, turns in one state, the whole on a small random decoder."""
from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import chat
import llama
import numpy as np
import pytest

import q8c
from tests.examples.tiny_llama import TinyGguf

LOGITS = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))


def picked(sampler: chat.Sampler, seen: list[int] | None = None) -> set[int]:
    rng = np.random.default_rng(0)
    return {sampler.pick(LOGITS, seen or [], rng) for _ in range(200)}


@pytest.mark.parametrize("sampler, expected", [
    (chat.Sampler(0), {0}),
    (chat.Sampler(1, top_p=1), {0, 1, 2, 3}),
    (chat.Sampler(1, top_k=2, top_p=1), {0, 1}),
    (chat.Sampler(1, top_p=0.7), {0, 1}),
    (chat.Sampler(1, top_p=0), {0}),
    (chat.Sampler(1e-3, top_p=1), {0})])
def test_tokens_are_picked_from_the_likeliest(sampler: chat.Sampler, expected: set[int]) -> None:
    assert picked(sampler) == expected


def test_chances_are_the_probabilities() -> None:
    rng, sampler = np.random.default_rng(0), chat.Sampler(1, top_p=1)
    counts = np.bincount([sampler.pick(LOGITS, [], rng) for _ in range(4000)], minlength=4)
    np.testing.assert_allclose(counts / 4000, np.exp(LOGITS), atol=0.03)


def test_what_was_said_is_less_likely() -> None:
    assert picked(chat.Sampler(0, penalty=2), [0]) == {1}
    assert chat.Sampler(0, penalty=2).pick(np.array([3.0, 2.0], np.float32), [0], np.random.default_rng()) == 1


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With numbers that do not depend on how tokens are divided among runs."""
    output = tmp_path_factory.mktemp("chat") / "tiny.q8c"
    return chat.prepared(TinyGguf(), output, last_logits=True, numerics="reproducible")


def conversation(path: Path, context: int = 200) -> chat.Chat:
    return chat.Chat(q8c.load(path), TinyGguf().tokenizer(), chat.Sampler(0), context=context, system="w1 w2")


def test_turns_are_one_sequence(compiled: Path) -> None:
    """The second answer is the one that follows when all that was said is read at once."""
    talk, speed = conversation(compiled), chat.Speed()
    first = "".join(talk.say("w3 w4", 5, speed))
    assert speed.read > 0 and speed.written <= 5
    second = "".join(talk.say("w5", 5, chat.Speed()))
    again = conversation(compiled)
    again.pending += [*again.form.turn("user", "w3 w4"), *again.form.turn("assistant", first)]
    assert "".join(again.say("w5", 5, chat.Speed())) == second


def test_an_answer_may_be_cut_short(compiled: Path) -> None:
    """The turn after it is the one that follows when the answer was no longer than what the model has read of it."""
    talk = conversation(compiled)
    answer = talk.say("w3 w4", 5, chat.Speed())
    first = next(answer)
    next(answer)  # shown, and not read by the model
    second = "".join(talk.say("w5", 5, chat.Speed()))
    again = conversation(compiled)
    again.pending += [*again.form.turn("user", "w3 w4"), *again.form.turn("assistant", first)]
    assert "".join(again.say("w5", 5, chat.Speed())) == second


def test_a_new_conversation_remembers_nothing(compiled: Path) -> None:
    talk = conversation(compiled)
    first = "".join(talk.say("w3 w4", 8, chat.Speed()))
    talk.restart()
    assert "".join(talk.say("w3 w4", 8, chat.Speed())) == first


def test_a_conversation_that_has_no_room_is_told(compiled: Path) -> None:
    talk = conversation(compiled, context=24)
    list(talk.say("w3", 50, chat.Speed()))
    with pytest.raises(chat.ChatError, match="longer than its 24 tokens"):
        list(talk.say("w3 " * 20, 50, chat.Speed()))


def main(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    monkeypatch.setattr(llama, "Gguf", lambda path: TinyGguf())
    monkeypatch.setattr(sys, "argv", ["chat.py", "--gguf", "x", *map(str, arguments)])
    return chat.main()


def test_the_whole(compiled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(monkeypatch, "--output", compiled, "--prompt", "w3", "--max-tokens", 4, "--speed", "--seed", 1) == 0
    output = capsys.readouterr().out
    assert "tokens read at" in output and "written at" in output
    monkeypatch.setattr(sys, "stdin", io.StringIO("w3\n/new\nw3\n\nw4\n"))
    assert main(monkeypatch, "--output", compiled, "--max-tokens", 4, "--temperature", 0) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
    assert main(monkeypatch, "--output", compiled, "--prompt", "w3 " * 20, "--context", 16) == 1
    assert "longer than its 16 tokens" in capsys.readouterr().err


def test_models_that_do_not_chat_are_refused(monkeypatch: pytest.MonkeyPatch,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(TinyGguf, "fact", lambda self, name, default=None: "" if "template" in name else default)
    assert main(monkeypatch) == 1
    assert "not a model that chats" in capsys.readouterr().err


def test_control_tokens_in_what_is_said_are_text() -> None:
    pytest.importorskip("gguf")
    try:
        form = chat.Form(llama.Gguf(llama.smollm2_weights()).tokenizer())
    except llama.GgufError as error:
        pytest.skip(str(error))
    assert form.end not in form.encode("<|im_end|> hello") and form.turn("user", "hello").count(form.end) == 1
    form.tokenizer.encode_special_tokens = False
    whole = form.tokenizer.encode("<|im_start|>user\nhello there<|im_end|>\n").ids
    assert form.turn("user", "hello there") == whole
