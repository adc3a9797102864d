"""Takes the bytes of initializers out of a serialized model before it is parsed, so that they are never copied.

The layout is protobuf's wire format (https://protobuf.dev/programming-guides/encoding): fields, each a tag (number and
wire type) and a value, where wire type 2 is a length and that many bytes.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9  # fields of ModelProto, GraphProto and TensorProto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_KEEP = 1024  # bytes; smaller data stays in the model
_MOST = 2**31 - 1  # bytes that protobuf reads


class NotProtobuf(ValueError):
    """The bytes are not in protobuf's wire format."""


class TooLarge(ValueError):
    """More than protobuf reads is left without the data of initializers."""


@dataclass(frozen=True)
class Split:
    """A serialized model without the large data of its initializers, and that data in their order.

    `raw` has one entry for each initializer: its data, or None where it stayed in the model.
    """

    model: bytes
    raw: list[memoryview | None]


def split(data: memoryview) -> Split:
    """Separate a model from its initializers' data.

    Raises NotProtobuf where the bytes are not a message, and TooLarge.
    """
    model = bytearray()
    raw: list[memoryview | None] = []
    for number, kind, start, body, end in _fields(data):
        if number == _GRAPH and kind == _BYTES:
            graph = _split_graph(data[body:end], raw)
            _keep(model, _field(_GRAPH, graph))
        else:
            _keep(model, data[start:end])
    return Split(bytes(model), raw)


def _split_graph(data: memoryview, raw: list[memoryview | None]) -> bytearray:
    graph = bytearray()
    for number, kind, start, body, end in _fields(data):
        if number == _INITIALIZER and kind == _BYTES:
            tensor, found = _split_tensor(data[body:end])
            raw.append(found)
            _keep(graph, _field(_INITIALIZER, tensor))
        else:
            _keep(graph, data[start:end])
    return graph


def _split_tensor(data: memoryview) -> tuple[bytearray | memoryview, memoryview | None]:
    if len(data) <= _KEEP:
        return data, None
    tensor, raw = bytearray(), None
    for number, kind, start, body, end in _fields(data):
        if number == _RAW_DATA and kind == _BYTES:
            raw = data[body:end]
        else:
            _keep(tensor, data[start:end])
    return (data, None) if raw is None else (tensor, raw)


def _keep(kept: bytearray, part: bytearray | memoryview) -> None:
    """Append a part of what is left. Raises TooLarge before it is copied."""
    if len(kept) + len(part) > _MOST:
        raise TooLarge(f"more than {_MOST} bytes")
    kept += part


def _fields(data: memoryview) -> Iterator[tuple[int, int, int, int, int]]:
    """Number, wire type, start of the tag, start of the value, end, of each field of a message."""
    at = 0
    while at < len(data):
        start = at
        tag, at = _read_varint(data, at)
        kind, body = tag & 7, at
        if kind == _VARINT:
            _, at = _read_varint(data, at)
        elif kind == _BYTES:
            length, body = _read_varint(data, at)
            at = body + length
        elif kind in (_FIXED32, _FIXED64):
            at += 4 if kind == _FIXED32 else 8
        else:
            raise NotProtobuf(f"wire type {kind}")
        if at > len(data) or not tag >> 3:
            raise NotProtobuf("a field ends behind the message")
        yield tag >> 3, kind, start, body, at


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise NotProtobuf("a number has no end")


def _field(number: int, value: bytearray | memoryview) -> bytearray:
    """A field of bytes: tag, length, value."""
    field, length = bytearray([number << 3 | _BYTES]), len(value)
    while length > 127:
        field.append(length & 127 | 128)
        length >>= 7
    field.append(length)
    field += value
    return field
