"""One training step, the same for every learner: rows, gradient, update, and what follows.

The whole of it is one jitted program (`Learner` jits it), so nothing in between reaches the host.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nlhf_jax.learners.state import TrainState
from nlhf_jax.models.language_model import PyTree
from nlhf_jax.sharding import constrain_batch

Batch = Mapping[str, jax.Array]
Rows = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Loss = Callable[[PyTree, Any], tuple[jax.Array, Metrics]]


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    rows: Callable[[TrainState, Batch], tuple[Rows, Metrics]],
    loss: Loss,
    optimizer: optax.GradientTransformation,
    follow: Callable[[TrainState], TrainState],
    microbatches: int,
) -> tuple[TrainState, Metrics]:
    """One update of `state`.

    Args:
      state: before the step.
      batch: arrays `[B, ...]`.
      rows: what is learned from, arrays with rows first: a rollout and its scores, or the batch as
        it is. No gradient flows through it.
      loss: `(params, rows) -> (scalar, metrics)`, both sums over rows weighted by `row_weights`.
      optimizer: from the gradient to the update.
      follow: what changes after the update, such as a moving average.
      microbatches: in how many parts the gradient is computed; must divide B.
    """
    learned, observed = rows(state, batch)
    learned = jax.lax.stop_gradient(learned)
    gradient, metrics = accumulate_gradients(loss, state.params, learned, microbatches)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    state = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
    )
    norms = {
        "gradient_norm": optax.tree.norm(gradient),
        "update_norm": optax.tree.norm(updates),
    }
    return follow(state), observed | metrics | norms


def row_weights(batch: Batch) -> jax.Array:
    """Each row's part of the batch, float32 `[B]`, summing to 1; 0 for rows that are not valid."""
    count = next(iter(batch.values())).shape[0]
    valid = batch.get("valid", jnp.ones(count, jnp.float32))
    return valid / jnp.maximum(jnp.sum(valid), 1.0)


def accumulate_gradients(
    loss: Loss, params: PyTree, rows: PyTree, microbatches: int
) -> tuple[PyTree, Metrics]:
    """The gradient of a loss that is a sum over rows, a part of the batch at a time.

    Args:
      loss: `(params, rows) -> (scalar, metrics)`, both sums over rows weighted by `row_weights`.
      params: what to differentiate by.
      rows: arrays with the rows as first dimension.
      microbatches: in how many parts; must divide the number of rows.

    Returns:
      Gradient and metrics, summed over the parts: as if the batch had been one.
    """
    gradient = jax.grad(loss, has_aux=True)
    if microbatches == 1:
        return gradient(params, rows)

    # Every part takes rows from all devices, so that no device has to send its rows away.
    def split(x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:]).swapaxes(0, 1)

    def add(total: PyTree, part: PyTree) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, gradient(params, constrain_batch(part))), None

    parts = jax.tree.map(split, rows)
    first = jax.tree.map(lambda x: x[0], parts)
    rest = jax.tree.map(lambda x: x[1:], parts)
    return jax.lax.scan(add, gradient(params, first), rest)[0]
