"""From graphs to machine code: LLVM kernels for every CPU tier (needs llvmlite)."""
