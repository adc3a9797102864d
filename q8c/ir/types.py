"""Element types and tensor types."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

import numpy as np

from q8c.ir.dims import Dim, product

Truth = bool  # inside DType the name `bool` is the element type


class DType(Enum):
    """An element type; its value is its name in text, and numpy's name for it."""

    bool = "bool"
    i8 = "int8"
    i16 = "int16"
    i32 = "int32"
    i64 = "int64"
    u8 = "uint8"
    u16 = "uint16"
    u32 = "uint32"
    u64 = "uint64"
    f16 = "float16"
    f32 = "float32"
    f64 = "float64"

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """The numpy dtype of the same name."""
        return np.dtype(self.value)

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return self.numpy.itemsize

    @property
    def is_float(self) -> Truth:
        """Whether it is a floating-point type."""
        return self.name.startswith("f")

    @property
    def is_int(self) -> Truth:
        """Whether it is a signed or unsigned integer type (bool is neither int nor float)."""
        return self.name[0] in "iu"

    @staticmethod
    def of(dtype: np.dtype[np.generic] | type) -> DType:
        """The element type of a numpy dtype. Raises ValueError for one q8c does not have."""
        return DType(np.dtype(dtype).name)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class TensorType:
    """An element type and a symbolic shape; a scalar has the shape ()."""

    dtype: DType
    shape: tuple[Dim, ...]

    @property
    def rank(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> Dim:
        """Number of elements."""
        return product(self.shape)

    @property
    def nbytes(self) -> Dim:
        """Bytes when stored densely."""
        return self.size * self.dtype.itemsize

    def with_shape(self, shape: Iterable[Dim]) -> TensorType:
        """The same element type with another shape."""
        return TensorType(self.dtype, tuple(shape))

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"
