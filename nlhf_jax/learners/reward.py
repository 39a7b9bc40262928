"""The Bradley-Terry reward model: the scorer of the RLHF baseline."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from nlhf_jax import losses
from nlhf_jax.learners.learner import Batch, Learner, Metrics, Rows, row_weights
from nlhf_jax.learners.preference import vote_accuracy
from nlhf_jax.learners.state import TrainState
from nlhf_jax.models.language_model import PyTree
from nlhf_jax.raters import RewardModel, interleave


class RewardLearner(Learner):
    """Cross-entropy of votes through sigmoid(r(chosen) - r(rejected)) (Bradley and Terry 1952).

    Batches are those of `PreferenceLearner`.
    """

    kind = "reward"

    def __init__(self, *, rater: RewardModel, **learner: Any):
        """`rater` names the network and its template; the rest is `Learner`'s."""
        super().__init__(model=rater.model, **learner)
        self.rater = rater

    def rows(self, state: TrainState, frozen: PyTree, batch: Batch) -> tuple[Rows, Metrics]:
        names = ("text", "chosen", "rejected", "vote_share")
        rows = {name: batch[name] for name in names} | {"row_weights": row_weights(batch)}
        return rows | self.dropout_keys(state, batch), {}

    def loss(self, params: PyTree, frozen: PyTree, rows: Rows) -> tuple[jax.Array, Metrics]:
        rater = dataclasses.replace(self.rater, model=self.with_dropout(rows))
        rewards = rater.reward(
            params,
            interleave(rows["text"], rows["text"]),
            interleave(rows["chosen"], rows["rejected"]),
        )
        chosen, rejected = rewards.reshape(-1, 2).T
        weights, vote_share = rows["row_weights"], rows["vote_share"]
        loss = losses.preference_cross_entropy(chosen - rejected, vote_share, weights)
        metrics = {
            "loss": loss,
            "accuracy": jnp.sum(weights * vote_accuracy(chosen - rejected, vote_share)),
            "margin": jnp.sum(weights * (chosen - rejected)),
            "saturation": jnp.sum(weights * jnp.square(jnp.tanh((chosen - rejected) / 2))),
        }
        return loss, metrics
