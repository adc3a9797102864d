"""Decoders in q8c and its peers: how each loads a language model and computes tokens behind others.

The inputs of a run are `prefix` [batch, n], tokens whose keys and values are there before, and `input_ids`
[batch, seq]; it computes the logits of the latter, of all or, where `last` says so and the engine has a choice, of the
last one, and leaves keys and values as they were. All rows of a batch have the same prefix, which only some engines
need. `kept` is a folder where what came of a long prefix may be kept for the next process of the engine, and `bytes`
how much memory a run has to read.
"""
from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import peers
from benchmarks.common import BenchmarkError
from benchmarks.engine import Engine, Loaded, Run
from benchmarks.models import Array, Feed, Model

_CHUNK = 512
_BYTES = ctypes.POINTER(ctypes.c_uint8)


def engine(name: str) -> Engine:
    """The decoder engine of that name. Raises BenchmarkError that lists them."""
    first, _, words = name.partition(":")
    if first == "q8c-decoder":
        return _q8c(name, words)
    if name in _PARTS:
        return _PARTS[name]
    if name not in ENGINES:
        raise BenchmarkError(f"no engine {name!r}; expected q8c-decoder, q8c-decoder:OPTION=VALUE,..., "
                             f"{', '.join(ENGINES)}")
    return ENGINES[name]


READS = "q8c-decoder-reads"
"""The engine that only reads as many `bytes` as there are to read."""


def weight_bytes(compiled: Path) -> int:
    """How many bytes of weights and scales the linears of a compiled file read for a token."""
    from q8c.codegen.constants import packed_name
    from q8c.ir import parse_graph
    from q8c.runtime.artifact import Artifact
    artifact = Artifact(compiled)
    linears = [node for node in parse_graph(artifact.ir()).nodes if node.op == "q8_linear"]
    read = {packed_name(node, operand, node.input(operand)) for node in linears for operand in (3, 4)}
    return sum(constant.nbytes for constant in artifact.manifest.parts[0].constants if constant.name in read)


def token_bytes(compiled: Path) -> int:
    """How many bytes of keys and values a compiled file keeps for a token of a sequence."""
    from q8c.runtime.artifact import Artifact
    from q8c.runtime.state import Layout
    artifact = Artifact(compiled)
    layout = Layout.of(artifact.manifest.model, artifact.digest)
    return layout.token_bytes if layout else 0


def _chunks(prefix: Array) -> Iterator[tuple[int, Array]]:
    for start in range(0, prefix.shape[1], _CHUNK):
        yield start, prefix[:, start:start + _CHUNK]


# -- q8c

def _q8c(name: str, words: str) -> Engine:
    whole = peers.engine(f"q8c:{words}")

    def load(path: Path, threads: int) -> Loaded:
        import q8c
        options = dict(pair.split("=") for pair in words.split(",") if pair)
        session = q8c.load(path, threads=threads, tier=options.get("tier"))

        def bind(feed: Feed) -> Run:
            batch, past = feed["prefix"].shape
            state = session.new_state(max_tokens=past + feed["input_ids"].shape[1], batch=batch)
            for _, part in _chunks(feed["prefix"]):
                session.run(["logits"], {"input_ids": part}, state=state)

            def run() -> list[Array]:
                logits = session.run(["logits"], {"input_ids": feed["input_ids"]}, state=state)
                state.truncate(past)
                return logits

            return run

        image = session.artifact.image(session.tier)
        return Loaded(bind, {"tier": session.tier, "extras": list(image.features), "file": str(path)})

    title = "q8c" + words.replace("last_logits=true", " last").replace("weights=", " ").replace(",", "")
    return Engine(name, title, whole.packages, whole.int8, whole.prepare, load, ".q8c", whole.source)


def _reads_load(path: Path, threads: int) -> Loaded:
    from q8c.ceilings import Reader

    def bind(feed: Feed) -> Run:
        read = Reader(int(feed["bytes"]), threads)

        def run() -> list[Array]:
            read()
            return []

        return run

    return Loaded(bind)


# -- ONNX Runtime

def _ort_load(path: Path, threads: int) -> Loaded:
    import llama
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    caches = [o.name for o in session.get_outputs()][1:]
    inputs = [(i.name, i.shape) for i in session.get_inputs()]

    def behind(ids: Array, past: int, kept: dict[str, Array]) -> dict[str, Array]:
        feed: dict[str, Array] = llama.first_feed(ids, inputs) | kept
        feed["attention_mask"] = np.ones((ids.shape[0], past + ids.shape[1]), np.int64)
        feed["position_ids"] = feed["position_ids"] + past
        return feed

    def after(ids: Array, past: int, kept: dict[str, Array]) -> tuple[dict[str, Array], Array]:
        logits, *found = session.run(None, behind(ids, past, kept))
        return {name.replace("present", "past_key_values"): x for name, x in zip(caches, found, strict=True)}, logits

    def bind(feed: Feed) -> Run:
        kept: dict[str, Array] = {}
        past = feed["prefix"].shape[1]
        place = Path(str(feed["kept"])) / f"{path.name}-{len(feed['prefix'])}x{past}.npz"
        if place.exists():
            with np.load(place) as arrays:
                kept = {name: arrays[name] for name in arrays.files}
        else:
            for start, part in _chunks(feed["prefix"]):
                kept, _ = after(part, start, kept)
            if past:
                np.savez(place, **kept)  # type: ignore[arg-type, unused-ignore]
        ready = behind(feed["input_ids"], past, kept)
        return lambda: list(session.run(None, ready))[:1]

    def generate(ids: Array, tokens: int) -> Array:
        kept: dict[str, Array] = {}
        past = 0
        for _ in range(tokens):
            kept, logits = after(ids[:, past:], past, kept)
            past = ids.shape[1]
            ids = np.concatenate([ids, logits[:, -1:].argmax(-1)], axis=1)
        return ids

    return Loaded(bind, generate=generate)


# -- CTranslate2

def _ct2_prepare(quantization: str | None) -> Callable[[Model, Path], None]:
    def prepare(model: Model, path: Path) -> None:
        from benchmarks import ct2_llama, smollm2
        ct2_llama.convert(smollm2.gguf(), path, quantization)

    return prepare


def _ct2_load(compute: str) -> Callable[[Path, int], Loaded]:
    def load(path: Path, threads: int) -> Loaded:
        import ctranslate2
        generator = ctranslate2.Generator(str(path), device="cpu", compute_type=compute, intra_threads=threads)

        def bind(feed: Feed) -> Run:
            prefix, ids = feed["prefix"], feed["input_ids"]
            if not prefix.shape[1]:
                view = ctranslate2.StorageView.from_array(np.ascontiguousarray(ids, np.int32))
                lengths = ctranslate2.StorageView.from_array(np.full(len(ids), ids.shape[1], np.int32))
                return lambda: [np.array(generator.forward_batch(view, lengths))]
            if ids.shape[1] > 1:
                raise BenchmarkError("behind other tokens it takes one at a time")
            static, tokens = [str(i) for i in prefix[0]], [[str(i)] for i in ids[:, 0]]

            def run() -> list[Array]:
                generator.generate_batch(tokens, max_length=1, min_length=1, static_prompt=static,
                                         cache_static_prompt=True, include_prompt_in_result=False)
                return []

            return run

        return Loaded(bind, {"compute": generator.compute_type})

    return load


# -- llama.cpp

def _llama_cpp_prepare(model: Model, path: Path) -> None:
    import llama_cpp

    from benchmarks import smollm2
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, True
    source = str(smollm2.gguf().path).encode()
    if llama_cpp.llama_model_quantize(source, str(path).encode(), params):
        raise BenchmarkError("llama.cpp could not write the model as Q8_0")


def _llama_cpp_load(path: Path, threads: int) -> Loaded:
    import llama_cpp as lib
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(str(path).encode(), lib.llama_model_default_params())
    vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))

    def bind(feed: Feed) -> Run:
        prefix, ids = feed["prefix"], feed["input_ids"]
        rows, past = prefix.shape
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_seq_max = rows * (past + ids.shape[1] + 32), rows
        params.n_batch = params.n_ubatch = max(_CHUNK, ids.size)
        params.n_threads = params.n_threads_batch = threads
        context = lib.llama_init_from_model(model, params)
        if not context:
            raise BenchmarkError("llama.cpp made no context")
        memory = lib.llama_get_memory(context)
        if past:
            _llama_cpp_keep(lib, context, prefix[:1], Path(str(feed["kept"])) / f"{path.name}-{rows}x{past}.npy")
        for row in range(1, rows):  # a copy of what the first has, not that itself
            lib.llama_memory_seq_cp(memory, 0, row, -1, -1)

        def run() -> list[Array]:
            told = _llama_cpp_decode(lib, context, ids, past, "last" if feed["last"] else "all")
            found = np.ctypeslib.as_array(lib.llama_get_logits(context), (told, vocabulary))
            logits = found.reshape(rows, -1, vocabulary).copy()
            for row in range(rows):
                lib.llama_memory_seq_rm(memory, row, past, -1)
            return [logits]

        return run

    return Loaded(bind)


def _llama_cpp_keep(lib: Any, context: Any, prefix: Array, place: Path) -> None:
    """The first sequence holds the prefix [1, past], as kept at `place`, where it is put if it is not there yet."""
    if place.exists():
        known = np.load(place)
        if not lib.llama_state_seq_set_data(context, known.ctypes.data_as(_BYTES), known.size, 0):
            raise BenchmarkError("llama.cpp does not take back what it kept")
        return
    for start, part in _chunks(prefix):
        _llama_cpp_decode(lib, context, part, start, "none")
    room = np.zeros(lib.llama_state_seq_get_size(context, 0), np.uint8)
    np.save(place, room[:lib.llama_state_seq_get_data(context, room.ctypes.data_as(_BYTES), room.size, 0)])


def _llama_cpp_decode(lib: Any, context: Any, tokens: Array, at: int, wanted: str) -> int:
    """Compute [rows, seq] tokens that stand from `at` on, with logits of all, of the last or of none; how many rows of
    logits there are."""
    batch = lib.llama_batch_init(tokens.size, 0, 1)
    batch.n_tokens = tokens.size
    told = 0
    for n, (row, column) in enumerate(np.ndindex(tokens.shape)):
        batch.token[n], batch.pos[n] = int(tokens[row, column]), at + column
        batch.n_seq_id[n], batch.seq_id[n][0] = 1, row
        batch.logits[n] = int(wanted == "all" or (wanted == "last" and column == tokens.shape[1] - 1))
        told += batch.logits[n]
    failed = lib.llama_decode(context, batch)
    lib.llama_batch_free(batch)
    if failed:
        raise BenchmarkError(f"llama.cpp failed with {failed}")
    return told


ENGINES: dict[str, Engine] = {e.name: e for e in (
    Engine("decoder-ort-fp32", "ONNX Runtime fp32", ("onnxruntime",), False, peers.same, _ort_load),
    Engine("decoder-ort-int8", "ONNX Runtime int8", ("onnxruntime", "onnx"), True, peers.ort_int8, _ort_load),
    Engine("decoder-ct2-int8", "CTranslate2 int8", ("ctranslate2",), True, _ct2_prepare("int8"), _ct2_load("int8"), ""),
    Engine("decoder-llamacpp", "llama.cpp Q8_0", ("llama_cpp",), True, _llama_cpp_prepare, _llama_cpp_load, ".gguf"),
)}
"""The peers by name."""
_PARTS = {READS: Engine(READS, "reading as much", ("llvmlite",), False, lambda model, path: path.touch(), _reads_load,
                        "")}
