"""q8c as a backend of ONNX's own tests: `onnx.backend.base.Backend`, compiling for this CPU and keeping float float.

    rep = q8c.onnx_backend.prepare(onnx.load("model.onnx"))
    outputs = rep.run([x, y])
"""
from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from onnx.backend import base
from onnx.helper import tensor_dtype_to_np_dtype
from onnx.numpy_helper import from_array

from q8c.compiler import compile_model
from q8c.errors import InputError, UnsupportedError
from q8c.passes.pipeline import Options
from q8c.runtime.arrays import Array
from q8c.runtime.session import Session, load

if TYPE_CHECKING:
    import onnx

_DEVICE = "CPU"


class BackendRep(base.BackendRep):  # type: ignore[misc, unused-ignore]
    """A compiled model. Where shapes depend on the elements of inputs, it is compiled for their elements in each run,
    once for equal ones."""

    def __init__(self, model: onnx.ModelProto, options: Options, threads: int | None) -> None:
        self._model, self._options, self._threads = model, options, threads
        self._fixed: set[str] = set()
        self._sessions: dict[bytes, Session] = {}
        self._types = {v.name: tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type)
                       for v in model.graph.output if v.type.tensor_type.elem_type}
        held = {t.name for t in model.graph.initializer}
        self._inputs = [v.name for v in model.graph.input if v.name not in held]
        self._ready({})

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Array, ...]:
        """All outputs in order, for inputs in order, by name, or one alone.

        Raises InputError for inputs that do not fit the model, and UnsupportedError as `prepare` does where it is
        compiled for them.
        """
        given = inputs if isinstance(inputs, (Mapping, list, tuple)) else [inputs]
        if not isinstance(given, Mapping):
            if len(given) != len(self._inputs):
                raise InputError(f"{len(given)} inputs were given, expected {len(self._inputs)}")
            given = dict(zip(self._inputs, given, strict=True))
        feed = {name: _plain(array) for name, array in given.items()}
        session = self._ready(feed)
        assert session is not None
        outputs = session.run(None, {n: x for n, x in feed.items() if n not in self._fixed})
        return tuple(y.astype(self._types[a.name], copy=False)
                     for a, y in zip(session.get_outputs(), outputs, strict=True))

    def _ready(self, feed: Mapping[str, Array]) -> Session | None:
        """The session for a feed; None if it needs elements that the feed does not have."""
        while True:
            missing = self._fixed - feed.keys()
            if missing:
                return None
            key = b"".join(feed[name].tobytes() + repr(feed[name].shape).encode() for name in sorted(self._fixed))
            if key in self._sessions:
                return self._sessions[key]
            try:
                self._sessions[key] = self._compile({name: feed[name] for name in self._fixed})
            except UnsupportedError as error:
                if error.inputs <= self._fixed:
                    raise
                self._fixed |= error.inputs

    def _compile(self, constants: Mapping[str, Array]) -> Session:
        model = with_constants(self._model, constants) if constants else self._model
        with tempfile.TemporaryDirectory() as folder:  # the file is mapped, and may go once it is
            path = Path(folder, "model.q8c")
            compile_model(model, path, options=self._options)
            return load(path, threads=self._threads)


def with_constants(model: onnx.ModelProto, constants: Mapping[str, Array]) -> onnx.ModelProto:
    """A copy of the model in which constants stand in the place of inputs."""
    copy = type(model)()
    copy.CopyFrom(model)
    kept = [v for v in copy.graph.input if v.name not in constants]
    del copy.graph.input[:]
    copy.graph.input.extend(kept)
    copy.graph.initializer.extend(from_array(array, name) for name, array in constants.items())
    return copy


class Backend(base.Backend):  # type: ignore[misc, unused-ignore]
    """Compiles models for this CPU; nothing is quantized that is not so in the model."""

    options: ClassVar[Options] = Options(quantize=False)

    @classmethod
    def prepare(cls, model: onnx.ModelProto, device: str = _DEVICE, *, threads: int | None = None,
                **kwargs: Any) -> BackendRep:
        """The model compiled. Raises UnsupportedError, or CompileError for a model that is wrong."""
        if not cls.supports_device(device):
            raise UnsupportedError(f"q8c compiles for {_DEVICE}, not {device}")
        return BackendRep(model, cls.options, threads)

    @classmethod
    def run_model(cls, model: onnx.ModelProto, inputs: Any, device: str = _DEVICE, **kwargs: Any) -> tuple[Array, ...]:
        """The outputs of a model run once."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether models run there: on the CPU alone."""
        return device.split(":")[0] == _DEVICE


def _plain(array: Any) -> Array:
    """The array; bfloat16, which the IR does not have, as float32."""
    found = np.asarray(array)
    return found.astype(np.float32) if found.dtype.name == "bfloat16" else found


prepare = Backend.prepare
run_model = Backend.run_model
supports_device = Backend.supports_device
