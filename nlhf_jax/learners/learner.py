"""One training step, the same for every learner, and what every learner is.

A step is rows, gradient, update, and what follows: `train_step`, one jitted program, so that
nothing in between reaches the host. A learner says what it learns from (`rows`: everything without
a gradient, such as a rollout and its scores) and what it minimises (`loss`). Metrics are sums over
rows weighted by `row_weights`, so they are means over the batch.
"""

import abc
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from nlhf_jax.errors import UserError
from nlhf_jax.learners.state import Purpose, StateFactory, TrainState, key_for, with_key
from nlhf_jax.models.language_model import LanguageModel, PyTree
from nlhf_jax.optimizers import choose, update_if
from nlhf_jax.sharding import Partitioner, constrain_batch, split_batch

Batch = Mapping[str, jax.Array]
Rows = dict[str, PyTree]
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
    """One update of `state` on `batch`, arrays `[B, ...]`; none if it would not be finite.

    Args:
      rows: what is learned from, such as a rollout and its scores; no gradient flows through it.
      loss: `(params, rows) -> (scalar, metrics)`, both sums over rows weighted by `row_weights`.
      optimizer: from the gradient to the update.
      follow: what changes after the update, such as a moving average.
      microbatches: in how many parts the gradient is computed; must divide B.
    """
    learned, observed = jax.lax.stop_gradient(rows(state, batch))
    gradient, metrics = accumulate_gradients(loss, state.params, learned, microbatches)
    state, about_update = update(state, gradient, metrics["loss"], optimizer, follow)
    return state, observed | metrics | about_update


def update(
    state: TrainState,
    gradient: PyTree,
    loss: jax.Array,
    optimizer: optax.GradientTransformation,
    follow: Callable[[TrainState], TrainState],
) -> tuple[TrainState, Metrics]:
    """The end of `train_step`; only its number changes where `gradient` or `loss` is not finite."""
    norm = optax.tree.norm(gradient)
    finite = jnp.isfinite(loss) & jnp.isfinite(norm)
    updates, opt_state = update_if(finite, optimizer, gradient, state.opt_state, state.params)
    state = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
    )
    skipped = 1.0 - finite.astype(jnp.float32)
    found = {"gradient_norm": norm, "update_norm": optax.tree.norm(updates), "skipped": skipped}
    return choose(finite, follow(state), state), found


def row_weights(batch: Batch) -> jax.Array:
    """Each row's part of the batch, float32 `[B]`, summing to 1; 0 for rows that are not valid."""
    count = next(iter(batch.values())).shape[0]
    valid = batch.get("valid", jnp.ones(count, jnp.float32))
    return valid / jnp.maximum(jnp.sum(valid), 1.0)


def accumulate_gradients(
    loss: Loss, params: PyTree, rows: PyTree, microbatches: int
) -> tuple[PyTree, Metrics]:
    """The gradient of a loss that is a sum over rows, a part of the batch at a time.

    Arguments as of `train_step`. Gradient and metrics are those of the batch as one part.
    """
    gradient = jax.grad(loss, has_aux=True)
    if microbatches == 1:
        return gradient(params, rows)

    def add(total: PyTree, part: PyTree) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, gradient(params, constrain_batch(part))), None

    parts = split_batch(rows, microbatches)
    first = jax.tree.map(lambda x: x[0], parts)
    rest = jax.tree.map(lambda x: x[1:], parts)
    return jax.lax.scan(add, gradient(params, first), rest)[0]


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
        initial_params: Callable[[], PyTree] | None = None,
        microbatches: int = 1,
        kept: Iterable[str] = (),
    ):
        """Compiles nothing yet.

        Args:
          model: the network that is trained.
          partitioner: the mesh on which state and batches live.
          optimizer: from `nlhf_jax.optimizers`.
          seed: of the initial parameters and of all sampling.
          initial_params: reads where to start, called by `init` alone: a run that continues reads
            nothing. The arrays, on the host or on the mesh, become a part of the state. None draws
            them from `seed`.
          microbatches: in how many parts the gradient of a batch is computed, and what is rated is
            read; must divide it.
          kept: names of parameter sets that the state has beside the policy's, at first copies.
        """
        self.model = model
        self.partitioner = partitioner
        self.seed = seed
        self._microbatches = microbatches
        self._factory = StateFactory(model, optimizer, partitioner, seed, initial_params, kept)
        self._jitted_train_step = jax.jit(
            with_key(self, Learner._train_step),
            donate_argnums=0,
            out_shardings=(self._factory.sharding, partitioner.replicated),
        )
        self._jitted_eval_step = jax.jit(
            with_key(self, Learner._eval_step), out_shardings=partitioner.replicated
        )

    @functools.cached_property
    def key(self) -> jax.Array:
        """The key of all sampling, that of the seed; in a step see `with_key`."""
        # It is kept, so it must be an array also where a caller's own trace asks for it first.
        with jax.transfer_guard("allow"), jax.ensure_compile_time_eval():
            return jax.jit(
                lambda: jax.random.key(self.seed), out_shardings=self.partitioner.replicated
            )()

    @functools.cached_property
    def _frozen(self) -> PyTree:
        """Parameters that the step reads and never changes, on the mesh; read when first needed."""
        return None

    @abc.abstractmethod
    def rows(self, state: TrainState, frozen: PyTree, batch: Batch) -> tuple[Rows, Metrics]:
        """What the loss reads, and its metrics. No gradient flows here.

        With micro-batches all are arrays with rows first.
        """

    @abc.abstractmethod
    def loss(self, params: PyTree, frozen: PyTree, rows: Rows) -> tuple[jax.Array, Metrics]:
        """A scalar that is a sum over rows, and metrics that are such sums as well.

        `frozen` is what `loss_reads` gives.
        """

    def loss_reads(self, state: TrainState, frozen: PyTree) -> PyTree:
        """Parameters that the loss reads and a step does not train."""
        return frozen

    def evaluate(self, state: TrainState, frozen: PyTree, batch: Batch) -> Metrics:
        """Metrics of a batch without training on it; by default those of the loss."""
        rows, metrics = self.rows(state, frozen, batch)
        return metrics | self.loss(state.params, self.loss_reads(state, frozen), rows)[1]

    def dropout_keys(self, state: TrainState, batch: Batch) -> Rows:
        """Among the rows of a learner that trains with dropout: a key each; none in evaluation."""
        if "valid" in batch:  # Evaluation's batches alone are filled up.
            return {}
        count = next(iter(batch.values())).shape[0]
        key = key_for(self.key, state.step, Purpose.DROPOUT)
        return {"dropout_keys": jax.random.split(key, count)}

    def with_dropout(self, rows: Rows) -> LanguageModel:
        """The model with the dropout of a part of the batch: that of its first row's key."""
        keys = rows.get("dropout_keys")
        return self.model if keys is None else self.model.with_dropout(keys[0])

    def follow(self, state: TrainState) -> TrainState:
        """What changes after the optimiser's update, such as a moving average."""
        return state

    def init(self) -> TrainState:
        """The state before the first step, on the mesh."""
        return self._factory()

    def abstract_state(self) -> TrainState:
        """Shapes, dtypes and shardings of the state, without its arrays: for restoring."""
        return self._factory.abstract()

    def train_step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One update. Donates `state`. Metrics are float32 scalars; among them are `loss` and,
        1 where the update would not be finite and nothing but the step changes, `skipped`."""
        if next(iter(batch.values())).shape[0] % self._microbatches:
            raise UserError(
                f"MICROBATCHES is {self._microbatches} but must divide the batch size "
                f"{next(iter(batch.values())).shape[0]}"
            )
        return self._jitted_train_step(state, self._frozen, batch, self.key)

    def lower_train_step(self, frozen: PyTree, batch: Batch) -> jax.stages.Lowered:
        """The program of `train_step`, lowered for arrays that need not exist.

        Args:
          frozen: what the step reads and never changes, each a `jax.ShapeDtypeStruct` with its
            sharding; None for a learner that has none of it.
          batch: the same of a batch.
        """
        return self._jitted_train_step.lower(self.abstract_state(), frozen, batch)

    def eval_step(self, state: TrainState, batch: Batch) -> Metrics:
        """Means over the rows whose `valid` (float32 `[B]`) is 1, and their number, `examples`.

        Where the means are over those rows' tokens, `tokens` is the number of these. Of several
        batches each has its number in `batch_number` (int32 `[B]`, all the same).
        """
        return self._jitted_eval_step(state, self._frozen, batch, self.key)

    def compilations(self) -> int:
        """How many programs `train_step` has compiled: 1, however long the training."""
        return self._jitted_train_step._cache_size()  # type: ignore[attr-defined]

    def _train_step(
        self, state: TrainState, frozen: PyTree, batch: Batch
    ) -> tuple[TrainState, Metrics]:
        with self.partitioner.activate():
            return train_step(
                state,
                batch,
                rows=lambda state, batch: self.rows(state, frozen, batch),
                loss=lambda params, rows: self.loss(params, self.loss_reads(state, frozen), rows),
                optimizer=self._factory.optimizer,
                follow=self.follow,
                microbatches=self._microbatches,
            )

    def _eval_step(self, state: TrainState, frozen: PyTree, batch: Batch) -> Metrics:
        with self.partitioner.activate():
            metrics = self.evaluate(state, frozen, batch)
            return metrics | {"examples": jnp.sum(batch["valid"])}
