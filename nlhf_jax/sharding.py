"""The device mesh and where every array lives on it.

Parameters, optimiser state and caches carry logical axis names (`embed`, `mlp`, `batch`, ...); the
rules below say which mesh axis each name is cut along. One laptop core is a 1 x 1 x 1 mesh, so the
same program runs on it and on a pod.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator, Mapping, Sequence
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


class Partitioner:
    """A named mesh and the logical axis rules: places arrays, and names their shardings."""

    def __init__(
        self,
        data: int,
        fsdp: int,
        tensor: int,
        devices: Sequence[jax.Device] | None = None,
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

        Raises:
          UserError: the sizes do not multiply to the number of devices, or slices share a copy.
        """
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
            axes = LOGICAL_AXIS_RULES.get(name, ()) if name is not None else ()
            axes = (axes,) if isinstance(axes, str) else tuple(axes)
            cuts = math.prod(self.mesh.shape[axis] for axis in axes)
            spec.append(axes if axes and size % cuts == 0 else None)
        return NamedSharding(self.mesh, PartitionSpec(*spec))

    def tree_sharding(self, logical_axes: PyTree, shapes: PyTree) -> PyTree:
        """`sharding` for every leaf; `shapes` has the tree's structure and leaves with `.shape`."""
        return jax.tree.map(
            lambda leaf, axes: self.sharding(axes, leaf.shape), shapes, logical_axes
        )

    @property
    def batch_shares(self) -> int:
        """In how many parts a batch is cut."""
        return math.prod(self.mesh.shape[axis] for axis in LOGICAL_AXIS_RULES["batch"])

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


_ACTIVE: contextvars.ContextVar[Partitioner | None] = contextvars.ContextVar("mesh", default=None)


def constrain(array: jax.Array, *logical_axes: str | None) -> jax.Array:
    """Pins an intermediate array to its place on the active mesh; no mesh, no effect."""
    partitioner = _ACTIVE.get()
    if partitioner is None:
        return array
    return jax.lax.with_sharding_constraint(array, partitioner.sharding(logical_axes, array.shape))


def constrain_batch(tree: PyTree) -> PyTree:
    """Pins the first dimension of every array to `batch` and leaves the others whole."""
    return jax.tree.map(lambda x: constrain(x, "batch", *(None,) * (x.ndim - 1)), tree)


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
