"""Relocatable objects become images that run wherever they are mapped, or are refused by name."""
from __future__ import annotations

import ctypes
import mmap

import llvmlite.ir as ir
import pytest

from q8c.codegen.builder import I32, I64, PTR
from q8c.codegen.image import Image, link
from q8c.codegen.module import compile_module, new_module
from q8c.codegen.targets import TIERS
from q8c.errors import CompileError


class Mapped:
    """An image in memory, not at its start but at an odd page, with guard bytes around it."""

    def __init__(self, image: Image) -> None:
        self.memory = mmap.mmap(-1, 4096 + len(image.code), prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self.memory[4096:4096 + len(image.code)] = image.code
        self.start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory)) + 4096
        self.symbols = image.symbols

    def call(self, name: str, *arguments: int) -> int:
        kind = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * len(arguments))
        return int(kind(self.start + self.symbols[name])(*arguments))


def function(module: ir.Module, name: str, internal: bool = False) -> tuple[ir.Function, ir.IRBuilder]:
    made = ir.Function(module, ir.FunctionType(I64, [I64]), name)
    if internal:
        made.linkage = "internal"
    return made, ir.IRBuilder(made.append_basic_block())


def table(module: ir.Module, name: str, values: list[int], constant: bool = True,
          internal: bool = True) -> ir.GlobalVariable:
    kind = ir.ArrayType(I32, len(values))
    made = ir.GlobalVariable(module, kind, name)
    made.global_constant = constant
    made.initializer = ir.Constant(kind, values)
    if internal:
        made.linkage = "internal"
    return made


def lookup(module: ir.Module, name: str, values: ir.GlobalVariable) -> None:
    made, b = function(module, name)
    place = b.gep(values, [I64(0), made.args[0]], source_etype=values.value_type)
    b.ret(b.sext(b.load(place, typ=I32), I64))


def compiled(module: ir.Module) -> bytes:
    return compile_module(module, TIERS["avx2"]).object


def test_code_reaches_its_tables_calls_and_jump_tables() -> None:
    module = new_module("m")
    lookup(module, "look", table(module, "numbers", [5, -7, 11]))
    inner, b = function(module, "inner", internal=True)
    inner.attributes.add("noinline")
    blocks = [inner.append_basic_block() for _ in range(8)]
    switch = b.switch(inner.args[0], blocks[-1])
    for i, block in enumerate(blocks):
        b.position_at_end(block)
        b.ret(b.call(module.get_global("look"), [I64(i % 3)]) if i % 2 else b.mul(inner.args[0], I64(i + 100)))
        if i < 7:
            switch.add_case(I64(i), block)
    outer, b = function(module, "outer")
    b.ret(b.add(b.call(inner, [outer.args[0]]), I64(1)))
    image = link(compiled(module))
    assert set(image.symbols) == {"look", "outer"}
    mapped = Mapped(image)
    assert [mapped.call("look", i) for i in range(3)] == [5, -7, 11]
    assert [mapped.call("outer", i) for i in (0, 1, 2, 5, 9)] == [1, -6, 205, 12, -6]
    assert link(compiled(module)) == image


def test_vector_constants_keep_their_alignment() -> None:
    module = new_module("m")
    made, b = function(module, "f")
    vector = ir.VectorType(I32, 8)
    numbers = b.add(ir.Constant(vector, list(range(8))), b.insert_element(ir.Constant(vector, [7] * 8), b.trunc(
        made.args[0], I32), I32(3)))
    b.ret(b.sext(b.extract_element(numbers, b.trunc(made.args[0], I32)), I64))
    assert Mapped(link(compiled(module))).call("f", 3) == 6


def test_objects_call_each_other() -> None:
    one, two = new_module("one"), new_module("two")
    made, b = function(one, "double")
    b.ret(b.add(made.args[0], made.args[0]))
    other = ir.Function(two, ir.FunctionType(I64, [I64]), "double")
    made, b = function(two, "quadruple")
    b.ret(b.call(other, [b.call(other, [made.args[0]])]))
    first = compiled(one)
    with pytest.raises(CompileError, match="double"):
        compiled(two)
    second = object_of(two)
    assert Mapped(link(first, second)).call("quadruple", 5) == 20
    assert Mapped(link(second, first)).call("quadruple", 5) == 20
    with pytest.raises(CompileError, match="symbol double is undefined"):
        link(second)
    with pytest.raises(CompileError, match="symbol double is defined twice"):
        link(first, first)


def object_of(module: ir.Module) -> bytes:
    """The object of a module that may have undefined symbols."""
    import llvmlite.binding as llvm
    compiled(new_module("initializes LLVM"))
    machine = llvm.Target.from_triple(module.triple).create_target_machine(reloc="pic", codemodel="small")
    return bytes(machine.emit_object(llvm.parse_assembly(str(module))))


def test_writable_data_is_refused() -> None:
    module = new_module("m")
    lookup(module, "look", table(module, "numbers", [1, 2], constant=False))
    made, b = function(module, "put")
    b.store(I32(1), b.gep(module.get_global("numbers"), [I64(0), made.args[0]]))
    b.ret(I64(0))
    with pytest.raises(CompileError, match=r"section \.data is writable"):
        link(compiled(module))


def test_zeroed_data_is_refused() -> None:
    module = new_module("m")
    counter = ir.GlobalVariable(module, I64, "counter")
    counter.initializer = I64(0)
    counter.linkage = "internal"
    made, b = function(module, "put")
    b.ret(b.atomic_rmw("add", counter, made.args[0], "seq_cst"))
    with pytest.raises(CompileError, match=r"section \.bss is writable"):
        link(compiled(module))


def test_addresses_in_tables_are_refused() -> None:
    module = new_module("m")
    made, b = function(module, "f")
    b.ret(made.args[0])
    kind = ir.ArrayType(PTR, 2)
    pointers = ir.GlobalVariable(module, kind, "pointers")
    pointers.global_constant = True
    pointers.initializer = ir.Constant(kind, [made, made])
    with pytest.raises(CompileError, match=r"section \.data\.rel\.ro is writable"):
        link(compiled(module))


def test_references_through_a_global_offset_table_are_refused() -> None:
    module = new_module("m")
    lookup(module, "look", table(module, "numbers", [1, 2], internal=False))
    with pytest.raises(CompileError, match="numbers is referred to from .text by relocation .*make it internal"):
        link(compiled(module))


def test_thread_local_data_is_refused() -> None:
    module = new_module("m")
    value = table(module, "numbers", [1, 2], constant=False)
    value.storage_class = "thread_local"
    lookup(module, "look", value)
    with pytest.raises(CompileError, match="thread-local|undefined|needs symbols"):
        link(object_of(module))


def test_other_files_are_refused() -> None:
    code = compiled(new_module("m"))
    for data in (b"", b"\x7fELF", code[:40], code[:200], b"MZ" + code, code[:18] + b"\xb7\0" + code[20:]):
        with pytest.raises(CompileError, match="object"):
            link(data)
