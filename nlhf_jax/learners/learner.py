"""One training step, the same for every learner: rows, gradient, update, in one jitted program.

A learner says what it learns from (`rows`: everything without a gradient, such as a rollout and its
scores) and what it minimises (`loss`). Metrics are sums over rows weighted by their shares of the
batch, so they are means over the batch.
"""

import abc
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nlhf_jax.errors import UserError
from nlhf_jax.learners.state import StateFactory, TrainState
from nlhf_jax.models.language_model import LanguageModel, PyTree
from nlhf_jax.sharding import Partitioner, constrain_batch

Batch = Mapping[str, jax.Array]
Rows = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class Learner(abc.ABC):
    """Base of the learners; see the module's docstring for what a subclass adds."""

    kind: str

    def __init__(
        self,
        *,
        model: LanguageModel,
        partitioner: Partitioner,
        optimizer: optax.GradientTransformation,
        seed: int,
        initial_params: PyTree | None = None,
        microbatches: int = 1,
        frozen: PyTree = None,
        with_average: bool = False,
    ):
        """Compiles nothing yet.

        Args:
          model: the network that is trained.
          partitioner: the mesh on which state and batches live.
          optimizer: from `nlhf_jax.optimizers`.
          seed: of the initial parameters and of all sampling.
          initial_params: host or device arrays to start from; None draws them from `seed`.
          microbatches: in how many parts the gradient of a batch is computed; must divide it.
          frozen: parameters that the step reads and never changes, already placed on the mesh.
          with_average: keep a moving average of the parameters in the state.
        """
        self.model = model
        self.partitioner = partitioner
        self.seed = seed
        self._microbatches = microbatches
        self._frozen = frozen
        self._factory = StateFactory(
            model, optimizer, partitioner, seed, initial_params, with_average
        )
        self._jitted_train_step = jax.jit(
            self._train_step,
            donate_argnums=0,
            out_shardings=(self._factory.sharding, partitioner.replicated),
        )
        self._jitted_eval_step = jax.jit(self._eval_step, out_shardings=partitioner.replicated)

    @abc.abstractmethod
    def rows(self, state: TrainState, frozen: PyTree, batch: Batch) -> tuple[Rows, Metrics]:
        """What the loss reads, arrays with rows first, and its metrics. No gradient flows here."""

    @abc.abstractmethod
    def loss(self, params: PyTree, frozen: PyTree, rows: Rows) -> tuple[jax.Array, Metrics]:
        """A scalar that is a sum over rows, and metrics that are such sums as well."""

    def evaluate(self, state: TrainState, frozen: PyTree, batch: Batch) -> Metrics:
        """Metrics of a batch without training on it; by default those of the loss."""
        rows, metrics = self.rows(state, frozen, batch)
        return metrics | self.loss(state.params, frozen, rows)[1]

    def after_update(self, state: TrainState) -> TrainState:
        """What follows the optimiser, such as a moving average."""
        return state

    def init(self) -> TrainState:
        """The state before the first step, on the mesh."""
        return self._factory()

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state, without its arrays: for restoring."""
        return self._factory.abstract()

    def train_step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One update. Donates `state`. Metrics are float32 scalars; `loss` is always one."""
        if next(iter(batch.values())).shape[0] % self._microbatches:
            raise UserError(
                f"MICROBATCHES is {self._microbatches} but must divide the batch size "
                f"{next(iter(batch.values())).shape[0]}"
            )
        return self._jitted_train_step(state, self._frozen, batch)

    def eval_step(self, state: TrainState, batch: Batch) -> Metrics:
        """Means over the rows whose `valid` (float32 `[B]`) is 1, and their number, `examples`."""
        return self._jitted_eval_step(state, self._frozen, batch)

    def compilations(self) -> int:
        """How many programs `train_step` has compiled: 1, however long the training."""
        return self._jitted_train_step._cache_size()

    def _train_step(self, state, frozen, batch):
        with self.partitioner.activate():
            rows, observed = self.rows(state, frozen, batch)
            gradient, metrics = accumulate_gradients(
                lambda params, part: self.loss(params, frozen, part),
                state.params,
                jax.lax.stop_gradient(rows),
                self._microbatches,
            )
            updates, opt_state = self._factory.optimizer.update(
                gradient, state.opt_state, state.params
            )
            state = state.replace(
                step=state.step + 1,
                params=optax.apply_updates(state.params, updates),
                opt_state=opt_state,
            )
            norms = {
                "gradient_norm": optax.tree.norm(gradient),
                "update_norm": optax.tree.norm(updates),
            }
            return self.after_update(state), observed | metrics | norms

    def _eval_step(self, state, frozen, batch):
        with self.partitioner.activate():
            metrics = self.evaluate(state, frozen, batch)
            return metrics | {"examples": jnp.sum(batch["valid"])}


def row_weights(batch: Batch) -> jax.Array:
    """Each row's share of the batch, float32 `[B]`, summing to 1; 0 for rows that are not valid."""
    count = next(iter(batch.values())).shape[0]
    valid = batch.get("valid", jnp.ones(count, np.float32))
    return valid / jnp.maximum(jnp.sum(valid), 1.0)


def accumulate_gradients(
    loss: Callable[[PyTree, Any], tuple[jax.Array, Metrics]],
    params: PyTree,
    rows: PyTree,
    microbatches: int,
) -> tuple[PyTree, Metrics]:
    """The gradient of a loss that is a sum over rows, a part of the batch at a time.

    Args:
      loss: `(params, rows) -> (scalar, metrics)`, both sums over the rows' shares of the batch.
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
