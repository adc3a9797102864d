"""Compiling takes memory for the file it writes, not for the model's floats."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

LAYERS, WIDTH = 8, 2048
WEIGHTS = LAYERS * WIDTH * WIDTH * 4
CHILD = """
import sys
from pathlib import Path
import q8c

def peak():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024

small, large, folder = sys.argv[1:]
q8c.compile(small, folder + "/small.q8c")
before = peak()
path = q8c.compile(large, folder + "/large.q8c")
print(peak() - before, path.stat().st_size)
"""


def write(path: Path, layers: int, width: int) -> None:
    """A chain of products whose weights lie in a file beside the model."""
    rng = np.random.default_rng(0)
    weights, nodes, size = [], [], 4 * width * width
    with path.with_suffix(".bin").open("wb") as file:
        for i in range(layers):
            file.write((rng.standard_normal((width, width), np.float32) / np.float32(width ** 0.5)).tobytes())
            weights.append(TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[width, width],
                                       data_location=TensorProto.EXTERNAL))
            for key, value in (("location", f"{path.stem}.bin"), ("offset", i * size), ("length", size)):
                weights[-1].external_data.add(key=key, value=str(value))
            nodes += [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"m{i}"]),
                      helper.make_node("Tanh", [f"m{i}"], [f"x{i + 1}"])]
    graph = helper.make_graph(nodes, "wide", [helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["n", width])],
                              [helper.make_tensor_value_info(f"x{layers}", TensorProto.FLOAT, None)], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def test_peak_memory_of_a_compilation(tmp_path: Path) -> None:
    write(tmp_path / "small.onnx", 2, 64)
    write(tmp_path / "large.onnx", LAYERS, WIDTH)
    done = subprocess.run([sys.executable, "-c", CHILD, *map(str, (tmp_path / "small.onnx", tmp_path / "large.onnx",
                                                                   tmp_path))],
                          capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    more, artifact = map(int, done.stdout.split())
    assert artifact < 0.3 * WEIGHTS
    copies = 6 * WEIGHTS // LAYERS  # of the one weight that is being worked on
    assert more < 1.5 * artifact + copies, f"{more / 1e6:.0f} MB for a file of {artifact / 1e6:.0f} MB"
