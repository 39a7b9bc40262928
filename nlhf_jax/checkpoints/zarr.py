"""Arrays in Zarr stores, local or in a bucket, read through TensorStore."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorstore as ts
from etils import epath

from nlhf_jax.checkpoints.arrays import Index, StoredArray, damaged
from nlhf_jax.errors import first_line

# Arrays of all layers are often stored as one chunk, of which a reader of layers takes a part at a
# time: decompressed chunks are kept for a while.
_CHUNK_CACHE_BYTES = 1 << 28


@dataclasses.dataclass(frozen=True)
class Zarr(StoredArray):
    """An array of a Zarr store."""

    name: str
    store: ts.TensorStore
    checkpoint: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.store.shape)

    @property
    def dtype(self) -> np.dtype:
        return self.store.dtype.numpy_dtype

    def read(self, index: Index) -> np.ndarray:
        try:
            return self.store[index].read().result()
        except Exception as error:  # whatever its file's compression or storage raises
            raise damaged(self.checkpoint, self.name, first_line(error)) from error


def kvstore(directory: str) -> dict[str, Any]:
    """TensorStore's specification of a local directory or a bucket's."""
    scheme, separator, path = str(directory).partition("://")
    if not separator:
        return {"driver": "file", "path": f"{directory}/"}
    bucket, _, path = path.partition("/")
    return {"driver": {"gs": "gcs"}.get(scheme, scheme), "bucket": bucket, "path": f"{path}/"}


def orbax_store(state: epath.Path) -> dict[str, Any]:
    """TensorStore's specification of the arrays in an Orbax PyTree's directory."""
    directory = kvstore(str(state))
    if (state / "manifest.ocdbt").exists():
        return {"driver": "ocdbt", "base": directory, "path": ""}
    return directory


def open_zarr(
    store: Mapping[str, Any], directories: Mapping[str, str], checkpoint: str
) -> dict[str, Zarr]:
    """Opens the arrays of a Zarr store (version 2 or 3); reads their metadata only.

    Args:
      store: specification of the key-value store in which they are.
      directories: parameter -> its directory there.
      checkpoint: its path, for errors.

    Raises:
      UserError: an array or a chunk of it is missing, or its metadata cannot be read.
    """
    context = ts.Context({"cache_pool": {"total_bytes_limit": _CHUNK_CACHE_BYTES}})
    listed = ts.KvStore.open(dict(store), context=context).result().list().result()
    keys = {key.decode() for key in listed}
    opening = {}
    for name, directory in directories.items():
        driver = "zarr3" if f"{directory}/zarr.json" in keys else "zarr"
        if driver == "zarr" and f"{directory}/.zarray" not in keys:
            raise damaged(checkpoint, name, f"{directory}/.zarray is missing")
        inside = {**store, "path": store.get("path", "") + directory + "/"}
        opening[name] = ts.open({"driver": driver, "kvstore": inside}, context=context, open=True)
    arrays = {}
    for name, future in opening.items():
        try:
            arrays[name] = Zarr(name, future.result(), checkpoint)
        except Exception as error:
            raise damaged(checkpoint, name, first_line(error)) from error
        if arrays[name].store.spec().to_json()["driver"] == "zarr":
            _check_chunks(arrays[name], directories[name], keys)
    return arrays


def _check_chunks(array: Zarr, directory: str, keys: set[str]) -> None:
    """Zarr reads a chunk that is not there as zeros; a parameter never means that."""
    metadata = array.store.spec().to_json()["metadata"]
    separator = metadata.get("dimension_separator", ".")
    grid = [-(-size // step) for size, step in zip(array.shape, metadata["chunks"], strict=True)]
    for position in np.ndindex(*grid):
        key = f"{directory}/{separator.join(map(str, position)) or '0'}"
        if key not in keys:
            raise damaged(array.checkpoint, array.name, f"its file {key} is missing")
