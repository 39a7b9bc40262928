"""The learner of votes: any rater, from which of two responses people preferred."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from nlhf_jax import losses
from nlhf_jax.errors import UserError
from nlhf_jax.learners.learner import Batch, Learner, Metrics, Rows, row_weights
from nlhf_jax.learners.reading import lesson, right_answers
from nlhf_jax.learners.state import TrainState
from nlhf_jax.models.language_model import PyTree, logits_after
from nlhf_jax.raters import PreferenceEmbedding, Rater


class VoteLearner(Learner):
    """Cross-entropy of votes, each comparison seen in both orders (Munos et al. 2024, sec. 3.3).

    Batches: `text` int32 `[B, S]`, `chosen` and `rejected` int32 `[B, T]`, `vote_share` float32
    `[B]`, how many of the raters chose `chosen`, in (0.5, 1].
    """

    def __init__(self, *, rater: Rater, reading: float = 0.0, **learner: Any):
        """A learner of a rater's parameters.

        Args:
          rater: any kind of `nlhf_jax.raters`.
          reading: weight of reading lessons on the responses that were voted on (`reading.lesson`),
            of a preference embedding, which reads them token by token.
          **learner: what `Learner` takes.

        Raises:
          UserError: lessons for another kind.
        """
        super().__init__(model=rater.model, **learner)
        if reading and not isinstance(rater, PreferenceEmbedding):
            raise UserError(f"READING is {reading} but a {rater.kind} model has no such lessons")
        self.rater = rater
        self.reading = reading
        self.kind = rater.kind

    def rows(self, state: TrainState, frozen: PyTree, batch: Batch) -> tuple[Rows, Metrics]:
        names = ("text", "chosen", "rejected", "vote_share")
        rows = {name: batch[name] for name in names} | {"row_weights": row_weights(batch)}
        return rows | self.dropout_keys(state, batch), {}

    def loss(self, params: PyTree, frozen: PyTree, rows: Rows) -> tuple[jax.Array, Metrics]:
        rater = dataclasses.replace(self.rater, model=self.with_dropout(rows))
        forward, backward, lessons = self._asked(rater, params, rows)
        weights, vote_share = rows["row_weights"], rows["vote_share"]
        loss = losses.preference_cross_entropy(forward, vote_share, weights / 2)
        loss += losses.preference_cross_entropy(-backward, vote_share, weights / 2)
        first, second = jax.nn.sigmoid(forward), jax.nn.sigmoid(-backward)
        metrics = {
            "loss": loss,
            "accuracy": jnp.sum(weights * vote_accuracy(first + second - 1.0, vote_share)),
            # Of the rater's preferences, squared: 0 where it has none, 1 where it has no doubt.
            "saturation": jnp.sum(weights * jnp.square(first + second - 1.0)),
        }
        if rater.antisymmetric:
            metrics["margin"] = jnp.sum(weights * forward)
        else:
            # How much more often the rater prefers what it reads first: 0 without bias.
            metrics["order_bias"] = jnp.sum(weights * (first - second))
            metrics["inconsistency"] = jnp.sum(weights * jnp.abs(first - second))
        if lessons is None:
            return loss, metrics
        wrong, right = lessons
        metrics |= {name: jnp.sum(weights * x) for name, x in right.items()}
        # `loss` among the metrics is the votes' alone: by it the best step is chosen.
        return loss + self.reading * jnp.sum(weights * wrong), metrics

    def _asked(self, rater: Rater, params: PyTree, rows: Rows) -> tuple:
        """The logits in both orders, and `reading.lesson` of both responses or None."""
        text, chosen, rejected = rows["text"], rows["chosen"], rows["rejected"]
        if not self.reading or not isinstance(rater, PreferenceEmbedding):
            return *rater.both_orders(params, text, chosen, rejected), None
        model, responses = rater.model, jnp.stack([chosen, rejected], axis=1)
        logits = logits_after(model, params, model.encode(params, text), responses)
        embedded = rater.pool(logits, responses)
        logit = rater.compare(embedded[:, 0], embedded[:, 1])
        answers = right_answers(text, responses, model.tokens)
        return logit, -logit, lesson(logits, responses, answers, model.tokens)


def vote_accuracy(margin: jax.Array, vote_share: jax.Array) -> jax.Array:
    """Share of the raters' votes that a margin for `chosen` predicts; one of 0 is half right."""
    predicted = jnp.where(margin == 0, 0.5, margin > 0)
    return predicted * vote_share + (1.0 - predicted) * (1.0 - vote_share)
