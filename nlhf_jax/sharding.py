"""The device mesh and where every array lives on it.

Parameters, optimiser state and caches carry logical axis names (`embed`, `mlp`, `batch`, ...); the
rules below say which mesh axis each name is cut along. One laptop core is a 1 x 1 x 1 mesh, so the
same program runs on it and on a pod.
"""

import contextlib
import contextvars
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nlhf_jax.errors import UserError

PyTree = Any

MESH_AXES = ("data", "fsdp", "tensor")

# Names are T5X's where it has one. A name that is not listed is not cut.
LOGICAL_AXIS_RULES: Mapping[str, str | tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": "fsdp",
    "vocab": "tensor",
    "mlp": "tensor",
    "heads": "tensor",
    "joined_kv": "tensor",
}

# Where weights and rows lie while responses are decoded. A token is little work for a network, so
# what counts is how often devices have to talk: trained weights that are cut along `fsdp` would be
# gathered again for every token.
_DECODE_RULES: Mapping[str, Mapping[str, str | tuple[str, ...]]] = {
    # Each device has all weights and a part of the rows: it decodes them alone.
    "replicated": {"batch": MESH_AXES},
    # As in training along `tensor`, whole along the others: sums over `tensor` in every layer.
    "tensor": {name: axes for name, axes in LOGICAL_AXIS_RULES.items() if name != "embed"},
    # As "tensor", along `fsdp` too: the fewest bytes of weights on a device.
    "spread": {"batch": "data"}
    | dict.fromkeys(("vocab", "mlp", "heads", "joined_kv"), ("fsdp", "tensor")),
    "trained": LOGICAL_AXIS_RULES,
}
DECODE_LAYOUTS = ("auto", *_DECODE_RULES)
_MOST_REPLICATED = 4 * 2**30  # bytes of weights; the smallest devices we know of have 16 GB


class Partitioner:
    """A named mesh and the logical axis rules: places arrays, and names their shardings."""

    def __init__(
        self,
        data: int,
        fsdp: int,
        tensor: int,
        devices: Sequence[jax.Device] | None = None,
        decode_layout: str | None = None,
    ):
        """Lays the devices out as `data x fsdp x tensor`, by how they are wired.

        Neighbours along `tensor`, which talk most, are neighbours in the machine. Of several slices
        of TPUs, with a slow network between them, each has whole copies of the parameters: only
        `data` goes over that.

        Args:
          data: replicas of the parameters; -1 takes the devices that the other axes leave.
          fsdp: devices that share one copy of the parameters and split the batch.
          tensor: devices that split each layer's heads and hidden units.
          devices: default all devices of all processes.
          decode_layout: how weights lie while responses are decoded, of `DECODE_LAYOUTS`; see
            `decoding`. None is "auto".

        Raises:
          UserError: the sizes do not multiply to the number of devices, slices share a
            copy, or there is no such layout.
        """
        decode_layout = decode_layout or "auto"
        if decode_layout not in DECODE_LAYOUTS:
            raise UserError(
                f"DECODE_LAYOUT is {decode_layout!r} but must be one of {', '.join(DECODE_LAYOUTS)}"
            )
        self.decode_layout = decode_layout
        self._rules = LOGICAL_AXIS_RULES
        devices = list(jax.devices() if devices is None else devices)
        if data == -1:
            data = max(1, len(devices) // (fsdp * tensor))
        if data * fsdp * tensor != len(devices):
            raise UserError(
                f"the mesh data={data} x fsdp={fsdp} x tensor={tensor} needs "
                f"{data * fsdp * tensor} devices, but there are {len(devices)}; change "
                "DATA_AXIS, FSDP_AXIS or TENSOR_AXIS"
            )
        self.mesh = Mesh(_laid_out(devices, data, fsdp, tensor), MESH_AXES)

    def sharding(self, logical_axes: Sequence[str | None], shape: Sequence[int]) -> NamedSharding:
        """The sharding of an array of `shape` whose dimensions carry `logical_axes`.

        A dimension that its mesh axes do not divide stays whole.
        """
        spec = []
        for name, size in zip(logical_axes, shape, strict=True):
            axes = _as_tuple(self._rules.get(name, ()) if name is not None else ())
            spec.append(axes if axes and size % self._cuts(axes) == 0 else None)
        return NamedSharding(self.mesh, PartitionSpec(*spec))

    def _cuts(self, axes: Sequence[str]) -> int:
        return math.prod(self.mesh.shape[axis] for axis in axes)

    def decoding(self, rows: int, weights: int) -> "Partitioner":
        """The same mesh with the rules by which a rollout is laid out: `decode_layout`'s.

        Rows are cut along as many axes as divide them; what is left works on the same ones.

        Args:
          rows: prompts.
          weights: bytes of all weights that are decoded with, in the dtype they have then.
        """
        if self.mesh.size == 1:
            return self
        layout = decode_layout(self.decode_layout, self.mesh.shape["tensor"], weights)
        rules = _DECODE_RULES[layout]
        axes = _as_tuple(rules["batch"])
        while rows % self._cuts(axes):
            axes = axes[:-1]
        other = copy.copy(self)
        other._rules = {**rules, "batch": axes}
        return other

    def tree_sharding(self, logical_axes: PyTree, shapes: PyTree) -> PyTree:
        """`sharding` for every leaf; `shapes` has the tree's structure and leaves with `.shape`."""
        return jax.tree.map(
            lambda leaf, axes: self.sharding(axes, leaf.shape), shapes, logical_axes
        )

    @property
    def batch_shares(self) -> int:
        """In how many parts a batch is cut."""
        return self._cuts(LOGICAL_AXIS_RULES["batch"])

    def whole_shares(self, rows: int) -> int:
        """The fewest rows, at least `rows`, that all parts of a batch have equally many of."""
        return -(-rows // self.batch_shares) * self.batch_shares

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    def place(self, tree: PyTree, shardings: PyTree) -> PyTree:
        """Host arrays as global arrays; each process fills the parts that its devices hold."""
        return jax.tree.map(_place, tree, shardings)

    def replicate(self, tree: PyTree) -> PyTree:
        """Every device gets the whole of every array."""
        return jax.tree.map(lambda array: _place(array, self.replicated), tree)

    def place_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Arrays `[batch, ...]` of the whole, global batch, cut along their first dimension.

        Raises ValueError if the parts were not equal: fill the batch up to `whole_shares`, or
        `replicate` it.
        """
        for name, array in batch.items():
            if len(array) % self.batch_shares:
                raise ValueError(
                    f"{name!r} has {len(array)} rows, which {self.batch_shares} devices cannot "
                    f"share evenly; fill them up to {self.whole_shares(len(array))}"
                )
        return {
            name: _place(array, self.sharding(("batch",) + (None,) * (array.ndim - 1), array.shape))
            for name, array in batch.items()
        }

    @contextlib.contextmanager
    def activate(self) -> Iterator[None]:
        """Inside, `constrain` speaks of this mesh. Wrap the body of a traced function in it."""
        token = _ACTIVE.set(self)
        try:
            yield
        finally:
            _ACTIVE.reset(token)


def decode_layout(chosen: str, tensor: int, weights: float) -> str:
    """What "auto" comes to; any other layout is itself.

    It is "tensor" on a mesh that has such an axis. Elsewhere it is "replicated", unless that would
    take too much of a small device's memory: then "spread".

    Args:
      chosen: of `DECODE_LAYOUTS`.
      tensor: devices along that axis.
      weights: bytes of all weights that are decoded with.
    """
    if chosen != "auto":
        return chosen
    if tensor > 1:
        return "tensor"
    return "replicated" if weights <= _MOST_REPLICATED else "spread"


def _as_tuple(axes: str | tuple[str, ...]) -> tuple[str, ...]:
    return (axes,) if isinstance(axes, str) else axes


_ACTIVE: contextvars.ContextVar[Partitioner | None] = contextvars.ContextVar("mesh", default=None)


def constrain(array: jax.Array, *logical_axes: str | None) -> jax.Array:
    """Pins an intermediate array to its place on the active mesh; no mesh, no effect."""
    partitioner = _ACTIVE.get()
    if partitioner is None:
        return array
    return jax.lax.with_sharding_constraint(array, partitioner.sharding(logical_axes, array.shape))


def constrain_tree(tree: PyTree, logical_axes: PyTree) -> PyTree:
    """`constrain` for every array; `logical_axes` is a tuple of names for each."""
    return jax.tree.map(lambda array, axes: constrain(array, *axes), tree, logical_axes)


def constrain_batch(tree: PyTree) -> PyTree:
    """Pins the first dimension of every array to `batch` and leaves the others whole."""
    return jax.tree.map(lambda x: constrain(x, "batch", *(None,) * (x.ndim - 1)), tree)


def split_batch(tree: PyTree, parts: int) -> PyTree:
    """Arrays `[B, ...]` as `[parts, B / parts, ...]`.

    Every part takes rows from all devices, so that no device has to send its rows away.
    """
    return jax.tree.map(
        lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), tree
    )


def map_batch(function: Callable[[PyTree], PyTree], tree: PyTree, parts: int) -> PyTree:
    """A function of rows, from arrays `[B, ...]` to others, for a part of the batch at a time.

    There are as many parts as `parts` and B have in common.
    """
    parts = math.gcd(parts, jax.tree.leaves(tree)[0].shape[0])
    if parts == 1:
        return function(tree)
    found = jax.lax.map(lambda part: function(constrain_batch(part)), split_batch(tree, parts))
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), found)


@contextlib.contextmanager
def decoding(rows: int, weights: Callable[[], PyTree]) -> Iterator[None]:
    """Inside, `constrain` speaks of the active mesh's `Partitioner.decoding`; no mesh, no effect.

    Args:
      rows: prompts.
      weights: gives all that is decoded with; only its shapes and dtypes are asked for.
    """
    partitioner = _ACTIVE.get()
    if partitioner is None:
        yield
        return
    leaves = jax.tree.leaves(jax.eval_shape(weights))
    with partitioner.decoding(rows, sum(x.size * x.dtype.itemsize for x in leaves)).activate():
        yield


def alone_on_cpu() -> bool:
    """Whether what is traced now is for CPUs, of which each has all weights that it works with."""
    partitioner = _ACTIVE.get()
    if partitioner is None:
        return jax.default_backend() == "cpu"
    cut = [axes for name, axes in partitioner._rules.items() if name != "batch"]
    whole = all(partitioner._cuts(_as_tuple(axes)) == 1 for axes in cut)
    return whole and partitioner.mesh.devices.flat[0].platform == "cpu"


def _laid_out(devices: Sequence[jax.Device], data: int, fsdp: int, tensor: int) -> np.ndarray:
    """The devices `[data, fsdp, tensor]`; those of other machines than TPUs in their order."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if data % slices:
        raise UserError(
            f"DATA_AXIS is {data} but must be a multiple of the {slices} slices: between slices "
            "there is no network that is fast enough for FSDP_AXIS and TENSOR_AXIS"
        )
    # An axis may take a part of one of the machine's: fsdp=64, tensor=4 on 16 x 16 chips.
    settings: Any = {"devices": devices, "allow_split_physical_axes": True}
    if slices == 1:
        return mesh_utils.create_device_mesh((data, fsdp, tensor), **settings)
    return mesh_utils.create_hybrid_device_mesh(
        (data // slices, fsdp, tensor), (slices, 1, 1), **settings
    )


def _place(array: np.ndarray | jax.Array, sharding: NamedSharding) -> jax.Array:
    if isinstance(array, jax.Array):
        return jax.device_put(array, sharding)
    array = np.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
