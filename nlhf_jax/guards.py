"""What ends a training that goes wrong."""

from typing import Any

import jax
import jax.numpy as jnp


class TrainingDiverged(Exception):
    """The loss or the parameters are NaN or infinite; the last good checkpoint stays."""

    exit_code = 3


@jax.jit  # One small program per shape, which all stages of a process share.
def _is_finite(leaf: jax.Array) -> jax.Array:
    return jnp.isfinite(leaf).all()


def not_finite(state: Any) -> str | None:
    """The name of an array of the state that has NaN or infinity in it, None if none has."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    floats = [(key, leaf) for key, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    flags = jax.device_get([_is_finite(leaf) for _, leaf in floats])
    for (key, _), finite in zip(floats, flags, strict=True):
        if not finite:
            return jax.tree_util.keystr(key, simple=True, separator="/")
    return None
