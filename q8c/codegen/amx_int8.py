"""int8 products on AMX with one scale for all of depth."""
from __future__ import annotations

from q8c.codegen import amx
from q8c.codegen.amx_deep import DeepStrip
from q8c.codegen.amx_finish import Finish, FinishSums, Group
from q8c.codegen.amx_shape import Depth, Shape
from q8c.codegen.builder import V16I, Builder, Value
from q8c.codegen.layout import PANEL
from q8c.codegen.linear_spec import STEP_BYTES
from q8c.codegen.q8_spec import Q8LinearSpec
from q8c.codegen.q8_tile import load_offsets, nibbles, prepare_rows


class Int8Strip(DeepStrip):
    """R8 rows and Q8 weights as they are in memory; weights of 4 bits are widened to 8."""

    CACHED_ROWS_BYTES = 512 << 10
    RUN_BYTES = 32 << 10
    load_rows = staticmethod(amx.load)
    dot = staticmethod(amx.dot_s8u8)

    def __init__(self, b: Builder, spec: Q8LinearSpec, shape: Shape, whole: bool) -> None:
        super().__init__(b, spec, shape, whole)
        self.values |= prepare_rows(b, spec, b.mul(self.tiles, self.rows), self.most_rows(spec), self.values)

    @staticmethod
    def depth_of(spec: Q8LinearSpec) -> Depth:
        """Steps of 64."""
        return Depth(spec.steps, spec.lda)

    def finish(self, group: Group) -> Finish:
        """Scaled."""
        return FinishSums(self.b, self.operands, group, self.buffer)

    def begin_run(self, first: Value, last: Value) -> list[Value]:
        """The next weights are asked for."""
        self.wide = self._widened(first, last)
        return [self.first_line(last)]

    def beside(self, carried: list[Value]) -> list[Value]:
        """Ask for some."""
        return [self.ask_weights(carried[0])]

    def _widened(self, first: Value, last: Value) -> Value:
        """Where the weights of panels `first` to `last` - 1 are with 8 bits."""
        b, spec = self.b, self.spec
        source = b.at(self.values["w"], b.mul(first, spec.panel_bytes))
        if spec.bits == 8:
            return source
        with b.range(first, last) as panel:
            offsets = load_offsets(b, b.at(self.values["w_offset"], b.mul(panel, PANEL))) if spec.offsets else None
            number = b.sub(panel, first)
            panel_from = b.at(source, b.mul(number, spec.panel_bytes))
            into = b.at(b.arg("scratch"), b.mul(number, self.depth.panel_bytes))
            with b.range(0, spec.steps, 2) as step:
                both = b.load(V16I, b.at(panel_from, b.mul(step, spec.step_bytes)), align=STEP_BYTES)
                for odd in range(2):
                    at = b.mul(b.add(step, odd), STEP_BYTES)
                    b.store(nibbles(b, both, odd, offsets), b.at(into, at), align=STEP_BYTES)
        return b.arg("scratch")
