"""Text to graph: the inverse of `text.print_graph`."""
from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from q8c.errors import CompileError
from q8c.ir.dim_text import parse_dim
from q8c.ir.dims import Dim, as_symbol
from q8c.ir.graph import Array, Attr, Graph, Node, Value
from q8c.ir.ops import OPS
from q8c.ir.types import DType, TensorType

_SPACE = re.compile(r"(?:\s|#[^\n]*)*")
_WORD = re.compile(r"[A-Za-z0-9_.]+")
_NUMBER = re.compile(r"[0-9]{1,9}")
_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_MAX_NESTING = 16
_MAX_LITERAL = 2**30  # bytes; a uniform constant takes a line of text whatever its size


def parse_graph(text: str, constants: Mapping[str, Array] | None = None) -> Graph:
    """The graph a text describes; `constants` gives the data of constants written as references.

    A referenced constant that is not given is declared without data. Raises CompileError with the line number where
    the text is wrong, names are defined twice or not at all, or a stated type is not what the op gives.
    """
    parser = _Parser(text, constants or {})
    graph = parser.graph()
    parser.skip()
    if parser.at < len(text):
        parser.fail("expected the end of the text")
    return graph


class _Parser:
    def __init__(self, text: str, constants: Mapping[str, Array]) -> None:
        self.text = text
        self.at = 0
        self.constants = constants

    def fail(self, problem: str) -> NoReturn:
        line = self.text.count("\n", 0, self.at) + 1
        near = self.text[self.at:self.at + 40].split("\n")[0]
        raise CompileError(f"graph text, line {line}: {problem}, got {near!r}")

    def skip(self) -> None:
        match = _SPACE.match(self.text, self.at)
        assert match is not None
        self.at = match.end()

    def take(self, token: str) -> bool:
        self.skip()
        if self.text.startswith(token, self.at):
            self.at += len(token)
            return True
        return False

    def expect(self, token: str) -> None:
        if not self.take(token):
            self.fail(f"expected {token!r}")

    def keyword(self, word: str) -> bool:
        self.skip()
        match = _WORD.match(self.text, self.at)
        if match and match.group() == word:
            self.at = match.end()
            return True
        return False

    def match(self, pattern: re.Pattern[str], what: str) -> str:
        self.skip()
        match = pattern.match(self.text, self.at)
        if not match:
            self.fail(f"expected {what}")
        self.at = match.end()
        return match.group()

    def string(self) -> str:
        text = self.match(_STRING, "a string")
        try:
            return str(json.loads(text))
        except json.JSONDecodeError:
            self.fail(f"bad string {text}")

    def word(self) -> str:
        self.skip()
        return self.string() if self.text.startswith('"', self.at) else self.match(_WORD, "a name")

    def until(self, stops: str) -> str:
        """The raw text up to a character of `stops` outside brackets and strings, which is not consumed."""
        self.skip()
        start, depth = self.at, 0
        while self.at < len(self.text):
            c = self.text[self.at]
            if depth == 0 and c in stops:
                return self.text[start:self.at].strip()
            if c == '"':
                self.match(_STRING, "a string")
                continue
            depth += (c in "([{") - (c in ")]}")
            self.at += 1
        self.fail(f"expected one of {stops!r}")

    def items(self, close: str) -> list[str]:
        """Comma-separated raw texts up to `close`, which is consumed."""
        found: list[str] = []
        while not self.take(close):
            found.append(self.until("," + close))
            if not self.take(","):
                self.expect(close)
                break
        return found

    def type(self) -> TensorType:
        name = self.match(_WORD, "a type")
        if name not in DType.__members__:
            self.fail(f"unknown element type {name!r}")
        self.expect("[")
        return TensorType(DType[name], tuple(self.dim(t) for t in self.items("]")))

    def dim(self, text: str) -> Dim:
        try:
            return parse_dim(text)
        except ValueError as error:
            self.fail(str(error))

    def graph(self) -> Graph:
        if not self.keyword("graph"):
            self.fail("expected 'graph'")
        self.expect("@")
        graph = Graph(self.word())
        values: dict[str, Value] = {}
        self.parameters(graph, values)
        self.expect("{")
        self.block(graph, values, depth=0)
        return graph

    def define(self, values: dict[str, Value], name: str, value: Value) -> None:
        if name in values:
            self.fail(f"%{name} is defined twice")
        values[name] = value

    def parameters(self, graph: Graph, values: dict[str, Value]) -> None:
        self.expect("(")
        while not self.take(")"):
            self.expect("%")
            name = self.word()
            self.expect(":")
            self.define(values, name, graph.add_input(name, self.type()))
            if not self.take(","):
                self.expect(")")
                break

    def block(self, graph: Graph, values: dict[str, Value], depth: int) -> None:
        if depth > _MAX_NESTING:
            self.fail(f"bodies are nested deeper than {_MAX_NESTING}")
        while True:
            if self.keyword("return"):
                self.results(graph, values)
                self.expect("}")
                return
            if self.keyword("assume"):
                left = self.dim(self.until("="))
                self.expect("==")
                line_end = self.text.find("\n", self.at)
                right = self.dim(self.text[self.at:line_end])
                self.at = line_end
                graph.assumptions.append((left, right))
            elif depth == 0 and self.keyword("count"):
                self.count(graph, values)
            elif depth == 0 and self.keyword("stretch"):
                self.stretch(graph, values)
            elif self.keyword("const"):
                self.constant(graph, values)
            else:
                self.node(graph, values, depth)

    def count(self, graph: Graph, values: dict[str, Value]) -> None:
        name = self.match(_WORD, "a size")
        if as_symbol(self.dim(name)) != name or name in graph.counts or name in graph.symbols():
            self.fail(f"{name} is no name of a new size")
        if not self.keyword("of"):
            self.fail("expected 'of'")
        value = self.use(values)
        if value not in graph.inputs:
            self.fail(f"%{value.name} is no input")
        graph.counts[name] = value

    def stretch(self, graph: Graph, values: dict[str, Value]) -> None:
        value = self.use(values)
        if not self.keyword("on"):
            self.fail("expected 'on'")
        axes = [self.match(_NUMBER, "an axis")]
        while self.take(","):
            axes.append(self.match(_NUMBER, "an axis"))
        if value not in graph.inputs or not all(int(a) < value.type.rank for a in axes):
            self.fail(f"%{value.name} is no input with axes {', '.join(axes)}")
        graph.stretches[value] = tuple(map(int, axes))

    def results(self, graph: Graph, values: dict[str, Value]) -> None:
        while True:
            value = self.use(values)
            graph.add_output(value, self.string() if self.keyword("as") else None)
            if not self.take(","):
                return

    def use(self, values: dict[str, Value]) -> Value:
        self.expect("%")
        name = self.word()
        if name not in values:
            self.fail(f"%{name} is not defined")
        return values[name]

    def constant(self, graph: Graph, values: dict[str, Value]) -> None:
        self.expect("%")
        name = self.word()
        self.expect(":")
        type = self.type()
        self.expect("=")
        data = self.constants.get(self.word()) if self.take("@") else self.literal(type)
        self.define(values, name, graph.declare_constant(name, type, data))

    def literal(self, type: TensorType) -> Array:
        shape = tuple(d for d in type.shape if isinstance(d, int))
        if len(shape) != type.rank:
            self.fail("a constant needs a fixed shape")
        if math.prod(shape) * type.dtype.itemsize > _MAX_LITERAL:
            self.fail(f"a constant written out is limited to {_MAX_LITERAL >> 30} GiB")
        texts = self.items("]") if self.take("[") else None
        try:
            if texts is None:
                return np.full(shape, _scalar(self.match(re.compile(r"[-+\w.]+"), "a number"), type.dtype))
            return np.array([_scalar(t, type.dtype) for t in texts], dtype=type.dtype.numpy).reshape(shape)
        except (ValueError, KeyError, OverflowError) as error:
            self.fail(f"bad elements for {type} ({error})")

    def node(self, graph: Graph, values: dict[str, Value], depth: int) -> None:
        results: list[tuple[str, TensorType, int | None]] = []
        start = self.at
        while True:
            self.expect("%")
            name = self.word()
            self.expect(":")
            type = self.type()
            results.append((name, type, int(self.match(re.compile(r"\d+"), "a slot")) if self.take("@") else None))
            if not self.take(","):
                break
        self.expect("=")
        op = self.word()
        if op not in OPS:
            self.fail(f"unknown op {op!r}")
        node = Node(op, self.operands(values), [])
        node.attrs = self.attributes(op)
        node.source = self.sources()
        if self.keyword("body"):
            node.body = Graph("body")
            node.body.assumptions = graph.assumptions
            inner: dict[str, Value] = {}
            self.parameters(node.body, inner)
            self.expect("{")
            self.block(node.body, inner, depth + 1)
        self.finish(graph, values, node, results, start)

    def finish(self, graph: Graph, values: dict[str, Value], node: Node,
               results: list[tuple[str, TensorType, int | None]], start: int) -> None:
        from q8c.ir.verify import check_results

        end, self.at = self.at, start
        for name, type, slot in results:
            value = Value(graph.fresh_name(name), type, producer=node, slot=slot)
            self.define(values, name, value)
            node.outputs.append(value)
        try:
            check_results(graph, node)
        except CompileError as error:
            self.fail(str(error))
        self.at = end
        graph.insert(node)

    def operands(self, values: dict[str, Value]) -> list[Value | None]:
        self.expect("(")
        found: list[Value | None] = []
        while not self.take(")"):
            found.append(None if self.take("-") else self.use(values))
            if not self.take(","):
                self.expect(")")
                break
        return found

    def attributes(self, op: str) -> dict[str, Attr]:
        attrs: dict[str, Attr] = {}
        if not self.take("{"):
            return attrs
        for item in self.items("}"):
            name, _, text = item.partition("=")
            name = name.strip()
            if name not in OPS[op].attrs:
                self.fail(f"{op} has no attribute {name!r}")
            try:
                attrs[name] = _attr(text.strip(), OPS[op].attrs[name].kind)
            except (ValueError, KeyError) as error:
                self.fail(f"attribute {name} expected {OPS[op].attrs[name].kind} ({error})")
        return attrs

    def sources(self) -> tuple[str, ...]:
        found: list[str] = []
        if self.keyword("from"):
            found.append(self.string())
            while self.take(","):
                found.append(self.string())
        return tuple(found)


def _scalar(text: str, dtype: DType) -> Any:
    if dtype is DType.bool:
        return np.bool_({"true": True, "false": False}[text])
    if dtype.is_float:
        return dtype.numpy.type(float(text))
    limits = np.iinfo(dtype.value)
    if not limits.min <= int(text) <= limits.max:  # which numpy before 2.0 lets pass
        raise ValueError(f"{text} is not from {limits.min} to {limits.max}")
    return dtype.numpy.type(int(text))


def _attr(text: str, kind: str) -> Attr:
    if kind.endswith("s"):
        if not (text.startswith("(") and text.endswith(")")):
            raise ValueError("not a tuple")
        parser = _Parser(text[1:], {})
        return tuple(_attr(t, kind[:-1]) for t in parser.items(")"))
    if kind == "bool":
        return {"true": True, "false": False}[text]
    if kind == "dtype":
        return DType[text]
    if kind == "str":
        return str(json.loads(text))
    if kind == "dim":
        return parse_dim(text)
    return int(text) if kind == "int" else float(text)
