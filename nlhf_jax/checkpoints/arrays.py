"""Parameters on disk: arrays that are read a slice at a time, and their way onto the mesh.

Every checkpoint format gives a nested dict of `StoredArray`; nothing is read before it is placed,
and then each device's part alone, so that a host never holds more than its share.
"""

import abc
import concurrent.futures
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np

from nlhf_jax.errors import UserError

PyTree = Any
Index = tuple[slice, ...]

# Reads in flight: enough to hide a bucket's latency, few enough to bound the memory.
_THREADS = 8
_FLOATS = (np.float32, ml_dtypes.bfloat16, np.float16, np.float64)


class StoredArray(abc.ABC):
    """An array that is not in memory.

    Attributes:
      name: what its file calls it, for errors.
      shape: of the whole.
      dtype: as stored.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    @abc.abstractmethod
    def read(self, index: Index) -> np.ndarray:
        """A part of it, one slice a dimension. Raises UserError if its file is damaged."""

    def read_all(self) -> np.ndarray:
        return self.read((slice(None),) * len(self.shape))

    def __getitem__(self, index: int) -> "StoredArray":
        """The array at `index` of the first dimension, also unread."""
        return Part(self, 0, index)


@dataclasses.dataclass(frozen=True)
class InMemory(StoredArray):
    """An array that its format keeps among the metadata."""

    name: str
    array: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    def read(self, index: Index) -> np.ndarray:
        return self.array[index]


@dataclasses.dataclass(frozen=True)
class Part(StoredArray):
    """What is at `position` of dimension `axis`."""

    whole: StoredArray
    axis: int
    position: int

    @property
    def name(self) -> str:
        return f"{self.whole.name}[{self.position}]"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.whole.shape[: self.axis] + self.whole.shape[self.axis + 1 :]

    @property
    def dtype(self) -> np.dtype:
        return self.whole.dtype

    def read(self, index: Index) -> np.ndarray:
        at = slice(self.position, self.position + 1)
        return np.squeeze(
            self.whole.read((*index[: self.axis], at, *index[self.axis :])), self.axis
        )


@dataclasses.dataclass(frozen=True)
class Stacked(StoredArray):
    """Arrays of one shape, stacked along a new first dimension."""

    parts: Sequence[StoredArray]

    @property
    def name(self) -> str:
        return f"{self.parts[0].name} to {self.parts[-1].name}"

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.parts), *self.parts[0].shape)

    @property
    def dtype(self) -> np.dtype:
        return self.parts[0].dtype

    def read(self, index: Index) -> np.ndarray:
        return np.stack([part.read(index[1:]) for part in self.parts[index[0]]])


@dataclasses.dataclass(frozen=True)
class Transposed(StoredArray):
    """A matrix that is stored the other way round."""

    matrix: StoredArray

    @property
    def name(self) -> str:
        return self.matrix.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.matrix.shape[::-1]

    @property
    def dtype(self) -> np.dtype:
        return self.matrix.dtype

    def read(self, index: Index) -> np.ndarray:
        return self.matrix.read(index[::-1]).T


def damaged(checkpoint: str, name: str, reason: str) -> UserError:
    """The error for a parameter that cannot be read."""
    return UserError(
        f"the checkpoint {checkpoint} is damaged: the parameter {name} cannot be read ({reason}); "
        "copy it again from where it came from"
    )


# --- trees ---------------------------------------------------------------------------------------


def nested(flat: Mapping[str, Any]) -> PyTree:
    """`{"a/b": x}` to `{"a": {"b": x}}`."""
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def flattened(tree: PyTree) -> dict[str, Any]:
    """The inverse of `nested`, for leaves of any type."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def check_fits(checkpoint: str, stored: PyTree, wanted: PyTree) -> None:
    """Raises UserError, with the first parameter that differs, unless `stored` is of the model.

    Args:
      checkpoint: its path, for the error.
      stored: nested dict of `StoredArray`.
      wanted: nested dict of anything with `.shape`, as the model makes them.
    """
    stored, wanted = flattened(stored), flattened(wanted)
    differing = []
    for name in sorted(stored.keys() | wanted.keys()):
        there = stored[name].shape if name in stored else None
        here = wanted[name].shape if name in wanted else None
        if there is None:
            differing.append(f"the parameter {name} {tuple(wanted[name].shape)} is missing there")
        elif here is None:
            differing.append(f"the parameter {name} {tuple(there)} is not of this model")
        elif tuple(there) != tuple(here):
            differing.append(
                f"the parameter {name} has shape {tuple(there)} there and {tuple(here)} here"
            )
        elif stored[name].dtype not in _FLOATS:
            differing.append(
                f"the parameter {name} is of type {stored[name].dtype} but parameters are float32, "
                "bfloat16 or float16"
            )
    if differing:
        more = f" (and {len(differing) - 1} more differ)" if len(differing) > 1 else ""
        raise UserError(f"the checkpoint {checkpoint} does not fit the model: {differing[0]}{more}")


def place(stored: PyTree, sharding: PyTree, dtype: PyTree | str | None = None) -> PyTree:
    """Reads arrays straight to where they belong.

    Args:
      stored: nested dict of `StoredArray`.
      sharding: nested dict of `jax.sharding.Sharding` like it. Of each array a process reads the
        parts that its own devices hold, each once.
      dtype: of the result, to which is cast while reading, one or a tree of them; None keeps what
        is stored.

    Raises:
      UserError: an array's file is damaged.
    """

    def read(array: StoredArray, where: jax.sharding.Sharding, dtype: Any) -> jax.Array:
        parts: dict[Any, np.ndarray] = {}

        def part(index: Index | None) -> np.ndarray:
            assert index is not None  # of a dimensioned array
            key = tuple((s.start, s.stop) for s in index)
            if key not in parts:
                parts[key] = np.asarray(array.read(index), dtype=dtype)
            return parts[key]

        return jax.make_array_from_callback(array.shape, where, part)

    if not isinstance(dtype, Mapping):
        one = dtype and np.dtype(dtype)
        dtype = jax.tree.map(lambda array: one or array.dtype, stored)
    return _concurrently(read, stored, sharding, dtype)


def read_all(stored: PyTree) -> PyTree:
    """All of the arrays, as NumPy arrays of the dtypes that are stored."""
    return _concurrently(StoredArray.read_all, stored)


def read_to_host(stored: PyTree, dtype: str) -> PyTree:
    """All of the arrays, as JAX arrays on the host: of those, Orbax bounds what it copies."""
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    return place(stored, jax.tree.map(lambda _: host, stored), dtype)


def _concurrently(function: Callable, *trees: PyTree) -> PyTree:
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        futures = jax.tree.map(lambda *leaves: pool.submit(function, *leaves), *trees)
        try:
            return jax.tree.map(lambda future: future.result(), futures)
        except BaseException:
            pool.shutdown(cancel_futures=True)  # the first error is enough
            raise
