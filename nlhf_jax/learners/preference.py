"""The preference model: which of two responses a random rater prefers."""

import jax
import jax.numpy as jnp

from nlhf_jax import losses
from nlhf_jax.learners.learner import Batch, Learner, Metrics, Rows, row_weights
from nlhf_jax.learners.state import TrainState
from nlhf_jax.models.language_model import PyTree
from nlhf_jax.raters import PreferenceModel


class PreferenceLearner(Learner):
    """Cross-entropy of votes, each comparison seen in both orders (Munos et al. 2024, sec. 3.3).

    Batches: `text` int32 `[B, S]`, `chosen` and `rejected` int32 `[B, T]`, `weight` float32 `[B]`,
    the share of raters that chose `chosen`, in (0.5, 1].
    """

    kind = "preference"

    def __init__(self, *, rater: PreferenceModel, **learner):
        """`rater` names the network, its template and its answers; the rest is `Learner`'s."""
        super().__init__(model=rater.model, **learner)
        self.rater = rater

    def rows(self, state: TrainState, frozen: PyTree, batch: Batch) -> tuple[Rows, Metrics]:
        names = ("text", "chosen", "rejected", "weight")
        return {name: batch[name] for name in names} | {"share": row_weights(batch)}, {}

    def loss(self, params: PyTree, frozen: PyTree, rows: Rows) -> tuple[jax.Array, Metrics]:
        forward, backward = self.rater.both_orders(
            params, rows["text"], rows["chosen"], rows["rejected"]
        )
        share, vote = rows["share"], rows["weight"]
        loss = losses.preference_cross_entropy(forward, vote, share / 2)
        loss += losses.preference_cross_entropy(-backward, vote, share / 2)
        first, second = jax.nn.sigmoid(forward), jax.nn.sigmoid(-backward)
        metrics = {
            "loss": loss,
            "accuracy": jnp.sum(share * vote_accuracy(first + second - 1.0, vote)),
            # How much more often the rater prefers what it reads first: 0 without bias.
            "order_bias": jnp.sum(share * (first - second)),
            "inconsistency": jnp.sum(share * jnp.abs(first - second)),
        }
        return loss, metrics


def vote_accuracy(margin: jax.Array, weight: jax.Array) -> jax.Array:
    """Share of the raters' votes that a margin for `chosen` predicts; one of 0 is half right."""
    predicted = jnp.where(margin == 0, 0.5, margin > 0)
    return predicted * weight + (1.0 - predicted) * (1.0 - weight)
