"""What the verbs say of a model that keeps keys and values, and runs on a state of it."""
from __future__ import annotations

import json
from pathlib import Path

import llama
import onnx_graph
import pytest

from q8c.cli.compile import cache_lines
from q8c.ir import parse_graph
from q8c.passes.keep_cache import KeepCache
from q8c.passes.manager import run_passes
from q8c.passes.pipeline import Options
from tests.cli.support import Cli
from tests.decoder import compile_graph, decoder_graph
from tests.examples.tiny_llama import TinyGguf


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder of two layers whose cache takes 256 bytes a token."""
    folder = tmp_path_factory.mktemp("state")
    compile_graph(decoder_graph(positions=False), folder / "uniform.q8c", Options(quantize=False, kv_cache="int8"))
    return compile_graph(decoder_graph(), folder / "decoder.q8c", Options(quantize=False))


def test_inspect_tells_of_the_state(cli: Cli, decoder: Path, compiled: Path) -> None:
    line = "  state  4 caches, 0.4 kB a token of each sequence; attention_mask and position_ids may be left out\n"
    assert line in cli.good("inspect", decoder) and "  state  " not in cli.good("inspect", compiled)
    text = cli.good("inspect", decoder.with_name("uniform.q8c"))
    assert "  state  4 caches in 8 bits, 0.1 kB a token of each sequence; " in text
    assert "attention_mask may be left out; all sequences of one length" in text
    found = json.loads(cli.good("inspect", decoder, "--json"))["parts"][0]["model"]["cache"]
    assert found["pairs"] == [[3, 1], [4, 2], [5, 3], [6, 4]]


def test_compile_tells_what_grows_in_place(cli: Cli, tmp_path: Path) -> None:
    onnx_graph.save(llama.build(TinyGguf()), tmp_path / "decoder.onnx")
    text = cli.good("compile", tmp_path / "decoder.onnx", "--no-quantize")
    assert "\n  4 caches of keys and values grow in place (session.new_state)\n" in text and "not in place" not in text
    text = cli.good("explain", tmp_path / "decoder.q8c")
    assert "append" in text
    text = cli.good("compile", tmp_path / "decoder.onnx", "--no-quantize", "--kv-cache", "int8")
    assert "\n  4 caches of keys and values grow in place, in 8 bits (session.new_state)\n" in text
    wrong = cli.bad(2, "compile", tmp_path / "decoder.onnx", "--kv-cache=int4")
    assert "'int4' is unknown; expected f32 or int8" in wrong
    caches = "\n".join(f"%k{n}: f32[b, 2, 5, 8] = concat(%p{n}, %x) {{axis = 2}}" for n in range(5))
    pasts = ", ".join(f"%p{n}: f32[b, 2, 4, 8]" for n in range(5))
    fixed = parse_graph(f"graph @g({pasts}, %x: f32[b, 2, 1, 8]) {{ {caches} return %k0, %k1, %k2, %k3, %k4 }}")
    lines = cache_lines(run_passes(fixed, [KeepCache()]))
    assert len(lines) == 4 and "not in place: its past is f32[b, 2, 4, 8]; heads and their size must be" in lines[0]
    assert lines[3] == "2 more caches (q8c explain)"


def test_runs_with_and_without_a_state(cli: Cli, decoder: Path) -> None:
    sizes = ("-s", "b=2", "-s", "s=1")
    assert cli.good("run", decoder, *sizes, "-s", "past=3").startswith("logits: float32[2, 1, 50]")
    text = cli.good("bench", decoder, *sizes, "-n", "3", "--state", "30")
    assert "3 runs in turn on a state of 30 tokens" in text and ", input_ids[2, 1]\n" in text
    found = json.loads(cli.good("profile", decoder, *sizes, "-n", "3", "--state", "30", "--no-ceiling", "--json"))
    assert (found["sizes"]["b"], found["sizes"]["s"]) == (2, 1) and found["sizes"]["past"] >= 30
    assert cli.good("verify", decoder)


def test_states_that_cannot_be_timed(cli: Cli, decoder: Path, compiled: Path) -> None:
    assert "does not" in cli.bad(2, "bench", compiled, "--state", "9")
    assert "ONNX Runtime cannot be timed" in cli.bad(2, "bench", decoder, "-m", "x.onnx", "--state", "9")
    assert "nothing but token ids" in cli.bad(2, "bench", decoder, "-s", "s=0", "--state", "9")
    assert "expected an integer of at least 1" in cli(*("bench", decoder, "--state", "0")).err
