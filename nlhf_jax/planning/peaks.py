"""What the devices at hand can do, measured: FLOP/s of a matrix product, bytes/s of a copy."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Of a square matrix product; a CPU's caches prefer one size, its neighbour's another.
_SIDES = {"cpu": (1024, 2048), "other": (8192,)}
_COPIED = {"cpu": 256 * 2**20, "other": 4 * 2**30}  # bytes: more than a cache of a core's own holds


class Peaks(NamedTuple):
    """Of one device while all do the same: FLOP/s, and bytes/s that are read or written."""

    flops: float
    memory_speed: float


def usual_dtype(platform: str) -> str:
    """In which matrix products are fastest: bfloat16, but on most CPUs float32."""
    return "float32" if platform == "cpu" else "bfloat16"


def measure(devices: Sequence[jax.Device], dtype: str, quick: bool = False) -> Peaks:
    """What `devices` reach, the best of several calls each.

    Args:
      devices: of one kind; all are busy at once, as they share what a machine has.
      dtype: of the matrices, "float32" or "bfloat16".
      quick: take smaller arrays, for about a second in all.
    """
    platform = "cpu" if devices[0].platform == "cpu" else "other"
    sides, size = _SIDES[platform], _COPIED[platform]
    if quick:
        sides, size = sides[:1], size // 8
    where = NamedSharding(Mesh(np.asarray(devices), ("all",)), PartitionSpec("all"))

    # Equal numbers would flatter: a GPU multiplies them with less power, hence faster.
    def drawn(*shape: int, dtype: str = dtype) -> jax.Array:
        shape = len(devices), *shape
        draw = jax.jit(lambda key: jax.random.normal(key, shape, dtype), out_shardings=where)
        return draw(jax.random.key(0))

    flops = 0.0
    for side in sides:
        scale = side**-0.5  # so that a product of a product is as large
        multiply = jax.jit(
            lambda x, scale=scale: jnp.einsum("nij,njk->nik", x, x) * scale, out_shardings=where
        )
        flops = max(flops, 2 * side**3 / _seconds(multiply, drawn(side, side)))
    copy = jax.jit(lambda x: x + 1, out_shardings=where, donate_argnums=0)
    return Peaks(flops, 2 * size / _seconds(copy, drawn(size // 4, dtype="float32")))


def _seconds(function: Callable[[jax.Array], Any], argument: jax.Array) -> float:
    """Of one call, the best of several: what else runs here makes calls slower, never faster."""
    argument = jax.block_until_ready(function(argument))
    best = math.inf
    for _ in range(5):
        start = time.perf_counter()
        argument = jax.block_until_ready(function(argument))
        best = min(best, time.perf_counter() - start)
    return best
