"""ONNX tensors to numpy arrays, external data mapped from files beside the model."""
from __future__ import annotations

import math
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import numpy as np

from q8c.errors import CompileError, UnsupportedError
from q8c.ir.dims import SIZE_LIMIT
from q8c.ir.graph import Array
from q8c.ir.spill import spilled
from q8c.ir.types import DType, TensorType

if TYPE_CHECKING:
    import onnx

# Element types the IR computes in f32: the model's values, their type only at inputs and outputs.
WIDENED = {"FLOAT16": DType.f32, "BFLOAT16": DType.f32}
_NAMES = {"FLOAT": DType.f32, "DOUBLE": DType.f64, "INT8": DType.i8, "INT16": DType.i16, "INT32": DType.i32,
          "INT64": DType.i64, "UINT8": DType.u8, "UINT16": DType.u16, "UINT32": DType.u32, "UINT64": DType.u64,
          "BOOL": DType.bool, **WIDENED}
FOUR_BITS = {"INT4": DType.i8, "UINT4": DType.u8}
"""Element types of initializers, two elements in a byte, and what they are read as."""
_SPARSE_LIMIT = 2**24  # elements of a sparse tensor written out
_MAPPED: WeakValueDictionary[tuple[int, ...], mmap.mmap] = WeakValueDictionary()


def type_name(elem_type: int) -> str:
    """ONNX's name of an element type."""
    import onnx

    try:
        return str(onnx.TensorProto.DataType.Name(elem_type))
    except ValueError:
        return f"element type {elem_type}"


def is_known(elem_type: int) -> bool:
    """Whether q8c computes with an element type."""
    return type_name(elem_type) in _NAMES


def compute_type(elem_type: int, what: str) -> DType:
    """The element type q8c computes with for ONNX's. Raises UnsupportedError if there is none."""
    name = type_name(elem_type)
    if name not in _NAMES:
        raise UnsupportedError(f"{what}: element type {name} is not supported; expected one of {', '.join(_NAMES)}")
    return _NAMES[name]


def border_type(elem_type: int, what: str) -> DType:
    """The element type of a graph input or output; float32 stands in for bfloat16, which numpy does not have."""
    return DType.f16 if type_name(elem_type) == "FLOAT16" else compute_type(elem_type, what)


def to_array(tensor: onnx.TensorProto, folder: Path | None, raw: memoryview | None = None, *,
             four_bits: bool = False) -> Array:
    """A tensor's elements in the type q8c computes with; `raw` is its data where that was split off.

    Four-bit integers are read, as bytes, only if asked for: most ops on them would wrap where q8c's do not.

    Data of the file and of files beside it is mapped, not read, where no conversion is due. Raises CompileError where
    size and data do not agree or the data is not in the model's folder.
    """
    from onnx import TensorProto, numpy_helper

    what = f"tensor {tensor.name!r}"
    packed = FOUR_BITS.get(type_name(tensor.data_type)) if four_bits else None
    dtype = packed or compute_type(tensor.data_type, what)
    if any(d < 0 for d in tensor.dims):
        raise CompileError(f"{what}: the shape {list(tensor.dims)} has a negative size")
    if math.prod(max(d, 1) for d in tensor.dims) >= SIZE_LIMIT:  # numpy minds even where there are no elements
        raise CompileError(f"{what}: no machine holds the shape {list(tensor.dims)}")
    if tensor.HasField("segment"):
        raise UnsupportedError(f"{what}: its data is cut into segments")
    if packed is not None and (raw is not None or tensor.data_location == TensorProto.EXTERNAL):
        return _unpacked(tensor, folder, raw, packed)
    if tensor.data_location == TensorProto.EXTERNAL:
        return _external(tensor, folder, dtype)
    try:
        if raw is not None:
            stored = _stored(tensor, dtype)
            array = np.frombuffer(raw, dtype=stored).reshape(tuple(tensor.dims))
        else:
            array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        raise CompileError(f"{what}: its data does not fit {type_name(tensor.data_type)}{list(tensor.dims)}: "
                           f"{_one_line(error)}") from error
    return _widen(np.asarray(array), tensor.data_type, dtype)


def _unpacked(tensor: onnx.TensorProto, folder: Path | None, raw: memoryview | None, dtype: DType) -> Array:
    """Four-bit elements, each in a byte of its own."""
    import onnx

    count = 1
    for d in tensor.dims:
        count *= d
    pairs = onnx.TensorProto(name=tensor.name, data_type=onnx.TensorProto.UINT8, dims=[-(-count // 2)],
                             external_data=tensor.external_data, data_location=tensor.data_location)
    found = unpack(to_array(pairs, folder, raw), 4)[:count].reshape(tuple(tensor.dims))
    return np.where(found > 7, found - 16, found).astype(np.int8) if dtype is DType.i8 else found


def unpack(packed: Array, bits: int) -> Array:
    """The numbers of 2, 4 or 8 bits in unsigned bytes, the lowest bits first; the last axis grows."""
    parts = [(packed >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, axis=-1).reshape(*packed.shape[:-1], packed.shape[-1] * len(parts))


def _stored(tensor: onnx.TensorProto, dtype: DType) -> np.dtype[np.generic]:
    """How the elements lie in a file."""
    special = {"FLOAT16": "<f2", "BFLOAT16": "<u2", "BOOL": "u1"}
    found: np.dtype[np.generic] = np.dtype(special.get(type_name(tensor.data_type), dtype.numpy.newbyteorder("<")))
    return found


def sparse_to_array(sparse: onnx.SparseTensorProto, folder: Path | None) -> Array:
    """A sparse tensor written out. Raises CompileError where its parts do not agree."""
    values, indices = to_array(sparse.values, folder), to_array(sparse.indices, folder)
    shape = tuple(sparse.dims)
    size = int(np.prod(shape, dtype=object)) if shape else 1
    if size > _SPARSE_LIMIT or min(shape, default=1) < 0:
        raise CompileError(f"sparse tensor {sparse.values.name!r}: the shape {list(shape)} is too large to write out")
    flat = np.zeros(size, dtype=values.dtype)
    try:
        where = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), shape)
        flat[where] = values
    except (ValueError, IndexError) as error:
        raise CompileError(f"sparse tensor {sparse.values.name!r}: {_one_line(error)}") from error
    return flat.reshape(shape)


def _external(tensor: onnx.TensorProto, folder: Path | None, dtype: DType) -> Array:
    what = f"tensor {tensor.name!r}"
    entries = {e.key: e.value for e in tensor.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise CompileError(f"{what}: its data is in the file {location!r}; give the model as a path, not as bytes")
    path = inside(folder, location, what)
    stored = _stored(tensor, dtype)
    count = 1
    for d in tensor.dims:
        count *= d
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", count * stored.itemsize))
    except ValueError as error:
        raise CompileError(f"{what}: offset and length of its external data are not integers") from error
    available = path.stat().st_size
    if length != count * stored.itemsize or offset < 0 or offset + length > available:
        raise CompileError(f"{what}: expected {count * stored.itemsize} bytes, its entry names {length} at {offset} of "
                           f"{location!r} ({available} bytes); is the data file complete and of this model?")
    if not count:
        return np.zeros(tuple(tensor.dims), dtype=dtype.numpy)
    try:
        flat = np.frombuffer(_mapped(path), stored, count, offset)
    except OSError as error:  # no right to read it, or no room for a mapping
        raise CompileError(f"{what}: cannot read its external data, {location!r}: {error.strerror}") from error
    return _widen(flat.reshape(tuple(tensor.dims)), tensor.data_type, dtype)


def _mapped(path: Path) -> mmap.mmap:
    """A file's bytes, mapped once for all tensors in it: each mapping keeps a file open, of which there may be few."""
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        key = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
        found = _MAPPED.get(key)
        if found is None:
            found = _MAPPED[key] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return found


def inside(folder: Path, location: str, what: str) -> Path:
    """A file of external data, which must be a regular file under the model's folder, links followed.

    Raises CompileError for any other.
    """
    root = folder.resolve()
    if not location or "\0" in location or os.path.isabs(location):
        raise CompileError(f"{what}: external data at {location!r}; expected a path relative to the model's folder")
    try:
        path = (root / location).resolve()
        is_file = path.is_file()
    except (OSError, RuntimeError) as error:  # a name too long, or links that lead to each other
        raise CompileError(f"{what}: external data at {location[:100]!r}: {_one_line(error)[:100]}") from error
    if not path.is_relative_to(root):
        raise CompileError(f"{what}: external data at {location!r} is outside the model's folder")
    if not is_file:
        raise CompileError(f"{what}: the file of its external data, {location!r}, is not beside the model")
    return path


def _widen(array: Array, elem_type: int, dtype: DType) -> Array:
    if type_name(elem_type) == "BFLOAT16":
        bits = array.view(np.uint16) if array.dtype.itemsize == 2 else array.astype(np.float32).view(np.uint32) >> 16
        return spilled(np.asarray(bits.astype(np.uint32) << 16).view(np.float32))
    return array if array.dtype == dtype.numpy else spilled(np.asarray(array, dtype=dtype.numpy))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def onnx_type(type: TensorType | None) -> onnx.TypeProto:
    """A tensor type as ONNX states it, sizes that vary left open."""
    import onnx

    proto = onnx.TypeProto()
    if type is not None:
        proto.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(type.dtype.numpy)
        for d in type.shape:
            dim = proto.tensor_type.shape.dim.add()
            if isinstance(d, int):
                dim.dim_value = d
    return proto
