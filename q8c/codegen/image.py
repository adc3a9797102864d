"""From relocatable ELF objects to one flat, position-independent image of machine code.

What LLVM emits for x86-64 with `reloc="pic"`, the small code model and no outside symbols refers to itself by 32-bit
distances only. So all code and read-only data can be laid out once, every reference filled in, and the result mapped
anywhere and called without a linker. Whatever would need one at load time is refused. The format is that of the
System V ABI, chapter 4, and its x86-64 supplement.
"""
from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from q8c.errors import CompileError

PAGE = 4096
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")
_RELOCATABLE, _X86_64 = 1, 62
_SYMBOLS, _RELOCATIONS, _NO_BITS, _UNWIND = 2, 4, 8, 0x70000001
_WRITE, _ALLOCATE, _EXECUTE, _THREAD_LOCAL = 1, 2, 4, 0x400
_LOCAL, _WEAK = 0, 2
_THREAD_LOCAL_SYMBOL, _INDIRECT_FUNCTION = 6, 10
_INTERNAL, _HIDDEN = 1, 2
_UNDEFINED, _ABSOLUTE, _RESERVED = 0, 0xFFF1, 0xFF00
_NONE, _PC32, _PLT32, _PC64 = 0, 2, 4, 24
_TRAP = b"\xcc"  # int3, between functions of different sections


@dataclass(frozen=True)
class Image:
    """Machine code and its read-only data, which may be mapped at any address that is a multiple of `PAGE`.

    `symbols` are the offsets of global functions and data by name, without those hidden from the outside.
    """

    code: bytes
    symbols: dict[str, int]


@dataclass
class _Section:
    name: str
    kind: int
    flags: int
    align: int
    link: int
    info: int
    body: bytes
    size: int
    offset: int | None = None

    @property
    def loaded(self) -> bool:
        """Whether the running code can need it; unwind tables are for exceptions, which generated code has none of."""
        return bool(self.flags & _ALLOCATE) and self.kind != _UNWIND and self.name != ".eh_frame" and self.size > 0


@dataclass
class _Symbol:
    name: str
    binding: int
    kind: int
    section: int
    value: int
    hidden: bool


@dataclass
class _Object:
    sections: list[_Section]
    symbols: list[_Symbol] = field(default_factory=list)


def link(*objects: bytes) -> Image:
    """One image from the objects of one program. The same objects in the same order give the same bytes.

    Raises CompileError, naming the section or symbol, for anything that is not an x86-64 relocatable object, for
    writable or thread-local data, symbols defined twice or nowhere, and references that need a linker at load time.
    """
    parsed = [_parse(data) for data in objects]
    code = _lay_out([s for o in parsed for s in o.sections if s.loaded])
    exported = _exports(parsed)
    for o in parsed:
        for section in o.sections:
            if section.kind == _RELOCATIONS and o.sections[section.info].loaded:
                _relocate(code, o, section, exported)
    hidden = {s.name for o in parsed for s in o.symbols if s.hidden and s.binding != _LOCAL}
    return Image(bytes(code), {name: at for name, at in sorted(exported.items()) if name not in hidden})


def _parse(data: bytes) -> _Object:
    try:
        identity, kind, machine, *_, table, _, _, _, _, size, count, names = _HEADER.unpack_from(data)
        if identity[:6] != b"\x7fELF\x02\x01" or (kind, machine) != (_RELOCATABLE, _X86_64) or size != _SECTION.size:
            raise CompileError("not an x86-64 relocatable ELF object; emit one with reloc='pic'")
        headers = [_SECTION.unpack_from(data, table + i * size) for i in range(count)]
        strings = _body(data, headers[names])
        result = _Object([
            _Section(_text(strings, name), kind, flags, max(1, align), link, info,
                     b"" if kind == _NO_BITS else data[offset:offset + length], length)
            for name, kind, flags, _, offset, length, link, info, align, _ in headers])
        for section in result.sections:
            if section.kind == _SYMBOLS:
                names_of = result.sections[section.link].body
                result.symbols = [_Symbol(_text(names_of, name), info >> 4, info & 15, index, value,
                                          other & 3 in (_INTERNAL, _HIDDEN))
                                  for name, info, other, index, value, _ in _SYMBOL.iter_unpack(section.body)]
    except (struct.error, IndexError, ValueError) as error:
        raise CompileError(f"the object file is damaged ({error})") from error
    for section in result.sections:
        _check_section(section)
    for symbol in result.symbols:
        _check_symbol(symbol)
    return result


def _body(data: bytes, header: tuple[int, ...]) -> bytes:
    return data[header[4]:header[4] + header[5]]


def _text(strings: bytes, start: int) -> str:
    return strings[start:strings.index(b"\0", start)].decode()


def _check_section(section: _Section) -> None:
    if not section.loaded:
        return
    if section.flags & (_WRITE | _THREAD_LOCAL) or section.kind == _NO_BITS:
        raise CompileError(f"section {section.name} is writable or thread-local data ({section.size} bytes); "
                           "compiled code may hold constants only, and no addresses in them")
    if section.align > PAGE:
        raise CompileError(f"section {section.name} wants an alignment of {section.align}, at most {PAGE} is possible")


def _check_symbol(symbol: _Symbol) -> None:
    if symbol.kind in (_THREAD_LOCAL_SYMBOL, _INDIRECT_FUNCTION):
        raise CompileError(f"symbol {symbol.name} is thread-local or resolved at load time, which images cannot have")
    if symbol.section >= _RESERVED and symbol.section != _ABSOLUTE:
        raise CompileError(f"symbol {symbol.name} is in no ordinary section; give it an initializer")


def _lay_out(sections: list[_Section]) -> bytearray:
    """Place code first, then data, each in the order given."""
    code = bytearray()
    for section in sorted(sections, key=lambda s: not s.flags & _EXECUTE):
        code += (_TRAP if section.flags & _EXECUTE else b"\0") * (-len(code) % section.align)
        section.offset = len(code)
        code += section.body
    return code


def _exports(objects: list[_Object]) -> dict[str, int]:
    """Offsets of all global symbols; a strong definition goes before a weak one, and the first weak one counts."""
    found: dict[str, tuple[bool, int]] = {}
    for o in objects:
        for symbol in o.symbols:
            if symbol.binding == _LOCAL or symbol.section in (_UNDEFINED, _ABSOLUTE):
                continue
            section = o.sections[symbol.section]
            if section.offset is None and section.loaded:
                raise CompileError(f"symbol {symbol.name} is in section {section.name}, which has no place")
            strong = symbol.binding != _WEAK
            if strong and found.get(symbol.name, (False, 0))[0]:
                raise CompileError(f"symbol {symbol.name} is defined twice")
            if symbol.name not in found or strong:
                found[symbol.name] = strong, (section.offset or 0) + symbol.value
    return {name: offset for name, (_, offset) in found.items()}


def _relocate(code: bytearray, o: _Object, table: _Section, exported: dict[str, int]) -> None:
    section = o.sections[table.info]
    assert section.offset is not None
    for offset, kind, symbol, addend in _relocations(o, table):
        if kind == _NONE:
            continue
        if kind not in (_PC32, _PLT32, _PC64):
            raise CompileError(f"{_named(o, symbol)} is referred to from {section.name} by relocation {kind}, which "
                               "needs a linker; make it internal, or its reference relative")
        width, form = (8, "<q") if kind == _PC64 else (4, "<i")
        if not 0 <= offset <= section.size - width:
            raise CompileError(f"a relocation in {section.name} lies outside of it; the object file is damaged")
        place = section.offset + offset
        try:
            struct.pack_into(form, code, place, _target(o, symbol, exported) + addend - place)
        except struct.error:
            raise CompileError(f"{_named(o, symbol)} is too far from {section.name}; the image is too large") from None


def _relocations(o: _Object, table: _Section) -> Iterator[tuple[int, int, _Symbol, int]]:
    try:
        for offset, info, addend in _RELOCATION.iter_unpack(table.body):
            yield offset, info & 0xFFFFFFFF, o.symbols[info >> 32], addend
    except (struct.error, IndexError) as error:
        raise CompileError(f"the relocations {table.name} are damaged ({error})") from error


def _target(o: _Object, symbol: _Symbol, exported: dict[str, int]) -> int:
    if symbol.binding != _LOCAL and symbol.name in exported:
        return exported[symbol.name]
    section = o.sections[symbol.section] if 0 < symbol.section < len(o.sections) else None
    if section is None or section.offset is None:
        raise CompileError(f"symbol {_named(o, symbol)} is undefined; compiled code may not refer to anything outside")
    return section.offset + symbol.value


def _named(o: _Object, symbol: _Symbol) -> str:
    if symbol.name or not 0 < symbol.section < len(o.sections):
        return symbol.name or "a symbol without a name"
    return o.sections[symbol.section].name
