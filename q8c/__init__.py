"""q8c: compiles ONNX transformers into fused int8 kernels for x86 CPUs, and runs them."""
from __future__ import annotations

from q8c.errors import ArtifactError, CompileError, Error, InputError, UnsupportedError

__version__ = "0.1.0"
__all__ = ["ArtifactError", "CompileError", "Error", "InputError", "UnsupportedError", "__version__"]
