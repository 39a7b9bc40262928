"""Supervised fine-tuning: the SFT policy, which is also the reference of every policy learner."""

import jax
import jax.numpy as jnp

from nlhf_jax import losses
from nlhf_jax.learners.learner import Batch, Learner, Metrics, Rows, row_weights
from nlhf_jax.learners.state import TrainState
from nlhf_jax.models.language_model import PyTree, token_log_probs


class SupervisedLearner(Learner):
    """Maximises log p(target | input), averaged over the target tokens of a batch.

    Batches: `inputs` int32 `[B, S]` and `targets` int32 `[B, T]`, both ending with EOS.
    """

    kind = "supervised"

    def _mask(self, batch: Batch) -> jax.Array:
        # Targets come from text, which has no padding token before EOS.
        valid = jnp.sign(row_weights(batch))[:, None]
        return (batch["targets"] != self.model.tokens.pad) * valid

    def rows(self, state: TrainState, frozen: PyTree, batch: Batch) -> tuple[Rows, Metrics]:
        mask = self._mask(batch)
        rows = {
            "inputs": batch["inputs"],
            "targets": batch["targets"],
            "token_weights": mask / jnp.maximum(jnp.sum(mask), 1.0),
        }
        return rows | self.dropout_keys(state, batch), {}

    def evaluate(self, state: TrainState, frozen: PyTree, batch: Batch) -> Metrics:
        return super().evaluate(state, frozen, batch) | {"tokens": jnp.sum(self._mask(batch))}

    def loss(self, params: PyTree, frozen: PyTree, rows: Rows) -> tuple[jax.Array, Metrics]:
        model = self.with_dropout(rows)
        logits = model.logits(params, model.encode(params, rows["inputs"]), rows["targets"])
        log_probs = token_log_probs(logits, rows["targets"])
        loss = losses.cross_entropy(log_probs, rows["token_weights"])
        correct = jnp.argmax(logits, axis=-1) == rows["targets"]
        return loss, {"loss": loss, "token_accuracy": jnp.sum(correct * rows["token_weights"])}
