"""The scalar half of the kernel builder: types, arithmetic, control flow and memory over llvmlite's IRBuilder.

Python numbers are accepted wherever a value is; they take the type of the other operand (and fill a vector).
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import llvmlite.ir as ir

from q8c.codegen.targets import Tier, require

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F32 = ir.FloatType()
F64 = ir.DoubleType()
PTR = ir.PointerType()
VOID = ir.VoidType()

Value: TypeAlias = Any
"""An llvmlite value (llvmlite has no types)."""
Operand: TypeAlias = "Value | int | float"

_SIZES = {I8: 1, I16: 2, I32: 4, I64: 8, F32: 4, F64: 8, PTR: 8}


def element(typ: ir.Type) -> ir.Type:
    """The element type of a vector type, or the type itself."""
    return typ.element if isinstance(typ, ir.VectorType) else typ


def is_float(typ: ir.Type) -> bool:
    """Whether a scalar or vector type holds floats."""
    return element(typ) in (F32, F64)


def sizeof(typ: ir.Type) -> int:
    """Bytes of a scalar or vector type in memory."""
    count = typ.count if isinstance(typ, ir.VectorType) else 1
    return _SIZES[element(typ)] * count


def suffix(typ: ir.Type) -> str:
    """How LLVM spells a type at the end of an intrinsic's name, such as `v16f32`."""
    lanes = f"v{typ.count}" if isinstance(typ, ir.VectorType) else ""
    return lanes + str(element(typ).intrinsic_name)


def constant(typ: ir.Type, *lanes: int | float) -> Value:
    """A scalar constant, or a vector lane by lane; one number fills all lanes.

    Equal ones are one object, so that LLVM's text of it is written once: in a kernel with ten thousand shuffles of up
    to 64 lanes that was a third of the time its text took.
    """
    return _constant(typ, lanes, repr(lanes))


@functools.lru_cache(1 << 14)
def _constant(typ: ir.Type, lanes: tuple[int | float, ...], text: str) -> Value:
    """`text` tells apart what Python takes for equal: 0.0 and -0.0, or 1 and 1.0."""
    if not isinstance(typ, ir.VectorType):
        return ir.Constant(typ, *lanes)
    scalars = [ir.Constant(typ.element, value) for value in lanes]
    return ir.Constant(typ, scalars * typ.count if len(scalars) == 1 else scalars)


class Core:
    """A function under construction, entry block open.

    Args:
        module: where the function goes.
        tier: what its code may use.
        name: its symbol.
        params: (name, type) of each parameter; `arg(name)` gives the value.
        result: its return type. Close a VOID function with `ret()`, others with `ret(value)`.
        internal: not visible outside the module, and never inlined.
        noalias: names of pointer parameters no other pointer overlaps.
    """

    def __init__(self, module: ir.Module, tier: Tier, name: str, params: Sequence[tuple[str, ir.Type]],
                 result: ir.Type = VOID, *, internal: bool = False, noalias: Sequence[str] = ()) -> None:
        self.module = module
        self.tier = tier
        self.function = ir.Function(module, ir.FunctionType(result, [t for _, t in params]), name)
        self.function.attributes.add("nounwind")
        if internal:
            self.function.linkage = "internal"
            self.function.attributes.add("noinline")
        for (param, _), value in zip(params, self.function.args, strict=True):
            value.name = param
            if param in noalias:
                value.add_attribute("noalias")
        self.ir = ir.IRBuilder(self.function.append_basic_block("entry"))
        self._args = {param: value for (param, _), value in zip(params, self.function.args, strict=True)}

    def arg(self, name: str) -> Value:
        """The parameter of that name."""
        return self._args[name]

    # -- arithmetic; integer or float by operand type, lane by lane on vectors

    def coerce(self, *operands: Operand) -> list[Value]:
        """The operands with Python numbers turned into constants of the type the others have (i64 if none has)."""
        typ = next((v.type for v in operands if not isinstance(v, (int, float))), I64)
        return [constant(typ, v) if isinstance(v, (int, float)) else v for v in operands]

    def add(self, x: Operand, y: Operand) -> Value:
        """x + y"""
        x, y = self.coerce(x, y)
        return self.ir.fadd(x, y) if is_float(x.type) else self.ir.add(x, y)

    def sub(self, x: Operand, y: Operand) -> Value:
        """x - y"""
        x, y = self.coerce(x, y)
        return self.ir.fsub(x, y) if is_float(x.type) else self.ir.sub(x, y)

    def mul(self, x: Operand, y: Operand) -> Value:
        """x * y"""
        x, y = self.coerce(x, y)
        return self.ir.fmul(x, y) if is_float(x.type) else self.ir.mul(x, y)

    def div(self, x: Operand, y: Operand) -> Value:
        """x / y; integers are signed and truncate towards zero."""
        x, y = self.coerce(x, y)
        return self.ir.fdiv(x, y) if is_float(x.type) else self.ir.sdiv(x, y)

    def rem(self, x: Operand, y: Operand) -> Value:
        """The remainder of `div` on signed integers."""
        return self.ir.srem(*self.coerce(x, y))

    def ceildiv(self, x: Operand, y: Operand) -> Value:
        """ceil(x / y) of integers x >= 0, y > 0."""
        x, y = self.coerce(x, y)
        return self.ir.udiv(self.add(x, self.sub(y, 1)), y)

    def shl(self, x: Operand, y: Operand) -> Value:
        """x << y"""
        return self.ir.shl(*self.coerce(x, y))

    def lshr(self, x: Operand, y: Operand) -> Value:
        """x >> y, zeros shifted in"""
        return self.ir.lshr(*self.coerce(x, y))

    def ashr(self, x: Operand, y: Operand) -> Value:
        """x >> y, copies of the sign shifted in"""
        return self.ir.ashr(*self.coerce(x, y))

    def and_(self, x: Operand, y: Operand) -> Value:
        """x & y"""
        return self.ir.and_(*self.coerce(x, y))

    def or_(self, x: Operand, y: Operand) -> Value:
        """x | y"""
        return self.ir.or_(*self.coerce(x, y))

    def xor(self, x: Operand, y: Operand) -> Value:
        """x ^ y"""
        return self.ir.xor(*self.coerce(x, y))

    def icmp(self, op: str, x: Operand, y: Operand) -> Value:
        """Signed integer comparison, op one of `< <= == != >= >`."""
        return self.ir.icmp_signed(op, *self.coerce(x, y))

    def ucmp(self, op: str, x: Operand, y: Operand) -> Value:
        """Unsigned integer comparison."""
        return self.ir.icmp_unsigned(op, *self.coerce(x, y))

    def fcmp(self, op: str, x: Operand, y: Operand) -> Value:
        """Ordered float comparison: False where either side is NaN. (`!=` too; `is_nan` tells NaN.)"""
        return self.ir.fcmp_ordered(op, *self.coerce(x, y))

    def is_nan(self, x: Value) -> Value:
        """True where x is NaN."""
        return self.ir.fcmp_unordered("uno", x, x)

    def select(self, cond: Value, x: Operand, y: Operand) -> Value:
        """x where cond else y, lane by lane for a vector cond."""
        return self.ir.select(cond, *self.coerce(x, y))

    def imin(self, x: Operand, y: Operand) -> Value:
        """The smaller of two signed integers."""
        x, y = self.coerce(x, y)
        return self.intrinsic("llvm.smin", [x, y])

    def imax(self, x: Operand, y: Operand) -> Value:
        """The larger of two signed integers."""
        x, y = self.coerce(x, y)
        return self.intrinsic("llvm.smax", [x, y])

    def umax(self, x: Operand, y: Operand) -> Value:
        """The larger of two unsigned integers; of float bits without the sign this orders NaN > Inf > finite."""
        x, y = self.coerce(x, y)
        return self.intrinsic("llvm.umax", [x, y])

    def bitcast(self, x: Value, typ: ir.Type) -> Value:
        """The same bits under another type of the same size."""
        return self.ir.bitcast(x, typ)

    def sext(self, x: Value, typ: ir.Type) -> Value:
        """Signed integer widening."""
        return self.ir.sext(x, typ)

    def zext(self, x: Value, typ: ir.Type) -> Value:
        """Unsigned integer widening."""
        return self.ir.zext(x, typ)

    def trunc(self, x: Value, typ: ir.Type) -> Value:
        """Integer narrowing: the low bits."""
        return self.ir.trunc(x, typ)

    def intrinsic(self, name: str, args: Sequence[Value], result: ir.Type | None = None) -> Value:
        """Call an LLVM intrinsic. `llvm.x86.*` names are complete, `result` is needed, and the tier must have the
        instruction (CompileError); generic names get the type suffix of the first argument, if any."""
        result = result if result is not None else args[0].type
        if name.startswith("llvm.x86."):
            require(self.tier, name)
        elif args and name.count(".") == 1:
            name = f"{name}.{suffix(args[0].type)}"
        function = self.module.globals.get(name)
        if function is None:
            function = ir.Function(self.module, ir.FunctionType(result, [a.type for a in args]), name)
        return self.ir.call(function, args)

    # -- control flow

    def ret(self, value: Operand | None = None) -> None:
        """Return; ends the open block."""
        if value is None:
            self.ir.ret_void()
        else:
            typ = self.function.function_type.return_type
            self.ir.ret(constant(typ, value) if isinstance(value, (int, float)) else value)

    def loop(self, start: Operand, stop: Operand, step: int, carried: Sequence[Value],
             body: Callable[[Value, list[Value]], Sequence[Value]]) -> list[Value]:
        """`for i in range(start, stop, step)` that carries values in registers.

        `body(i, values)` emits one iteration and gives the next values. Returns the values after the last
        iteration (`carried` if there was none). `step` > 0.
        """
        before = self.ir.block
        with self.range(start, stop, step) as index:
            phis = [self._phi(v, before) for v in carried]
            results = list(body(index, phis))
            latch = self.ir.block
        outs = [self._phi(v, before) for v in carried]
        for phi, value in zip([*phis, *outs], [*results, *results], strict=True):
            phi.add_incoming(value, latch)
        return outs

    def _phi(self, value: Value, block: ir.Block) -> Value:
        phi = self.ir.phi(value.type)
        phi.add_incoming(value, block)
        return phi

    @contextmanager
    def range(self, start: Operand, stop: Operand, step: int = 1) -> Iterator[Value]:
        """`with b.range(0, n) as i:` a counted loop that carries nothing."""
        start, stop = self.coerce(start, stop)
        before, inside = self.ir.block, self.ir.append_basic_block("loop")
        after = self.ir.append_basic_block("after")
        self.ir.cbranch(self.icmp("<", start, stop), inside, after)
        self.ir.position_at_end(inside)
        index = self._phi(start, before)
        yield index
        following = self.ir.add(index, constant(index.type, step), flags=["nsw", "nuw"])
        index.add_incoming(following, self.ir.block)
        self.ir.cbranch(self.icmp("<", following, stop), inside, after)
        self.ir.position_at_end(after)

    def while_(self, carried: Sequence[Value], test: Callable[[list[Value]], Value],
               body: Callable[[list[Value]], Sequence[Value]]) -> list[Value]:
        """`while test(values): values = body(values)`; returns the values for which the test failed."""
        before, head = self.ir.block, self.ir.append_basic_block("while")
        inside, after = self.ir.append_basic_block("do"), self.ir.append_basic_block("done")
        self.ir.branch(head)
        self.ir.position_at_end(head)
        phis = [self._phi(v, before) for v in carried]
        self.ir.cbranch(test(phis), inside, after)
        self.ir.position_at_end(inside)
        for phi, value in zip(phis, body(phis), strict=True):
            phi.add_incoming(value, self.ir.block)
        self.ir.branch(head)
        self.ir.position_at_end(after)
        return phis

    @contextmanager
    def if_(self, cond: Value, likely: bool | None = None) -> Iterator[None]:
        """`with b.if_(cond):` code for when cond holds."""
        with self.ir.if_then(cond, likely=likely):
            yield

    def if_else(self, cond: Value, then: Callable[[], Sequence[Value]],
                otherwise: Callable[[], Sequence[Value]]) -> list[Value]:
        """Either branch emits code and gives values of the same types; returns those of the branch taken."""
        with self.ir.if_else(cond) as (on_true, on_false):
            with on_true:
                first, end_first = list(then()), self.ir.block
            with on_false:
                second, end_second = list(otherwise()), self.ir.block
        phis = [self._phi(value, end_first) for value in first]
        for phi, value in zip(phis, second, strict=True):
            phi.add_incoming(value, end_second)
        return phis

    def switch(self, index: Value, cases: dict[int, Callable[[], None]]) -> None:
        """Run the case of an integer; nothing if there is none."""
        after = self.ir.append_basic_block("joined")
        blocks = {value: self.ir.append_basic_block(f"case{value}") for value in cases}
        branch = self.ir.switch(index, after)
        for value, emit in cases.items():
            branch.add_case(constant(index.type, value), blocks[value])
            self.ir.position_at_end(blocks[value])
            emit()
            self.ir.branch(after)
        self.ir.position_at_end(after)

    # -- memory

    def at(self, pointer: Value, index: Operand, typ: ir.Type = I8) -> Value:
        """The address of element `index` (i64) of an array of `typ` (bytes unless told)."""
        index = constant(I64, index) if isinstance(index, int) else index
        return self.ir.gep(pointer, [index], inbounds=True, source_etype=typ)

    def load(self, typ: ir.Type, address: Value, align: int | None = None) -> Value:
        """Load a scalar or vector; aligned to its element unless told."""
        return self.ir.load(address, typ=typ, align=align or sizeof(element(typ)))

    def store(self, value: Value, address: Value, align: int | None = None) -> None:
        """Store a scalar or vector; aligned to its element unless told."""
        self.ir.store(value, address, align=align or sizeof(element(value.type)))

    def stream(self, value: Value, address: Value) -> None:
        """Store a vector of 64 bytes to a whole cache line, past the caches. `stream_end` comes before other threads
        may read it."""
        store = self.ir.store(value, address, align=64)
        store.set_metadata("nontemporal", self.module.add_metadata([constant(I32, 1)]))

    def stream_end(self) -> None:
        """Wait until what this thread streamed is in memory."""
        self.intrinsic("llvm.x86.sse.sfence", [], VOID)

    def constant_table(self, name: str, typ: ir.Type, values: Sequence[int | float]) -> Value:
        """The address of a constant array of scalars in the module, shared by all that ask for `name`."""
        table = self.module.globals.get(name)
        if table is None:
            array = ir.ArrayType(typ, len(values))
            table = ir.GlobalVariable(self.module, array, name)
            table.global_constant, table.linkage, table.align = True, "internal", 64
            table.initializer = ir.Constant(array, [ir.Constant(typ, v) for v in values])
        return self.ir.gep(table, [constant(I64, 0)], source_etype=I8)

    def scratch(self, size: int, align: int = 64) -> Value:
        """A buffer of `size` bytes on the stack that lives until the function returns."""
        with self.ir.goto_entry_block():
            buffer = self.ir.alloca(ir.ArrayType(I8, size))
            buffer.align = align
            buffer.type = PTR  # llvmlite still types what alloca gives, and then checks stores against it
            return buffer

    def clock(self) -> Value:
        """The time-stamp counter; instructions around it may be reordered with it."""
        return self.intrinsic("llvm.readcyclecounter", [], I64)

    def prefetch(self, address: Value, level: int) -> None:
        """Hint that a cache line will be read: level 1, 2 or 3 of the caches."""
        hint = [constant(I32, 0), constant(I32, 4 - level), constant(I32, 1)]
        self.intrinsic("llvm.prefetch", [address, *hint], VOID)

    def prefetch_to_write(self, address: Value) -> None:
        """Hint that a cache line will be written: that no other core need be asked for it then. Does nothing on a CPU
        without `prefetchw`."""
        kind = ir.FunctionType(VOID, [PTR])
        self.ir.call(ir.InlineAsm(kind, "prefetchw ($0)", "r", side_effect=True), [address])
