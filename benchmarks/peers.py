"""The engines that are compared.

`ENGINES` has the peers by name; `engine("q8c:weights=q8-block64,tier=avx2")` gives q8c with options. Preparing may
import anything and take its time; loading imports what running needs and nothing else, so that its time and memory are
those of a user's process.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import BenchmarkError
from benchmarks.engine import Engine, Loaded, Run
from benchmarks.models import Array, Feed, Model

Options = Mapping[str, str]


def engine(name: str) -> Engine:
    """The engine of that name. Raises BenchmarkError that lists them."""
    first, _, words = name.partition(":")
    if first == "q8c":
        return _q8c(name, _options(name, words))
    if name in _PARTS:
        return _PARTS[name]
    if name not in ENGINES:
        raise BenchmarkError(f"no engine {name!r}; expected q8c, q8c:OPTION=VALUE,..., {', '.join(ENGINES)}")
    return ENGINES[name]


# -- q8c

_OF_LOADING = ("tier",)


def _options(name: str, words: str) -> dict[str, str]:
    pairs = [word.partition("=") for word in words.split(",") if word]
    if any(not value for _, _, value in pairs):
        raise BenchmarkError(f"expected q8c:OPTION=VALUE,..., got {name!r}")
    return {key: value for key, _, value in pairs}


def _q8c(name: str, options: Options) -> Engine:
    def prepare(model: Model, path: Path) -> None:
        from q8c.compiler import compile_model
        from q8c.errors import Error
        from q8c.passes.pipeline import Options as PassOptions
        chosen = {k: _typed(v) for k, v in options.items() if k not in _OF_LOADING}
        try:
            compile_model(model.onnx, path, target=options.get("tier", "native"), options=PassOptions(**chosen))
        except (Error, TypeError) as error:
            raise BenchmarkError(str(error)) from error

    def load(path: Path, threads: int) -> Loaded:
        import q8c
        session = q8c.load(path, threads=threads, tier=options.get("tier"))
        image = session.artifact.image(session.tier)
        facts = {"tier": session.tier, "extras": list(image.features), "file": str(path),
                 "symbols": list(session.artifact.manifest.model.symbols)}
        return Loaded(lambda feed: lambda: session.run(None, feed), facts, lambda runs: _nodes(session, runs))

    def source() -> str:
        from q8c.cache import compiler_digest
        return compiler_digest()

    title = " ".join(["q8c", *(key if value == "true" else value for key, value in options.items())])
    return Engine(name, title, ("llvmlite", "onnx"), options.get("quantize") != "false", prepare, load, ".q8c", source)


def _nodes(session: Any, runs: Callable[[], None]) -> list[dict[str, Any]]:
    from q8c.ir import parse_graph
    from q8c.profile import profile
    from q8c.runtime.trace import Trace
    traces: list[Trace] = []
    session.watch(traces.append)
    runs()
    session.watch(None)
    found = profile(parse_graph(session.artifact.ir()), session.artifact.manifest.model.symbols, traces)
    return [{"label": r.label, "op": r.op, "seconds": r.seconds, "macs": r.macs, "bytes": r.bytes} for r in found.rows]


def _typed(value: str) -> Any:
    return {"true": True, "false": False}.get(value.lower(), value)


# -- ONNX Runtime

def _ort_load(path: Path, threads: int) -> Loaded:
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Loaded(lambda feed: lambda: list(session.run(None, feed)))


def same(model: Model, path: Path) -> None:
    path.symlink_to(model.onnx)


def ort_int8(model: Model, path: Path) -> None:
    from benchmarks import ort_fused
    ort_fused.quantize(model.onnx, path)


def _ort_fused(model: Model, path: Path) -> None:
    from benchmarks import ort_fused
    between = path.with_name(f"{path.stem}-float.onnx")
    try:
        if model.folder is not None:
            between.write_bytes(ort_fused.build(model.folder).SerializeToString())
        else:
            ort_fused.optimized(model.onnx, between)
        ort_fused.quantize(between, path)
    finally:
        between.unlink(missing_ok=True)


def _matmulinteger(model: Model, path: Path) -> None:
    from benchmarks import ort_fused
    path.write_bytes(ort_fused.integer_product(model.onnx).SerializeToString())


def _matmulinteger_load(path: Path, threads: int) -> Loaded:
    import numpy as np
    loaded = _ort_load(path, threads)

    def bind(feed: Feed) -> Run:
        x = next(iter(feed.values()))
        scale = np.maximum(np.abs(x).max(axis=-1, keepdims=True), 1e-30) / 127
        return loaded.bind({"q": (np.rint(x / scale) + 128).astype(np.uint8)})

    return Loaded(bind)


# -- OpenVINO

def ov_load(**settings: Any) -> Callable[[Path, int], Loaded]:
    def load(path: Path, threads: int) -> Loaded:
        import openvino
        core = openvino.Core()
        config = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, **settings}
        compiled = core.compile_model(core.read_model(path), "CPU", config)
        request = compiled.create_infer_request()

        def bind(feed: Feed) -> Run:
            def run() -> list[Array]:
                results = request.infer(feed, share_inputs=True, share_outputs=True)
                return [results[output] for output in compiled.outputs]

            return run

        return Loaded(bind, {"precision": str(compiled.get_property("INFERENCE_PRECISION_HINT"))})

    return load


def _ov_int8(model: Model, path: Path) -> None:
    from benchmarks import ov_int8
    if not ov_int8.compress(model.onnx, path):
        raise BenchmarkError("OpenVINO's graph has no matrix product with a constant weight")


# -- CTranslate2

def _ct2_prepare(quantization: str | None) -> Callable[[Model, Path], None]:
    def prepare(model: Model, path: Path) -> None:
        from benchmarks import ct2_bert
        if model.folder is None:
            raise BenchmarkError("CTranslate2 takes weights, not ONNX")
        ct2_bert.convert(model.folder, path, quantization)

    return prepare


def _ct2_load(compute: str) -> Callable[[Path, int], Loaded]:
    def load(path: Path, threads: int) -> Loaded:
        import ctranslate2
        import numpy as np
        encoder = ctranslate2.Encoder(str(path), device="cpu", compute_type=compute, intra_threads=threads)

        def bind(feed: Feed) -> Run:
            ids = ctranslate2.StorageView.from_array(np.ascontiguousarray(feed["input_ids"], np.int32))
            lengths = ctranslate2.StorageView.from_array(feed["attention_mask"].sum(axis=1).astype(np.int32))
            types = feed["token_type_ids"].tolist()
            return lambda: [np.array(encoder.forward_batch(ids, lengths, types).last_hidden_state)]

        return Loaded(bind, {"compute": encoder.compute_type})

    return load


# -- PyTorch

def _torch_prepare(model: Model, path: Path) -> None:
    if model.folder is None:
        raise BenchmarkError("the PyTorch form is written from weights, not ONNX")
    path.symlink_to(model.folder)


def _torch_load(int8: bool) -> Callable[[Path, int], Loaded]:
    def load(path: Path, threads: int) -> Loaded:
        from benchmarks import torch_bert
        return Loaded(torch_bert.load(path, threads, int8))

    return load


ENGINES: dict[str, Engine] = {e.name: e for e in (
    Engine("ort-fp32", "ONNX Runtime fp32", ("onnxruntime",), False, same, _ort_load),
    Engine("ort-int8", "ONNX Runtime int8", ("onnxruntime", "onnx"), True, ort_int8, _ort_load),
    Engine("ort-qattention", "ONNX Runtime int8 fused", ("onnxruntime", "onnx"), True, _ort_fused, _ort_load),
    Engine("ov-fp32", "OpenVINO fp32", ("openvino",), False, same, ov_load(INFERENCE_PRECISION_HINT="f32")),
    Engine("ov", "OpenVINO default", ("openvino",), False, same, ov_load()),
    Engine("ov-int8", "OpenVINO int8", ("openvino",), True, _ov_int8,
           ov_load(DYNAMIC_QUANTIZATION_GROUP_SIZE=128, INFERENCE_PRECISION_HINT="f32"), ".xml"),
    Engine("ov-int8-weights", "OpenVINO int8 weights", ("openvino",), False, _ov_int8, ov_load(), ".xml"),
    Engine("ct2-fp32", "CTranslate2 fp32", ("ctranslate2",), False, _ct2_prepare(None), _ct2_load("float32"), ""),
    Engine("ct2-int8", "CTranslate2 int8", ("ctranslate2",), True, _ct2_prepare("int8"), _ct2_load("int8"), ""),
    Engine("torch-fp32", "PyTorch fp32", ("torch",), False, _torch_prepare, _torch_load(False), ""),
    Engine("torch-int8", "PyTorch int8", ("torch",), True, _torch_prepare, _torch_load(True), ""),
)}
"""The peers by name. OpenVINO's default runs in bf16 where the CPU has it, and then widens int8 weights to bf16; with
fp32 asked for, it quantizes rows at run time in groups of 128 and multiplies integers."""
_PARTS = {e.name: e for e in (
    Engine("ort-matmulinteger", "ONNX Runtime MatMulInteger", ("onnxruntime", "onnx"), True, _matmulinteger,
           _matmulinteger_load),
)}
"""Engines that do only a part of what a model asks for: rows come quantized, and the sums stay integers."""
