"""ONNX Runtime, where it is installed, as the reference of `check` and beside q8c in `bench`."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import q8c
from q8c.cli.common import one_line


@dataclass(frozen=True)
class Peer:
    """A model in ONNX Runtime, fp32 on the CPU."""

    version: str
    outputs: list[str]
    session: Any

    def run(self, feeds: Mapping[str, Any]) -> list[Any]:
        """All outputs in order. Raises q8c.Error where ONNX Runtime refuses."""
        try:
            results: list[Any] = self.session.run(None, dict(feeds))
        except Exception as failure:  # ONNX Runtime's errors have no common base
            raise q8c.Error(f"ONNX Runtime refuses the inputs: {one_line(str(failure))}") from failure
        return results


def onnxruntime_session(model: Path, threads: int | None = None) -> Peer | None:
    """The model in ONNX Runtime, or None where that is not installed. Raises q8c.Error for a model it refuses."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as failure:  # as above
        raise q8c.Error(f"ONNX Runtime refuses {model}: {one_line(str(failure))}") from failure
    return Peer(onnxruntime.__version__, [o.name for o in session.get_outputs()], session)
