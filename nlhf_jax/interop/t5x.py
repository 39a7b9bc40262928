"""T5X checkpoints, read and written without T5X.

Native: `checkpoint_STEP/checkpoint`, msgpack of the train state's tree, in which most arrays are
references to Zarr directories beside it. Orbax: `checkpoint_STEP/state/`, an Orbax PyTree of the
same state. Both call the parameters `target/...`; ours have the same names. The optimiser's state
is not read.
"""

import re
from collections.abc import Mapping
from typing import Any

import flax
import numpy as np
import tensorstore as ts
from etils import epath

from nlhf_jax.errors import UserError
from nlhf_jax.interop.stored_checkpoint import StoredCheckpoint
from nlhf_jax.interop.t5_shapes import model_of
from nlhf_jax.stored_params import (
    InMemory,
    Part,
    StoredArray,
    kvstore,
    nested,
    open_zarr,
)

_STEP = re.compile(r"checkpoint_(\d+)")
_VERSION = 3  # of the native format
_CHUNK_BYTES = 64 << 20


def find(path: epath.Path) -> epath.Path | None:
    """The step's directory if `path` is a T5X checkpoint or a directory of them, else None.

    Of several steps it is the latest.
    """
    if _is_native(path) or _orbax_state(path) is not None:
        return path
    steps = [(int(m[1]), child) for child in path.iterdir() if (m := _STEP.fullmatch(child.name))]
    for _, child in sorted(steps, reverse=True, key=lambda found: found[0]):
        if _is_native(child) or _orbax_state(child) is not None:
            return child
    return None


def read(path: epath.Path) -> StoredCheckpoint:
    """Opens the checkpoint in the step's directory `path`, which `find` has found.

    Raises UserError if files are missing or damaged, or the parameters are not a T5's.
    """
    state = _orbax_state(path)
    arrays, step = _read_native(path) if state is None else _read_orbax(path, state)
    params = _per_layer(arrays, str(path))
    shapes = {name: array.shape for name, array in params.items()}
    return StoredCheckpoint(
        path=str(path),
        format="T5X" if state is None else "T5X, Orbax",
        params=nested(params),
        model=model_of(shapes, str(path)),
        step=step,
    )


def _is_native(path: epath.Path) -> bool:
    return (path / "checkpoint").is_file() and not (path / "_METADATA").exists()


def _orbax_state(path: epath.Path) -> epath.Path | None:
    """Where the Orbax PyTree is: in `state/`, or, as older ones, in the step's directory itself."""
    if (path / "description").exists():  # one of ours
        return None
    for state in (path / "state", path):
        if (state / "_METADATA").exists():
            return state
    return None


def _read_native(path: epath.Path) -> tuple[dict[str, StoredArray], int]:
    try:
        content = flax.serialization.msgpack_restore((path / "checkpoint").read_bytes())
        state = content["optimizer"]
        target, step = state["target"], int(state["state"]["step"])
    except Exception as error:  # msgpack's many, and those of a tree of another kind
        raise UserError(
            f"{path / 'checkpoint'} is not the msgpack file of a T5X checkpoint, or is cut "
            f"({type(error).__name__}: {error}): copy it again from where it came from"
        ) from error
    arrays: dict[str, StoredArray] = {}
    directories: dict[str, str] = {}
    for name, leaf in _leaves(target):
        if isinstance(leaf, Mapping):
            where = leaf["kvstore"].get("path", leaf.get("path", ""))
            # Relative to the checkpoint, whatever bucket it was written to.
            directories[name] = where.rstrip("/").rpartition("/")[2]
        else:
            arrays[name] = InMemory(name, np.asarray(leaf))
    return arrays | open_zarr(kvstore(str(path)), directories, str(path)), step


def _leaves(tree: Any, prefix: str = ""):
    """(name, array or reference) of a native tree; a reference is a mapping like a subtree."""
    if isinstance(tree, Mapping) and not {"driver", "kvstore", "metadata"} <= tree.keys():
        for key, child in tree.items():
            yield from _leaves(child, f"{prefix}/{key}" if prefix else key)
    else:
        yield prefix, tree


def _read_orbax(path: epath.Path, state: epath.Path) -> tuple[dict[str, StoredArray], int]:
    store = kvstore(str(state))
    if (state / "manifest.ocdbt").exists():
        store = {"driver": "ocdbt", "base": store, "path": ""}
    try:
        keys = ts.KvStore.open(store).result().list().result()
    except Exception as error:
        raise UserError(
            f"the checkpoint {path} is damaged: {state} cannot be listed ({error}); copy it again "
            "from where it came from"
        ) from error
    arrays = {key.decode().rpartition("/")[0] for key in keys}
    directories = {
        name.removeprefix("target.").replace(".", "/"): name
        for name in arrays
        if name.startswith("target.") and "/" not in name
    }
    if not directories or "state.step" not in arrays:
        raise UserError(f"{path} is an Orbax checkpoint but not of T5X: it has no 'target'")
    step = open_zarr(store, {"state.step": "state.step"}, str(path))["state.step"]
    return open_zarr(store, directories, str(path)), int(step.read_all())


def _per_layer(arrays: Mapping[str, StoredArray], checkpoint: str) -> dict[str, StoredArray]:
    """An array for every layer, also where T5X's `scalable_t5` has stacked them on dimension 1."""
    result = {}
    for name, array in arrays.items():
        stack, _, rest = name.partition("/")
        if not rest.startswith(f"{stack}/"):
            result[name] = array
            continue
        rest = rest.removeprefix(f"{stack}/")
        layers = [Part(array, 1, i) for i in range(array.shape[1])]
        if rest == "relpos_bias/rel_embedding":
            result[f"{stack}/{rest}"] = _shared_bias(layers, name, checkpoint)
        else:
            result |= {f"{stack}/layers_{i}/{rest}": layer for i, layer in enumerate(layers)}
    return result


def _shared_bias(layers: list[Part], name: str, checkpoint: str) -> StoredArray:
    first = layers[0].read_all()
    if any(not np.array_equal(first, layer.read_all()) for layer in layers):
        raise UserError(
            f"the checkpoint {checkpoint} cannot be used: its parameter {name} differs between "
            "layers, and a T5's relative position bias is shared by all of them"
        )
    return InMemory(name, first)
