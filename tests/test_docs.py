"""The Python in README, CONTRIBUTING and docs works as printed."""
from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import llama
import minilm
import onnx
import onnx_graph

from tests.examples.bert_folder import CONFIG, random_weights, write_folder
from tests.examples.tiny_llama import TinyGguf
from tests.merged.decoder import MERGED

ROOT = Path(__file__).parent.parent


def run_blocks(document: str, folder: Path, after: str = "") -> str:
    """Run a document's Python blocks as one program in `folder`, and `after` behind them; what it printed."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    future = "from __future__ import annotations\n"
    program = future + "\n".join(block.replace(future, "") for block in blocks) + after
    (folder / "program.py").write_text(program)
    done = subprocess.run([sys.executable, "program.py"], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return done.stdout


CONTRIBUTING_AFTER = """
test_sign_is_dropped()
test_unsigned_numbers_are_left_alone()

import onnx
from q8c.frontend import import_onnx
from q8c.ir import interpret, parse_graph
from tests.codegen.jit import build, guarded

feed = np.array([0.25, 0.5], np.float32)
value = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n"]) for n in "xy"]
node = onnx.helper.make_node("Logit", ["x"], ["y"], domain="com.example")
opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("com.example", 1)]
model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", value[:1], value[1:]), opset_imports=opsets)
np.testing.assert_allclose(interpret(import_onnx(model), {"x": feed})[0], logit([feed], {})[0], atol=1e-6)

graph = parse_graph("graph @g(%x: f32[n]) { %y: f32[n] = neg(%x) return %y }")
for tier in runnable_tiers():
    kernels = []

    def emit(module, tier):
        kernels.append(double_kernel(module, tier, graph.nodes[0]))
        kernels[-1].function.linkage = ""

    loaded = build(tier, emit)
    assert kernels[0].sizes == graph.inputs[0].shape
    for count in (0, 1, 16, 37):
        x, y = guarded(np.arange(count, dtype=np.float32)), guarded(np.zeros(count, np.float32))
        for tid in range(3):
            loaded(kernels[0].function.name, x, y, count, tid, 3)
        np.testing.assert_array_equal(y, 2 * x)
"""


def test_readme_works_as_printed(tmp_path: Path) -> None:
    onnx_graph.save(minilm.build(write_folder(tmp_path, CONFIG, random_weights(CONFIG))), tmp_path / "model.onnx")
    printed = run_blocks("README.md", tmp_path, "\nprint(sorted(outputs), outputs['last_hidden_state'].shape)")
    assert printed.splitlines() == [*(f"{name} ['batch', 'seq'] tensor(int64)" for name in minilm.INPUTS),
                                    f"['last_hidden_state'] (2, 16, {CONFIG['hidden_size']})"]


def test_decoding_works_as_printed(tmp_path: Path) -> None:
    onnx_graph.save(llama.build(TinyGguf()), tmp_path / "decoder.onnx")
    onnx.save(MERGED, tmp_path / "decoder_model_merged.onnx")
    after = "\nprint(len(text), beams.lengths, draft.lengths, both.lengths)"
    state, lengths, last = run_blocks("docs/decoding.md", tmp_path, after).splitlines()
    assert state.startswith("[") and "<State of 1 sequence, 22 of 256 tokens, " in state
    assert (lengths, last) == ("[5 3]", "20 [5 5 5 3] [5 3] [2 1]")


def test_contributing_works_as_printed(tmp_path: Path) -> None:
    run_blocks("CONTRIBUTING.md", tmp_path, CONTRIBUTING_AFTER)
