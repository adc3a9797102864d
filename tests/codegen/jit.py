"""Runs generated objects inside the test process, and arrays that end at a page nobody may touch."""
from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import llvmlite.ir as ir
import numpy as np
import pytest
from numpy.typing import NDArray

from q8c.codegen.constants import packed_constants
from q8c.codegen.module import compile_module, new_module
from q8c.codegen.targets import TIERS, Tier
from q8c.ir import Graph
from q8c.runtime import cpu
from q8c.runtime.sections import constant_layout


def _lacking(tier: Tier) -> list[str]:
    return sorted({*cpu.TIERS[tier.name], *tier.extras} - cpu.features())


def needs(tier: Tier) -> pytest.MarkDecorator:
    """Skips a test where this CPU cannot run the tier."""
    lacking = _lacking(tier)
    return pytest.mark.skipif(
        bool(lacking), reason=f"this CPU, or what the system lets this process use of it, lacks {lacking}")


all_tiers = pytest.mark.parametrize("tier", [pytest.param(t, id=t.name, marks=needs(t)) for t in TIERS.values()])
"""Parametrizes a test over every tier this CPU can run."""


def runnable(tier: Tier) -> bool:
    """Whether this CPU can run the tier."""
    return not _lacking(tier)


def runnable_tiers() -> list[Tier]:
    """The tiers this CPU can run."""
    return [t for t in TIERS.values() if runnable(t)]


def both_widths() -> list[Tier]:
    """Of those, the ones with short and with long vectors. The others differ from them in the dot products of integers
    only, which `test_widths.py` shows."""
    return runnable_tiers()[::2]


each_width = pytest.mark.parametrize(
    "tier", [pytest.param(t, id=t.name, marks=needs(t)) for t in list(TIERS.values())[::2]])
"""Parametrizes a test of float code over the widths of vectors this CPU can run."""


_linking = threading.Lock()  # what LLVM gives for a name is gone with the last who holds it, so it is asked once


class Loaded:
    """A module's code, callable by symbol: `loaded("name", argument...)` takes arrays, integers and None. Threads may
    call it at once. The module's functions are emptied: tests keep kernels, which would keep millions of instructions.
    """

    _count = 0

    def __init__(self, module: ir.Module, tier: Tier) -> None:
        compiled = compile_module(module, tier)
        for function in module.functions:
            function.blocks.clear()
        with _linking:
            Loaded._count += 1
            self._name = f"test{Loaded._count}"
            self._library = llvm.JITLibraryBuilder().add_object_img(compiled.object).link(_orc(), self._name)
        self._functions: dict[str, Any] = {}

    def function(self, symbol: str) -> Any:
        """The ctypes function of a symbol; returns an i64."""
        with _linking:
            if symbol not in self._functions:
                found = _orc().lookup(self._name, symbol)
                function = ctypes.CFUNCTYPE(ctypes.c_int64)(found[symbol])
                self._functions[symbol] = function, found
            return self._functions[symbol][0]

    def __call__(self, symbol: str, *args: NDArray[Any] | int | None) -> int:
        return int(self.function(symbol)(*(_argument(a) for a in args)))


def build(tier: Tier, *emitters: Callable[[ir.Module, Tier], None]) -> Loaded:
    """A module made by the emitters, compiled for the tier and loaded."""
    module = new_module("test")
    for emit in emitters:
        emit(module, tier)
    return Loaded(module, tier)


def guarded(values: NDArray[Any]) -> NDArray[Any]:
    """A copy whose last byte is the last one before an unreadable page: reading or writing past it crashes."""
    page = mmap.PAGESIZE
    size = -(-max(values.nbytes, 1) // page) * page
    area = mmap.mmap(-1, size + page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address + size), ctypes.c_size_t(page), 0) != 0:
        raise OSError(ctypes.get_errno(), "mprotect")
    copy = np.frombuffer(area, values.dtype, values.size, size - values.nbytes).reshape(values.shape)
    copy[...] = values
    return copy


def aligned(values: NDArray[Any]) -> NDArray[Any]:
    """A copy that starts at a 64-byte boundary, as packed weights do in an artifact."""
    area = np.zeros(values.nbytes + 64, np.uint8)
    start = -area.ctypes.data % 64
    copy = area[start:start + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


def _argument(value: NDArray[Any] | int | None) -> Any:
    if value is None:
        return ctypes.c_void_p(0)
    if isinstance(value, int):
        return ctypes.c_int64(value)
    return ctypes.c_void_p(value.ctypes.data)


@cache
def _orc() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.create_lljit_compiler()


def constant_offsets(graph: Graph) -> dict[str, int]:
    """Where each packed constant lies in the weights section of a file of its own, in bytes, no two being equal."""
    return {c.name: c.offset for c in constant_layout(
        [(p.name, p.dtype.value, p.shape) for p in packed_constants(graph)])}
