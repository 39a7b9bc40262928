"""The safetensors file format, read by byte ranges (also from a bucket) and written as a stream.

A file is the length of a JSON header (8 bytes, little endian), the header, and the arrays' bytes in
C order. The `safetensors` library holds all of a file's arrays in memory, and reads local files
only.
"""

import dataclasses
import io
import json
import math
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import tensorstore as ts
from etils import epath

from nlhf_jax.checkpoints.arrays import Index, StoredArray, damaged
from nlhf_jax.checkpoints.zarr import kvstore

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 100_000_000  # the library's own limit


@dataclasses.dataclass(frozen=True)
class Tensor(StoredArray):
    """An array inside a safetensors file."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    start: int  # of its bytes in the file
    file: str
    store: ts.KvStore
    checkpoint: str

    def read(self, index: Index) -> np.ndarray:
        # Rows lie together, so what is cut along the first dimension is all that is read.
        rows, *rest = index or (slice(None),)
        count = self.shape[0] if self.shape else 1
        first, last, _ = rows.indices(count)
        row_shape = self.shape[1:]
        row_bytes = self.dtype.itemsize * int(np.prod(row_shape))
        begin = self.start + first * row_bytes
        end = begin + (last - first) * row_bytes
        try:
            content = self.store.read(self.file, byte_range=slice(begin, end)).result().value
        except Exception as error:  # whatever its storage raises
            raise damaged(self.checkpoint, self.name, str(error)) from error
        if len(content) != end - begin:
            raise damaged(self.checkpoint, self.name, f"{self.file} is cut")
        array = np.frombuffer(content, self.dtype)
        return (
            array.reshape(last - first, *row_shape)[(slice(None), *rest)] if self.shape else array
        )


def open_file(directory: str, file: str) -> dict[str, Tensor]:
    """The arrays of one file, unread.

    Raises ValueError if the file is missing, cut, or not of this format.
    """
    path = epath.Path(directory) / file
    if not path.exists():
        raise ValueError(f"{file} is missing")
    size = path.stat().length
    store = ts.KvStore.open(kvstore(directory)).result()
    if size < _LENGTH_BYTES:
        raise ValueError(f"{file} is cut: it has {size} bytes")
    (length,) = struct.unpack("<Q", store.read(file, byte_range=slice(0, 8)).result().value)
    if length > min(_MOST_HEADER_BYTES, size - _LENGTH_BYTES):
        raise ValueError(f"{file} is cut or not a safetensors file")
    data = _LENGTH_BYTES + length
    try:
        header = json.loads(store.read(file, byte_range=slice(_LENGTH_BYTES, data)).result().value)
        header.pop("__metadata__", None)
        if not header:
            raise ValueError("it has no arrays")
        tensors = {
            name: _tensor(name, entry, data, file, store, directory)
            for name, entry in header.items()
        }
        _check_apart(tensors)
        needed = data + max(entry["data_offsets"][1] for entry in header.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{file} has a header that cannot be read: {error}") from error
    if size < needed:
        last = max(tensors, key=lambda name: tensors[name].start)
        raise ValueError(f"{file} has {size} bytes of {needed}: {last} is cut")
    return tensors


def _tensor(name, entry, data: int, file: str, store: ts.KvStore, directory: str) -> Tensor:
    """The array of one entry of a header, after which the arrays start at byte `data`."""
    begin, end = entry["data_offsets"]
    for number in (begin, end, *entry["shape"]):
        if not isinstance(number, int) or isinstance(number, bool) or number < 0:
            raise ValueError(f"{name} has {str(number)[:40]} where a size or a place must be")
    if entry["dtype"] not in _DTYPES:
        raise ValueError(f"{name} is of type {entry['dtype']}")
    dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
    if dtype.itemsize * math.prod(shape) != end - begin:
        raise ValueError(f"{name} {list(shape)} does not have {end - begin} bytes")
    return Tensor(name, shape, dtype, data + begin, file, store, directory)


def _check_apart(tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError if two arrays share bytes: the format does not allow it."""
    last = 0
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.start):
        size = tensor.dtype.itemsize * math.prod(tensor.shape)
        if size and tensor.start < last:
            raise ValueError(f"{tensor.name} overlaps another array")
        last = max(last, tensor.start + size)


def write_file(stream: BinaryIO, arrays: Mapping[str, StoredArray], dtype: np.dtype) -> None:
    """Writes the arrays as `dtype`, one in memory at a time."""
    header: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, array in arrays.items():
        end = offset + dtype.itemsize * int(np.prod(array.shape))
        header[name] = {
            "dtype": _CODES[dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # arrays start at a multiple of eight bytes
    stream.write(struct.pack("<Q", len(text)) + text)
    for array in arrays.values():
        content = np.ascontiguousarray(array.read_all().astype(dtype, copy=False))
        data = content.reshape(-1).view(np.uint8).data
        # TensorFlow's files, which lie in buckets, take no buffer.
        stream.write(data if isinstance(stream, io.IOBase) else bytes(data))
