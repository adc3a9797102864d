"""From an llvmlite module to relocatable machine code of one tier."""
from __future__ import annotations

import functools
import re
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import llvmlite.binding as llvm
import llvmlite.ir as ir

from q8c.codegen.targets import TRIPLE, Tier
from q8c.errors import CompileError

_UNPLAIN = re.compile(r"[^\w.-]", re.ASCII)


@dataclass(frozen=True)
class Compiled:
    """A module's code for one tier: an ELF object, and the LLVM bitcode it came from (after passes), in whose bytes
    shows what else LLVM was given before."""

    tier: Tier
    object: bytes
    bitcode: bytes = field(compare=False, repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return len(self.object) + len(self.bitcode)

    def assembly(self) -> str:
        """The code as assembly text (generated anew)."""
        return listing([self])[1]


def listing(parts: Sequence[Compiled]) -> tuple[str, str]:
    """LLVM's IR and the assembly of all modules of an image, as one module (generated anew)."""
    module, *others = (llvm.parse_bitcode(part.bitcode) for part in parts)
    for other in others:
        module.link_in(other)
    return str(module), str(_machine(parts[0].tier).emit_assembly(module))


def new_module(name: str) -> ir.Module:
    """An empty module for `Builder` to fill. Its name is a comment in LLVM's text, which no model's name may end."""
    module = ir.Module(_UNPLAIN.sub("_", name))
    module.triple = TRIPLE
    return module


def compile_module(module: ir.Module, tier: Tier, outside: Collection[str] = ()) -> Compiled:
    """Verify, clean up and translate a module whose functions were built for `tier`. `outside` are functions it calls
    that other objects of the same image have.

    The same module and tier give the same object. Kernels are scheduled by hand, so the passes only remove what
    the emitters repeat; loop passes stay out because they turn copies into calls of memcpy and memset.

    Raises:
        CompileError: LLVM's verifier refuses the module, or the object needs other symbols from outside.
    """
    machine = _machine(tier)
    module.data_layout = str(machine.target_data)
    try:
        parsed = llvm.parse_assembly(str(module))
        parsed.verify()
    except RuntimeError as error:
        first = str(error).strip().splitlines()
        raise CompileError(f"LLVM refuses module {module.name!r}: {' '.join(first)[:500]}") from error
    _clean_up(parsed, machine)
    code = bytes(machine.emit_object(parsed))
    missing = [name for name in undefined_symbols(code) if name not in outside]
    if missing:
        raise CompileError(f"the code of {module.name!r} needs symbols from outside: {', '.join(missing)}")
    return Compiled(tier, code, bytes(parsed.as_bitcode()))


def undefined_symbols(code: bytes) -> list[str]:
    """Names an x86-64 ELF object expects from elsewhere, sorted. CompileError if it is no such object."""
    if code[:6] != b"\x7fELF\x02\x01":
        raise CompileError("not a 64-bit little-endian ELF object")
    sections = struct.unpack_from("<Q", code, 40)[0]
    size, count = struct.unpack_from("<HH", code, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", code, sections + n * size) for n in range(count)]
    names: set[str] = set()
    for _, kind, _, _, offset, length, link, _, _, entry in headers:
        if kind != 2:  # SHT_SYMTAB
            continue
        strings = headers[link][4]
        for at in range(offset + entry, offset + length, entry):
            name, _, _, section = struct.unpack_from("<IBBH", code, at)
            if section == 0:
                start = strings + name
                names.add(code[start:code.index(b"\0", start)].decode())
    return sorted(names)


@functools.cache
def _machine(tier: Tier) -> llvm.TargetMachine:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.initialize_native_asmparser()  # for the inline assembly of thread waits; LLVM aborts without it
    target = llvm.Target.from_triple(TRIPLE)
    return target.create_target_machine(
        cpu=tier.cpu, features=tier.feature_string, opt=2, reloc="pic", codemodel="small")


def _clean_up(module: llvm.ModuleRef, machine: llvm.TargetMachine) -> None:
    passes = llvm.create_new_function_pass_manager()
    passes.add_sroa_pass()
    passes.add_instruction_combine_pass()
    passes.add_new_gvn_pass()
    passes.add_simplify_cfg_pass()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=0))
    for function in module.functions:
        if not function.is_declaration:
            passes.run(function, builder)
