"""Scorers: what an objective learns from.

A scorer says what a rater, or a function of your own, measures of responses, and which part of that
is an advantage.
"""

import dataclasses
from typing import Protocol

import jax

from nlhf_jax import losses
from nlhf_jax.models.language_model import PyTree
from nlhf_jax.raters.rater import Rater
from nlhf_jax.raters.reward import RewardModel


class Scorer(Protocol):
    """What an objective learns from; a rater, or a function of your own.

    One that also has `score_and_more`, which returns the scores and a dict of float32 `[B]`, has
    the means of those among the metrics of a step.

    Each row is scored for itself: with MICROBATCHES the rows of a batch come in several calls.

    Attributes:
      measures: what the scores are, the name of their metric: "preference", "reward", ...
      pairwise: whether a score compares y with a second response.
    """

    measures: str
    pairwise: bool

    def score(
        self, params: PyTree, text: jax.Array, y: jax.Array, other: jax.Array | None
    ) -> jax.Array:
        """What is measured, float32 `[B]`: if pairwise a preference P(y > other) in [0, 1].

        `text` is `[B, S]`, the responses `[B, T]`; `other` is None where nobody wrote a second one.
        """

    def advantages(self, scores: jax.Array, row_weights: jax.Array) -> jax.Array:
        """Scores less a baseline that does not depend on a row's own y, `[B]` to `[B]`."""

    def win_rate(
        self, params: PyTree, text: jax.Array, y: jax.Array, other: jax.Array
    ) -> jax.Array:
        """Probability that y is preferred to the other response, float32 `[B]`; for evaluation."""


def score_and_more(
    scorer: Scorer, params: PyTree, text: jax.Array, y: jax.Array, other: jax.Array | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A scorer's `score`, and what else it has to say of the rows by its own `score_and_more`."""
    if hasattr(scorer, "score_and_more"):
        return scorer.score_and_more(params, text, y, other)
    return scorer.score(params, text, y, other), {}


@dataclasses.dataclass(frozen=True)
class PreferenceScorer:
    """P(y > y' | x) by a rater, less the paper's control variate 1/2."""

    rater: Rater
    both_orders: bool
    measures = "preference"
    pairwise = True

    def score(
        self, params: PyTree, text: jax.Array, y: jax.Array, other: jax.Array | None
    ) -> jax.Array:
        return self.score_and_more(params, text, y, other)[0]

    def score_and_more(
        self, params: PyTree, text: jax.Array, y: jax.Array, other: jax.Array | None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """`score`, and by how much y is preferred more where the rater reads it first."""
        assert other is not None  # objectives see to it that pairwise scorers get pairs
        if not self.both_orders or self.rater.antisymmetric:
            return jax.nn.sigmoid(self.rater.logit(params, text, y, other)), {}
        forward, backward = self.rater.both_orders(params, text, y, other)
        first, second = jax.nn.sigmoid(forward), jax.nn.sigmoid(-backward)
        return (first + second) / 2, {"order_bias": first - second}

    def advantages(self, scores: jax.Array, row_weights: jax.Array) -> jax.Array:
        return losses.centred_preference(scores, row_weights)

    def win_rate(
        self, params: PyTree, text: jax.Array, y: jax.Array, other: jax.Array
    ) -> jax.Array:
        return self.rater.probability(params, text, y, other, both_orders=True)


@dataclasses.dataclass(frozen=True)
class RewardScorer:
    """The reward of y by a reward model, less the mean reward of the batch's other rows."""

    rater: RewardModel
    measures = "reward"
    pairwise = False

    def score(
        self, params: PyTree, text: jax.Array, y: jax.Array, other: jax.Array | None
    ) -> jax.Array:
        return self.rater.reward(params, text, y)

    def advantages(self, scores: jax.Array, row_weights: jax.Array) -> jax.Array:
        return losses.leave_one_out(scores, row_weights)

    def win_rate(
        self, params: PyTree, text: jax.Array, y: jax.Array, other: jax.Array
    ) -> jax.Array:
        return jax.nn.sigmoid(
            self.rater.reward(params, text, y) - self.rater.reward(params, text, other)
        )
