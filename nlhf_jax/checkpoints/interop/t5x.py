"""T5X checkpoints, read and written without T5X.

Native: `checkpoint_STEP/checkpoint`, msgpack of the train state's tree, in which most arrays are
references to Zarr directories beside it. Orbax: `checkpoint_STEP/state/`, an Orbax PyTree of the
same state. Both call the parameters `target/...`; ours have the same names. The optimiser's state
is not read.
"""

import itertools
import math
import re
from collections.abc import Mapping
from typing import Any

import flax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from etils import epath

from nlhf_jax.checkpoints.arrays import (
    InMemory,
    Part,
    PyTree,
    StoredArray,
    flattened,
    nested,
    read_to_host,
)
from nlhf_jax.checkpoints.interop.t5_shapes import model_of
from nlhf_jax.checkpoints.stored import StoredCheckpoint
from nlhf_jax.checkpoints.zarr import kvstore, open_zarr, orbax_store
from nlhf_jax.errors import UserError, first_line

_STEP = re.compile(r"checkpoint_(\d+)")
_VERSION = 3  # of the native format
_CHUNK_BYTES = 64 << 20
_FIXED = {"relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}


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


def check_writable(model: Mapping[str, Any]) -> None:
    """Raises UserError if T5X has no T5 with the settings `model`: its gin files cannot say it."""
    for name, theirs in _FIXED.items():
        if model[name] != theirs:
            raise UserError(
                f"T5X has no such T5: {name} is {model[name]} but T5X's is {theirs}, without a "
                "setting for it"
            )


def write_native(path: epath.Path, params: PyTree, step: int, dtype: str) -> None:
    """Writes a native checkpoint into the existing directory `path`.

    It has the state of a T5X Adafactor that has seen nothing: without one T5X trains no further.

    Args:
      path: of the step, `checkpoint_STEP`.
      params: nested dict of `StoredArray`, an array for each layer; a chunk is read at a time.
      step: training steps taken.
      dtype: "float32" or "bfloat16".
    """
    target = {
        name: _write_zarr(path, f"target.{name.replace('/', '.')}", array, dtype)
        for name, array in flattened(params).items()
    }
    content = {
        "version": _VERSION,
        "optimizer": {"target": nested(target), "state": _fresh_state(params, step)},
    }
    (path / "checkpoint").write_bytes(flax.serialization.msgpack_serialize(content))


def write_orbax(directory: epath.Path, params: PyTree, step: int, dtype: str) -> None:
    """Writes `directory/checkpoint_STEP` as T5X's Orbax manager does; otherwise `write_native`.

    All parameters are in memory while Orbax writes them, and more with OCDBT, which T5X reads but
    does not need.
    """
    state = {"target": read_to_host(params, dtype), "state": _fresh_state(params, step)}
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, save_device_host_concurrent_gb=1)
    with ocp.CheckpointManager(
        directory,
        options=ocp.CheckpointManagerOptions(
            step_prefix="checkpoint", enable_async_checkpointing=False
        ),
        item_handlers={"state": handler},
    ) as manager:
        # By itself it skips, without a word, a step before the last one that is there.
        manager.save(step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(state)), force=True)


def _fresh_state(params: PyTree, step: int) -> dict[str, Any]:
    """T5X's `state`: the step and, for each parameter, zeros in the slots of its Adafactor.

    Matrices of which both sides are at least 128 are factored; unused slots have one element.
    """
    slots: dict[str, Any] = {}
    for name, array in flattened(params).items():
        sides = sorted(array.shape)
        factored = len(sides) == 2 and sides[0] >= 128
        shapes = {
            "m": (1,),
            "v": (1,) if factored else array.shape,
            "v_row": sides[:1] if factored else (1,),
            "v_col": sides[1:] if factored else (1,),
        }
        slots |= {f"{name}/{slot}": np.zeros(shape, np.float32) for slot, shape in shapes.items()}
    return {"step": np.int32(step), "param_states": nested(slots)}


def _write_zarr(path: epath.Path, name: str, array: StoredArray, dtype: str) -> dict[str, Any]:
    """Writes one array; returns the reference to it that the msgpack file holds."""
    chunk = _chunk_shape(array.shape, np.dtype(dtype).itemsize)
    metadata = {
        "shape": list(array.shape),
        "chunks": list(chunk),
        "compressor": {"id": "zstd", "level": 1},
    }
    store = ts.open(
        {
            "driver": "zarr",
            "kvstore": kvstore(str(path / name)),
            "dtype": dtype,
            "metadata": metadata,
        },
        create=True,
    ).result()
    for corner in itertools.product(
        *(range(0, size, step) for size, step in zip(array.shape, chunk, strict=True))
    ):
        index = tuple(
            slice(at, min(at + step, size))
            for at, step, size in zip(corner, chunk, array.shape, strict=True)
        )
        store[index].write(array.read(index).astype(np.dtype(dtype))).result()
    return {
        "driver": "zarr",
        "dtype": dtype,
        "kvstore": {"driver": "file", "path": f"{name}/"},
        "metadata": metadata,
    }


def _chunk_shape(shape: tuple[int, ...], itemsize: int) -> list[int]:
    """Halves dimensions, the largest first, down to `_CHUNK_BYTES`; chunks divide the shape."""
    chunk = list(shape)
    while itemsize * math.prod(chunk) > _CHUNK_BYTES:
        even = [axis for axis, size in enumerate(chunk) if size % 2 == 0]
        if not even:
            break
        chunk[max(even, key=lambda axis: chunk[axis])] //= 2
    return chunk


def _is_native(path: epath.Path) -> bool:
    return (path / "checkpoint").is_file() and not (path / "_METADATA").exists()


def _orbax_state(path: epath.Path) -> epath.Path | None:
    """Where the Orbax PyTree is: in `state/`, or, as older ones, in the step's directory itself."""
    if (path / "description").exists():  # one of ours
        return None
    for state in (path / "state", path):
        if any((state / name).exists() for name in ("_METADATA", "manifest.ocdbt")):
            return state
    return None


def _read_native(path: epath.Path) -> tuple[dict[str, StoredArray], int]:
    try:
        content = flax.serialization.msgpack_restore((path / "checkpoint").read_bytes())
        state = content["optimizer"]
        target, step = state["target"], int(state["state"]["step"])
        arrays, directories = _arrays_and_directories(target)
    except Exception as error:  # msgpack's many, and those of a tree of another kind
        raise UserError(
            f"{path / 'checkpoint'} is not the msgpack file of a T5X checkpoint, or is cut "
            f"({type(error).__name__}: {first_line(error)}): copy it again from where it came from"
        ) from error
    return {**arrays, **open_zarr(kvstore(str(path)), directories, str(path))}, step


def _arrays_and_directories(target: Any) -> tuple[dict[str, StoredArray], dict[str, str]]:
    """The arrays that the msgpack file holds itself, and where the others are."""
    arrays: dict[str, StoredArray] = {}
    directories: dict[str, str] = {}
    for name, leaf in _leaves(target):
        if isinstance(leaf, Mapping):
            where = leaf["kvstore"].get("path", leaf.get("path", ""))
            # Relative to the checkpoint, whatever bucket it was written to.
            directories[name] = where.rstrip("/").rpartition("/")[2]
            if directories[name] in ("", ".", ".."):
                raise ValueError(f"the array of {name} is nowhere")
        else:
            array = np.asarray(leaf)
            if array.dtype.hasobject or array.dtype.kind in "USV" and array.dtype.itemsize != 2:
                raise ValueError(f"{name} is no array of numbers")
            arrays[name] = InMemory(name, array)
    return arrays, directories


def _leaves(tree: Any, prefix: str = ""):
    """(name, array or reference) of a native tree; a reference is a mapping like a subtree."""
    if isinstance(tree, Mapping) and not {"driver", "kvstore", "metadata"} <= tree.keys():
        for key, child in tree.items():
            yield from _leaves(child, f"{prefix}/{key}" if prefix else key)
    else:
        yield prefix, tree


def _read_orbax(path: epath.Path, state: epath.Path) -> tuple[dict[str, StoredArray], int]:
    store = orbax_store(state)
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
        raise UserError(
            f"{path} is an Orbax checkpoint but not of T5X, or files such as manifest.ocdbt are "
            f"missing: {state} has no {'state.step' if directories else 'target'}"
        )
    opened = open_zarr(store, directories | {"state.step": "state.step"}, str(path))
    step = opened.pop("state.step")
    return dict(opened), int(step.read_all())


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
